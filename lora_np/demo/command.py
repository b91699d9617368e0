"""The verb ``lora-np demo``."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .._typing import Array
from ..terminal.progress import bar
from ..cli.verb import Verb, add_json, add_seed, print_json
from ..errors import ArgumentError
from ..io.npz import load_layer, save_layer
from ..layers import Layer
from . import experiment, report
from .experiment import Check, Digits, RankResult, Samples, Settings, SharingResult

ROUNDING = 1e-9
"""What float64 may do to logits when products are formed in another order."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_seed(parser)
    add_json(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("lora_np_demo"),
        metavar="DIR",
        help="where to write the trained models and the pictures (default: ./lora_np_demo)",
    )
    parser.add_argument("--no-plots", action="store_true", help="draw no pictures")


def _run(arguments: argparse.Namespace) -> int:
    return run(Settings(seed=arguments.seed), arguments.output, plots=not arguments.no_plots, as_json=arguments.json)


def run(settings: Settings, directory: Path, *, plots: bool = True, as_json: bool = False) -> int:
    """Run the demo.

    Parameters
    ----------
    settings : Settings
    directory : path
        Where the trained models and the pictures go; it is made where it does not exist.
    plots : bool, default True
        Whether to draw pictures, where matplotlib is installed.
    as_json : bool, default False
        Whether to print JSON and nothing else, instead of tables.

    Returns
    -------
    int
        0, or 1 where something does not hold that must hold whatever the training gave.

    Raises
    ------
    ArgumentError
        The directory is a file.
    """
    _make(directory)

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    digits = Digits(settings)
    base_result, base = experiment.train_base(digits, settings, bar)
    say(report.base_text(base_result))
    ranks, dylora = experiment.compare_ranks(base, digits, settings, bar)
    say(report.ranks_text(ranks, settings))
    sharing, multilora = experiment.share_base(base, digits, settings, bar)
    say(report.sharing_text(sharing))
    inputs = digits.testing(experiment.upright).inputs
    merging = [
        *experiment.merge("DyLoRA", dylora, inputs),
        *experiment.merge("MultiLoRA", multilora, inputs),
    ]
    say(report.merging_text(merging))
    counts = experiment.count(base, settings)
    say(report.counts_text(counts))
    models = {"base.npz": base, "dylora.npz": dylora, "multilora.npz": multilora}
    checks = [
        *(Check(f"{task.task}: bytes changed by the other tasks", task.changed_bytes, 0) for task in sharing.tasks),
        *(Check(f"{task.task}: outputs changed by the other tasks", task.changed_output, 0) for task in sharing.tasks),
        Check("a mixed batch and a pass for each task", sharing.mixed_difference, ROUNDING),
        Check("merged and unmerged", max(result.difference for result in merging), ROUNDING),
        *_save(models, directory, inputs),
    ]
    say(report.checks_text(checks))
    samples = experiment.sample(base, dylora, digits)
    pictures = _draw(directory, ranks, samples, sharing) if plots else []
    say(f"Written to {directory}: {', '.join([*models, *pictures])}")
    if plots and not pictures:
        say('No pictures without matplotlib; this extra draws them: pip install "lora_np[plot]"')
    ok = all(check.ok for check in checks)
    if as_json:
        print_json(
            {
                "ok": ok,
                "settings": asdict(settings),
                "base": asdict(base_result),
                "ranks": _ranks_json(ranks),
                "sharing": asdict(sharing),
                "merging": [asdict(result) for result in merging],
                "parameters": [asdict(count) for count in counts],
                "checks": [asdict(check) | {"ok": check.ok} for check in checks],
                "files": [*models, *pictures],
            }
        )
    return 0 if ok else 1


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArgumentError(f"--output must be a directory, and a file is in its way: {directory}") from None


def _save(models: Mapping[str, Layer], directory: Path, inputs: Array) -> list[Check]:
    """Save each model, load it again, and compare the outputs."""
    checks = []
    for name, model in models.items():
        save_layer(model, directory / name)
        difference = experiment.difference(model, load_layer(directory / name), inputs)
        checks.append(Check(f"{name} as saved and as loaded", difference, 0))
    return checks


def _draw(directory: Path, ranks: RankResult, samples: Samples, sharing: SharingResult) -> list[str]:
    """Draw the pictures where matplotlib is installed; returns their names."""
    if find_spec("matplotlib") is None:
        return []
    from . import pictures

    return pictures.draw(directory, ranks, samples, sharing)


def _ranks_json(ranks: RankResult) -> dict[str, Any]:
    derived = ("gain", "gain_over_best_cut", "loss", "within_margin")
    return asdict(ranks) | {name: getattr(ranks, name) for name in derived}


DEMO = Verb(
    name="demo",
    summary="train, adapt, share, merge and save small models of handwritten digits, in about half a minute",
    example="lora-np demo --output out\nlora-np demo --seed 7 --json > numbers.json",
    add_arguments=_add_arguments,
    run=_run,
)
