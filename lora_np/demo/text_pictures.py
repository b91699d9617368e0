"""The figure of the text demo. Needs matplotlib, but leaves its global state unchanged."""

from pathlib import Path

from matplotlib.figure import Figure

from .. import plot
from .._archive import atomic_file
from .text_ranks import TextRankResult

NAME = "text_ranks.png"
DOTS_PER_INCH = 150


def save(directory: Path, ranks: TextRankResult) -> list[str]:
    """Save the figure as a PNG file; returns its name."""
    figure = rank_curves(ranks)
    with atomic_file(directory / NAME) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return [NAME]


def rank_curves(result: TextRankResult) -> Figure:
    """Negative log-likelihood and accuracy of every method at every rank, and of the head alone."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    scores = {curve.method: dict(zip(result.ranks, curve.scores, strict=True)) for curve in result.curves}
    losses = {method: {rank: score.nll for rank, score in row.items()} for method, row in scores.items()}
    accuracies = {method: {rank: 100 * score.accuracy for rank, score in row.items()} for method, row in scores.items()}
    plot.rank_quality(losses, quality="negative log-likelihood", ax=left)
    plot.rank_quality(accuracies, quality="test accuracy (%)", ax=right)
    left.axhline(result.head.nll, label="head only", color="0.5", linewidth=1)
    right.axhline(100 * result.head.accuracy, color="0.5", linewidth=1)
    left.set(title="Loss (lower is better)")
    right.set(title="Accuracy (higher is better)")
    for axes in (left, right):
        axes.get_legend().remove()
    figure.legend(handles=left.get_lines(), loc="outside lower center", ncols=3, frameon=False)
    return figure
