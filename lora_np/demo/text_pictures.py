"""The figure of the text demo. Needs matplotlib, but leaves its global state unchanged."""

from pathlib import Path

from matplotlib.figure import Figure

from .pictures import draw_curves, save_all
from .text_ranks import TextRankResult

NAME = "text_ranks.png"


def save(directory: Path, ranks: TextRankResult) -> list[str]:
    """Save the figure as a PNG file; returns its name."""
    return save_all(directory, {NAME: rank_curves(ranks)})


def rank_curves(result: TextRankResult) -> Figure:
    """Negative log-likelihood and accuracy of every method at every rank, and of the head alone."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(result.ranks, result.curves, accuracy=right, loss=left)
    left.axhline(result.head.nll, label="head only", color="0.5", linewidth=1)
    right.axhline(100 * result.head.accuracy, color="0.5", linewidth=1)
    figure.legend(handles=left.get_lines(), loc="outside lower center", ncols=3, frameon=False)
    return figure
