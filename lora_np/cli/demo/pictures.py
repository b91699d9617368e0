"""The demo's pictures. Needs matplotlib, whose global state is not touched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..._archive import atomic_file
from ..._typing import Array
from .experiment import RankResult, Samples, SharingResult
from .report import percent

# Okabe and Ito's colours, which the colour-blind tell apart; markers and line styles say the same once more.
STYLES = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    {"color": "#D55E00", "marker": "v", "linestyle": ":"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
)
RIGHT, WRONG = "#0072B2", "#D55E00"
DOTS_PER_INCH = 150
LINE_HEIGHT = 0.32
"""Of a line of text, an image being 1 high."""


def draw(directory: Path, ranks: RankResult, samples: Samples, sharing: SharingResult) -> list[str]:
    """Draw all pictures as PNG files; returns their names."""
    figures = {"ranks.png": rank_curves(ranks), "digits.png": digits(samples), "tasks.png": task_grid(sharing)}
    for name, figure in figures.items():
        with atomic_file(directory / name) as file:
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return list(figures)


def rank_curves(result: RankResult) -> Figure:
    """Accuracy and negative log-likelihood of every method at every rank."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve, style in zip(result.curves, STYLES, strict=True):
        left.plot(result.ranks, [100 * score.accuracy for score in curve.scores], label=curve.method, **style)
        right.plot(result.ranks, [score.nll for score in curve.scores], **style)
    left.set(title="Accuracy (higher is better)", ylabel="test accuracy in %", ylim=(0, 103))
    right.set(title="Loss (lower is better)", ylabel="negative log-likelihood", yscale="log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(result.ranks, map(str, result.ranks))
        axes.set_xlabel("rank in use")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(STYLES), frameon=False)
    return figure


def digits(samples: Samples) -> Figure:
    """A digit of each kind, as the base knows it and as the adapters see it, and what the models take it for."""
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
    """A row of images with a title on its left."""
    _write(row[0], 1, 0.5, title, ha="right", weight="bold")
    for axes, image in zip(row[1:], images, strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.7")


def _list(row: Array, answers: Sequence[tuple[str, Array]], truth: Array) -> None:
    """Under each image the labels that the models give, a line for each model."""
    for line, (name, labels) in enumerate(answers):
        y = 1 - (line + 0.5) / len(answers)
        _write(row[0], 1, y, name, ha="right")
        for axes, label, right in zip(row[1:], labels, labels == truth, strict=True):
            _write(axes, 0.5, y, f"{label} {'✓' if right else '✗'}", ha="center", color=RIGHT if right else WRONG)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, va="center", transform=axes.transAxes, **style)


def task_grid(result: SharingResult) -> Figure:
    """The accuracy of every task's adapter on every task's digits."""
    accuracies = np.array(result.accuracies)
    adapters = ["base alone", *(f"adapter '{task.task}'" for task in result.tasks)]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * accuracies, cmap="cividis", vmin=0, vmax=100)
    for (row, column), accuracy in np.ndenumerate(accuracies):
        # The colours are dark below the middle of the scale.
        color = "black" if accuracy > 0.5 else "white"
        axes.text(column, row, percent(accuracy), color=color, ha="center", va="center")
    axes.set_xticks(range(len(result.views)), result.views)
    axes.set_yticks(range(len(adapters)), adapters)
    axes.set(title="One base, one adapter for each task", xlabel="test digits")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, label="test accuracy in %", shrink=0.9)
    return figure
