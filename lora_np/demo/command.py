"""The demo from start to finish: train, measure, report, and write files."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .._typing import Array
from ..io.npz import load_layer, save_layer
from ..layers import Layer
from ..terminal.progress import bar
from . import report
from .base import BaseResult, train_base
from .checks import Check, all_checks
from .digits import Digits, upright
from .merging import MergeResult, difference, merge
from .parameters import Count, count
from .ranks import RankResult, compare_ranks
from .samples import Samples, sample
from .settings import Settings
from .tasks import SharingResult, share_base


@dataclass(frozen=True)
class Results:
    """The numbers of the demo, and the names of the files that it wrote."""

    settings: Settings
    base: BaseResult
    ranks: RankResult
    sharing: SharingResult
    merging: tuple[MergeResult, ...]
    parameters: tuple[Count, ...]
    checks: tuple[Check, ...]
    files: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """All fields and derived values, for the json module."""
        derived = ("gain", "gain_over_svd", "loss", "within_margin")
        values = {"ok": self.ok, **asdict(self)}
        values["ranks"] |= {name: getattr(self.ranks, name) for name in derived}
        values["checks"] = [asdict(check) | {"ok": check.ok} for check in self.checks]
        return values


def run(settings: Settings, directory: Path, *, plots: bool, say: Callable[[str], None]) -> Results:
    """Run the demo.

    Parameters
    ----------
    settings : Settings
    directory : path
        An existing directory, for the trained models and the figures.
    plots : bool
        Whether to save figures, if matplotlib is installed.
    say : callable
        Called with each section of the report as soon as its numbers are known.

    Returns
    -------
    Results
    """
    digits = Digits(settings)
    base_result, base = train_base(digits, settings, bar)
    say(report.base_text(base_result))
    ranks, dylora = compare_ranks(base, digits, settings, bar)
    say(report.ranks_text(ranks, settings))
    sharing, multilora = share_base(base, digits, settings, bar)
    say(report.sharing_text(sharing))
    inputs = digits.testing(upright).inputs
    merging = (*merge("DyLoRA", dylora, inputs), *merge("MultiLoRA", multilora, inputs))
    say(report.merging_text(merging))
    counts = count(base, settings)
    say(report.counts_text(counts))
    models = {"base.npz": base, "dylora.npz": dylora, "multilora.npz": multilora}
    checks = all_checks(sharing, merging, _save(models, directory, inputs))
    say(report.checks_text(checks))
    samples = sample(base, dylora, digits, settings)
    figures = _plot(directory, ranks, samples, sharing) if plots else []
    files = (*models, *figures)
    say(f"Written to {directory}: {', '.join(files)}")
    if plots and not figures:
        say('No figures, because matplotlib is not installed; to install it: pip install "lora_np[plot]"')
    return Results(settings, base_result, ranks, sharing, merging, tuple(counts), tuple(checks), files)


def _save(models: Mapping[str, Layer], directory: Path, inputs: Array) -> dict[str, float]:
    """Save each model, load it again, and return the largest difference of an output by file name."""
    differences = {}
    for name, model in models.items():
        save_layer(model, directory / name)
        differences[name] = difference(model, load_layer(directory / name), inputs)
    return differences


def _plot(directory: Path, ranks: RankResult, samples: Samples, sharing: SharingResult) -> list[str]:
    """Save the figures and return their names; none if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return []
    from . import pictures

    return pictures.save(directory, ranks, samples, sharing)
