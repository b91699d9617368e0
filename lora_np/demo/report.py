"""The numbers of the demo as text."""

from collections.abc import Iterable, Sequence

from ..terminal.table import table
from .base import BaseResult
from .checks import Check
from .merging import MergeResult
from .parameters import Count
from .ranks import Curve, RankResult
from .settings import Settings
from .tasks import SharingResult
from .training import Score


def percent(fraction: float) -> str:
    """Format a fraction as a percentage: 0.9731 as 97.3%."""
    return f"{fraction:.1%}"


def base_text(result: BaseResult) -> str:
    """The base network."""
    rows = [["upright", *_score(result.upright)], ["rotated and inverted", *_score(result.shifted)]]
    return section(
        "Base: a network trained on upright digits",
        f"Dense layers {' -> '.join(map(str, result.sizes))} with ReLU, trained on {result.train_rows:,} digits in "
        f"{result.seconds:.1f} s\nand tested on {result.test_rows:,} others. NLL is the mean negative log-likelihood.",
        table(["test digits", "accuracy", "NLL"], rows),
    )


def ranks_text(result: RankResult, settings: Settings) -> str:
    """DyLoRA compared with the other ways to obtain an adapter at every rank."""
    header = [f"rank {rank}" for rank in result.ranks]
    accuracies = [[curve.method, *(percent(s.accuracy) for s in curve.scores), *cost(curve)] for curve in result.curves]
    losses = [[curve.method, *(f"{s.nll:.3f}" for s in curve.scores)] for curve in result.curves]
    return section(
        "DyLoRA: one training run for all ranks",
        f"The base is frozen; adapters on all dense layers learn rotated, inverted digits in {settings.rank_epochs} epochs "
        f"of Adam.\n'Truncated' keeps the leading components of the rank-{result.ranks[-1]} LoRA.\n"
        "'Truncated by SVD' keeps its best approximation of each rank.",
        table(["accuracy", *header, "training runs", "seconds"], accuracies),
        table(["NLL", *header], losses),
        "\n".join(verdict(result)),
    )


def verdict(result: RankResult) -> list[str]:
    """What the measured numbers show, whether or not it favours DyLoRA."""
    low, high = result.ranks[0], result.ranks[-1]
    return [
        f"At rank {low}, DyLoRA scores {_compared(result.gain)} the truncated rank-{high} LoRA "
        f"and {_compared(result.gain_over_svd)} the one truncated by SVD.",
        f"At rank {high}, DyLoRA scores {_compared(-result.loss)} the dedicated LoRA; "
        f"the target, at most {100 * result.margin:.1f} points below, is {'met' if result.within_margin else 'NOT met'}.",
        f"The DyLoRA training run took {sum(result.dylora.seconds):.1f} s, "
        f"the {len(result.ranks)} LoRA runs {sum(result.dedicated.seconds):.1f} s.",
    ]


def _compared(difference: float) -> str:
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
    header = ["task", "base alone", "once trained", "at the end", "changed bytes", "output change", "mixed training"]
    return section(
        "MultiLoRA: three tasks on one base",
        f"The accuracy of rank-{result.rank} adapters, trained one task after another in {total:.1f} s.\n"
        "'At the end' is after training all tasks; the next two columns show what changed since 'once trained'.\n"
        f"'Mixed training' is a second model, trained on mixed batches of all tasks in {result.mixed_seconds:.1f} s.",
        table(header, rows),
        f"The outputs of a mixed batch ({result.mixed_rows} rows, each with a task or none) match those of separate passes "
        f"to {result.mixed_difference:.1e}.",
    )


def merging_text(results: Iterable[MergeResult]) -> str:
    """Merged models compared with unmerged ones."""
    rows = [[r.model, r.variant, str(r.layers), f"{r.difference:.1e}"] for r in results]
    return section(
        "Merging: adapters added to the base weights",
        table(["model", "rank or task", "adapters", "largest output difference"], rows, left=2),
    )


def counts_text(counts: Iterable[Count]) -> str:
    """The number of parameters that each method trains."""
    rows = [[count.method, f"{count.parameters:,}", percent(count.share)] for count in counts]
    return section("Trainable parameters", table(["method", "parameters", "of full fine-tuning"], rows))


def checks_text(checks: Sequence[Check]) -> str:
    """The measured values and their limits."""
    rows = [[c.what, f"{c.value:.2g}", f"{c.limit:g}", "ok" if c.ok else "FAILED"] for c in checks]
    return section("Checks", table(["check", "measured", "allowed", ""], rows))


def _score(score: Score) -> list[str]:
    return [percent(score.accuracy), f"{score.nll:.3f}"]


def cost(curve: Curve) -> list[str]:
    """The number of training runs, and their time in seconds."""
    return [str(len(curve.seconds)), f"{sum(curve.seconds):.1f}"]


def section(title: str, *parts: str) -> str:
    """A section of a report: an underlined title, and paragraphs."""
    return "\n".join([title, "=" * len(title), "", "\n\n".join(parts), ""])
