"""The figures of the demo. Needs matplotlib, but leaves its global state unchanged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from .. import plot
from .._archive import atomic_file
from .._typing import Array
from .ranks import Curve, RankResult
from .samples import Samples
from .tasks import SharingResult

RIGHT, WRONG = "#0072B2", "#D55E00"
DOTS_PER_INCH = 150
LINE_HEIGHT = 0.32
"""The height of a line of text relative to that of an image."""


def save(directory: Path, ranks: RankResult, samples: Samples, sharing: SharingResult) -> list[str]:
    """Save all figures as PNG files; returns their names."""
    figures = {"ranks.png": rank_curves(ranks), "digits.png": digits(samples), "tasks.png": task_grid(sharing)}
    return save_all(directory, figures)


def save_all(directory: Path, figures: Mapping[str, Figure]) -> list[str]:
    """Save figures as PNG files, by name; returns the names."""
    for name, figure in figures.items():
        with atomic_file(directory / name) as file:
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return list(figures)


def rank_curves(result: RankResult) -> Figure:
    """Accuracy and negative log-likelihood of every method at every rank."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(result.ranks, result.curves, accuracy=left, loss=right)
    left.set(ylim=(0, 103))
    right.set(yscale="log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(handles=left.get_lines(), loc="outside lower center", ncols=len(result.curves), frameon=False)
    return figure


def draw_curves(ranks: Sequence[int], curves: Sequence[Curve], *, accuracy: Axes, loss: Axes) -> None:
    """Draw the scores of every method at every rank, without legends."""
    scores = {curve.method: dict(zip(ranks, curve.scores, strict=True)) for curve in curves}
    accuracies = {method: {rank: 100 * score.accuracy for rank, score in row.items()} for method, row in scores.items()}
    losses = {method: {rank: score.nll for rank, score in row.items()} for method, row in scores.items()}
    plot.rank_quality(accuracies, quality="test accuracy (%)", ax=accuracy)
    plot.rank_quality(losses, quality="negative log-likelihood", ax=loss)
    accuracy.set(title="Accuracy (higher is better)")
    loss.set(title="Loss (lower is better)")
    for axes in (accuracy, loss):
        legend = axes.get_legend()
        assert legend is not None  # `rank_quality` draws one
        legend.remove()


def digits(samples: Samples) -> Figure:
    """One image of each digit, upright and shifted, with the label that each model predicts."""
    plain = [(name, labels) for name, is_shifted, labels in samples.predictions if not is_shifted]
    moved = [(name, labels) for name, is_shifted, labels in samples.predictions if is_shifted]
    heights = [1.0, LINE_HEIGHT * len(plain), 1.0, LINE_HEIGHT * len(moved)]
    widths = [1.7, *[1.0] * len(samples.labels)]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    grid = figure.subplots(len(heights), len(widths), height_ratios=heights, width_ratios=widths)
    for axes in grid.flat:
        axes.set_axis_off()
    _show(grid[0], "upright", samples.upright)
    _list(grid[1], plain, samples.labels)
    _show(grid[2], "rotated,\ninverted", samples.shifted)
    _list(grid[3], moved, samples.labels)
    return figure


def _show(row: Array, title: str, images: Array) -> None:
    """Show a row of images, with a title to their left."""
    _write(row[0], 1, 0.5, title, ha="right", weight="bold")
    for axes, image in zip(row[1:], images, strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.7")


def _list(row: Array, answers: Sequence[tuple[str, Array]], truth: Array) -> None:
    """List the predicted labels below each image, one line per model."""
    for line, (name, labels) in enumerate(answers):
        y = 1 - (line + 0.5) / len(answers)
        _write(row[0], 1, y, name, ha="right")
        for axes, label, right in zip(row[1:], labels, labels == truth, strict=True):
            _write(axes, 0.5, y, f"{label} {'✓' if right else '✗'}", ha="center", color=RIGHT if right else WRONG)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, va="center", transform=axes.transAxes, **style)


def task_grid(result: SharingResult) -> Figure:
    """The accuracy of the base and of each task's adapter on every view of the test digits."""
    adapters = ["base alone", *(f"adapter '{task.task}'" for task in result.tasks)]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = plot.task_matrix(result.accuracies, adapters, result.views, ax=figure.subplots())
    axes.set(title="One base, one adapter per task", xlabel="test digits")
    figure.colorbar(axes.images[0], label="test accuracy", format=PercentFormatter(1), shrink=0.9)
    return figure
