"""The demo's numbers as text."""

from collections.abc import Iterable, Sequence

from ..terminal.table import table
from .experiment import BaseResult, Check, Count, Curve, MergeResult, RankResult, Score, Settings, SharingResult


def percent(share: float) -> str:
    """0.9731 as 97.3%."""
    return f"{share:.1%}"


def base_text(result: BaseResult) -> str:
    """The base network."""
    rows = [["upright", *_score(result.upright)], ["rotated and inverted", *_score(result.shifted)]]
    return _section(
        "The base: a network that knows upright digits",
        f"Dense layers {' -> '.join(map(str, result.sizes))} with relu, trained on {result.train_rows:,} digits in "
        f"{result.seconds:.1f} s,\ntested on {result.test_rows:,} others. NLL is the mean negative log-likelihood.",
        table(["test digits", "accuracy", "NLL"], rows),
    )


def ranks_text(result: RankResult, settings: Settings) -> str:
    """DyLoRA against the other ways to an adapter at every rank."""
    header = [f"rank {rank}" for rank in result.ranks]
    accuracies = [[curve.method, *(percent(s.accuracy) for s in curve.scores), *_cost(curve)] for curve in result.curves]
    losses = [[curve.method, *(f"{s.nll:.3f}" for s in curve.scores)] for curve in result.curves]
    return _section(
        "DyLoRA: one training for every rank",
        f"The base is frozen; every dense layer is adapted to rotated and inverted digits by {settings.rank_epochs} epochs "
        f"of Adam.\n'Cut' keeps the first components of a trained LoRA, 'best cut' its largest ones (SVD).",
        table(["accuracy", *header, "trainings", "seconds"], accuracies),
        table(["NLL", *header], losses),
        "\n".join(verdict(result)),
    )


def verdict(result: RankResult) -> list[str]:
    """What the measured numbers say, whichever way it is."""
    low, full = result.ranks[0], result.ranks[-1]
    one, many = sum(result.dylora.seconds), sum(result.dedicated.seconds)
    return [
        f"At rank {low}, DyLoRA is {_apart(result.gain)} the {result.cut.method}, "
        f"and {_apart(result.gain_over_best_cut)} its best cut.",
        f"At rank {full}, DyLoRA is {_apart(-result.loss)} the LoRA trained for that rank alone; "
        f"the margin of {100 * result.margin:.1f} points below is {'kept' if result.within_margin else 'NOT kept'}.",
        f"Its one training took {one:.1f} s, the {len(result.ranks)} trainings of LoRAs {many:.1f} s.",
    ]


def _apart(difference: float) -> str:
    """A difference of accuracies in words."""
    return f"{abs(100 * difference):.1f} points {'below' if difference < 0 else 'above'}"


def sharing_text(result: SharingResult) -> str:
    """Several tasks on one base."""
    rows = [
        [
            task.task,
            percent(task.base_accuracy),
            percent(task.accuracy),
            percent(task.final_accuracy),
            str(task.changed_bytes),
            f"{task.changed_output:g}",
            percent(task.mixed_accuracy),
        ]
        for task in result.tasks
    ]
    total = sum(task.seconds for task in result.tasks)
    header = ["task", "base", "own training", "after the others", "changed bytes", "changed output", "mixed training"]
    return _section(
        "MultiLoRA: three tasks on one base",
        f"Adapters of rank {result.rank}, trained one task after the other in {total:.1f} s. 'Changed' is what the later "
        "trainings did to a\nfinished task. 'Mixed training' is a second model, which learned all tasks at once from "
        f"mixed batches in {result.mixed_seconds:.1f} s.",
        table(header, rows),
        f"A mixed batch of {result.mixed_rows} rows (each its own task, or the base alone) differs from a pass for each "
        f"task by {result.mixed_difference:.1e}.",
    )


def merging_text(results: Iterable[MergeResult]) -> str:
    """Merged models against unmerged ones."""
    rows = [[r.model, r.variant, str(r.layers), f"{r.difference:.1e}"] for r in results]
    return _section(
        "Merging: the adapters go into the base's weights",
        table(["model", "merged for", "adapters", "largest difference of an output"], rows, left=2),
    )


def counts_text(counts: Iterable[Count]) -> str:
    """How many parameters train."""
    rows = [[count.what, f"{count.parameters:,}", percent(count.share)] for count in counts]
    return _section("Parameters that train", table(["method", "parameters", "of full fine-tuning"], rows))


def checks_text(checks: Sequence[Check]) -> str:
    """What must hold exactly."""
    rows = [[c.what, f"{c.value:.2g}", f"{c.limit:g}", "ok" if c.ok else "FAILED"] for c in checks]
    return _section("What must hold", table(["difference", "measured", "allowed", ""], rows))


def _score(score: Score) -> list[str]:
    return [percent(score.accuracy), f"{score.nll:.3f}"]


def _cost(curve: Curve) -> list[str]:
    return [str(len(curve.seconds)), f"{sum(curve.seconds):.1f}"]


def _section(title: str, *parts: str) -> str:
    return "\n".join([title, "=" * len(title), "", "\n\n".join(parts), ""])
