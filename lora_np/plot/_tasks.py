"""Every adapter on every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .._validation import real_array
from ..errors import ArgumentError
from ._style import ORDER, as_text, axes_or_new

WHITE_BELOW = 0.5
"""Text on the colours of smaller values, which are darker, is white."""


def task_matrix(
    values: Any, rows: Sequence[str], columns: Sequence[str], *, quality: str = "accuracy", ax: Axes | None = None
) -> Axes:
    """Plot the quality of each adapter (row) on each task (column) as a heat map with numbers.

    Parameters
    ----------
    values : array, shape (len(rows), len(columns))
        Fractions between 0 and 1.
    rows, columns : sequence of str
    quality : str, default "accuracy"
        The title.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If `rows` or `columns` is empty, if the shape of `values` does not match them, or if a value lies outside [0, 1].
    """
    matrix = real_array("values", values, float)
    if not rows or not columns:
        raise ArgumentError(f"rows and columns must each hold at least one name, got {rows!r} and {columns!r}")
    if matrix.shape != (len(rows), len(columns)):
        raise ArgumentError(f"values must have shape {(len(rows), len(columns))}, got {matrix.shape}")
    if not ((matrix >= 0) & (matrix <= 1)).all():
        raise ArgumentError(f"values must lie between 0 and 1, got {matrix.min():g}..{matrix.max():g}")
    ax = axes_or_new(ax)
    ax.imshow(matrix, cmap=ORDER, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if value < WHITE_BELOW else "black"
        ax.text(column, row, f"{value:.1%}", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(columns)), [as_text(name) for name in columns])
    ax.set_yticks(range(len(rows)), [as_text(name) for name in rows])
    ax.set_title(quality)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax
