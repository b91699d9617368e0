"""`Spans`: sequences of different lengths in one batch, their rows one after another without padding."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from ._typing import Array


class Spans(NamedTuple):
    """Which rows belong to which sequence: N rows of B sequences, the longest of which has T.

    Only attention sees the (B, T) grid; every other layer works on the rows (N, D) and does no work for padding.
    """

    shape: tuple[int, int]
    """(B, T) of the grid."""
    lengths: Array
    """(B,): the number of rows of each sequence, at least 1."""
    positions: Array
    """(N,): the position of each row in its sequence."""
    slots: Array | None
    """(N,): the index of each row in the flattened grid; None if the grid is full."""

    @classmethod
    def of(cls, lengths: Array) -> Self:
        """The spans of sequences of the given lengths."""
        B, T = len(lengths), int(lengths.max(initial=0))
        columns = np.arange(T)
        if (lengths == T).all():
            return cls((B, T), lengths, np.tile(columns, B), None)
        slots = np.flatnonzero(columns < lengths[:, np.newaxis])
        return cls((B, T), lengths, slots % T, slots)

    @property
    def starts(self) -> Array:
        """(B,): the first row of each sequence."""
        return np.cumsum(self.lengths) - self.lengths

    def grid(self, rows: Array) -> Array:
        """(N, ...) -> (B, T, ...), zero where there is no row; a view if the grid is full."""
        if self.slots is None:
            return rows.reshape(*self.shape, *rows.shape[1:])
        B, T = self.shape
        grid = np.zeros((B * T, *rows.shape[1:]), rows.dtype)
        grid[self.slots] = rows
        return grid.reshape(B, T, *rows.shape[1:])

    def rows(self, grid: Array) -> Array:
        """(B, T, ...) -> (N, ...): the inverse of `grid`, and also its transpose; a view if the grid is full."""
        flat = grid.reshape(-1, *grid.shape[2:])
        return flat if self.slots is None else flat.take(self.slots, axis=0)


def mean_of_spans(x: Array, spans: Spans) -> Array:
    """The mean of the rows of each sequence: (N, D) -> (B, D)."""
    return np.add.reduceat(x, spans.starts) / spans.lengths[:, np.newaxis].astype(x.real.dtype)


def mean_of_spans_vjp(dy: Array, spans: Spans) -> Array:
    """``dx_n = dy_b / T_b`` for each row n of sequence b: (B, D) -> (N, D)."""
    return (dy / spans.lengths[:, np.newaxis].astype(dy.real.dtype)).repeat(spans.lengths, axis=0)
