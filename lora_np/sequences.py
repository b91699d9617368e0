"""`Spans`: sequences of different lengths in one batch, their rows one after another without padding."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Self, final

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
    offsets: Array | None = None
    """(B,): the position of the first row of each sequence, the rest of which is in a `Past`; None if all are 0."""

    @classmethod
    def of(cls, lengths: Array, offsets: Array | None = None) -> Self:
        """The spans of sequences of the given lengths, of which earlier passes had the rows before the offsets."""
        B, T = len(lengths), int(lengths.max(initial=0))
        columns = np.arange(T)
        if (lengths == T).all():
            slots, positions = None, np.tile(columns, B)
        else:
            slots = np.flatnonzero(columns < lengths[:, np.newaxis])
            positions = slots % T
        if offsets is not None:
            positions = positions + offsets.repeat(lengths)
        return cls((B, T), lengths, positions, slots, offsets)

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


@final
class Past:
    """The keys and values of a batch of growing sequences, for every attention of a model.

    It belongs to the generator that makes it. Passes that find it in their `Run` read it and add to it: it is the only
    argument that a pass writes to.

    Parameters
    ----------
    capacity : int
        The largest number of rows of a sequence.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: dict[Hashable, tuple[Array, Array]] = {}

    def extended(self, attention: Hashable, K: Array, V: Array, spans: Spans) -> tuple[Array, Array]:
        """Add the rows of a pass; returns those of all passes.

        Parameters
        ----------
        attention : object
            Where the keys and values belong.
        K, V : arrays, shape (B, J, T, d)
            Those of the grid of `spans`. Rows after the end of a sequence are overwritten by later passes.
        spans : Spans
            Its offsets are the numbers of rows of earlier passes.

        Returns
        -------
        K, V : views, shape (B, J, S, d)
            Row p is that of position p. S is the length of the longest sequence.
        """
        B, J, T, d = K.shape
        if attention not in self._kept:
            self._kept[attention] = np.zeros((B, J, self.capacity, d), K.dtype), np.zeros((B, J, self.capacity, d), V.dtype)
        offsets = np.zeros(B, np.intp) if spans.offsets is None else spans.offsets
        sequence, position = np.arange(B)[:, np.newaxis], offsets[:, np.newaxis] + np.arange(T)  # (B, 1), (B, T)
        S = int(offsets.max(initial=0)) + T
        keys, values = self._kept[attention]
        keys[sequence, :, position] = K.swapaxes(1, 2)  # (B, T, J, d)
        values[sequence, :, position] = V.swapaxes(1, 2)
        return keys[:, :, :S], values[:, :, :S]

    def keep(self, sequences: Array) -> None:
        """Forget all sequences but the given ones, which get the indices 0, 1, ..."""
        self._kept = {attention: (K[sequences], V[sequences]) for attention, (K, V) in self._kept.items()}


def mean_of_spans(x: Array, spans: Spans) -> Array:
    """The mean of the rows of each sequence: (N, D) -> (B, D)."""
    return np.add.reduceat(x, spans.starts) / spans.lengths[:, np.newaxis].astype(x.real.dtype)


def mean_of_spans_vjp(dy: Array, spans: Spans) -> Array:
    """``dx_n = dy_b / T_b`` for each row n of sequence b: (B, D) -> (N, D)."""
    return (dy / spans.lengths[:, np.newaxis].astype(dy.real.dtype)).repeat(spans.lengths, axis=0)
