"""What all plots share: axes, colours, and names as matplotlib shows them."""

from __future__ import annotations

from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import ArgumentError

COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, suitable for colour-blind readers; markers and line styles are redundant with it."""
MARKERS = "osv^Dp*"
LINES = ("-", "--", ":", "-.")
ORDER = colormaps["cividis"]
FROZEN, TRAINED, IDLE, INK = "#5f6b76", COLOURS[0], "#e4e9ee", "#444444"

MOST_TICKS = 20
MOST_LETTERS = 64
"""Longer names are shortened in the middle."""


def axes_or_new(ax: Axes | None) -> Axes:
    if ax is None:
        return Figure(figsize=(6.4, 4.2), layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise ArgumentError(f"ax must be matplotlib axes, got {ax!r}")
    return ax


def line_style(i: int) -> dict[str, Any]:
    """The look of line i; the first 28 differ."""
    colour = i % len(COLOURS)
    return {"color": COLOURS[colour], "marker": MARKERS[colour], "linestyle": LINES[i % len(LINES)]}


def finish(ax: Axes) -> None:
    """A faint grid behind the data, and no frame."""
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def as_text(name: str, most_letters: int = MOST_LETTERS) -> str:
    """A name that matplotlib shows as text: not as mathematics ($), not hidden from the legend (_), and not too long."""
    half = most_letters // 2
    text = name if len(name) <= most_letters else f"{name[:half]}…{name[-half:]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text or "(the layer itself)"
