"""How the rows of a stored tensor change in a merge: sums, scaled rows and columns, replaced rows, biases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from .._typing import Array
from ..factors.weights import Rows


class Change(Protocol):
    """Computes new rows from old ones, which keep their values; `first` is the index of the first row."""

    def __call__(self, old: Array, first: int, out: Array | None = None) -> Array:
        """The new rows, in `out` if that is given."""


def in_turn(changes: Sequence[Change]) -> Change | None:
    """All changes, one after the other; None if there are none."""
    if len(changes) < 2:
        return changes[0] if changes else None
    *others, last = changes
    first = in_turn(others)
    assert first is not None
    return lambda old, start, out=None: last(first(old, start), start, out)


def added_product(left: Array, right: Array) -> Change:
    """``W + L R``."""

    def change(old: Array, first: int, out: Array | None = None) -> Array:
        # (rows, r) @ (r, columns) -> (rows, columns)
        new: Array = np.matmul(left[first : first + len(old)], right, out=out)
        new += old
        return new

    return change


def added_products(pairs: Sequence[tuple[Array, Array]]) -> Change:
    """``W_e + L_e R_e`` for matrices of one height, stacked in one tensor: row i is in matrix i // height."""
    height = len(pairs[0][0])

    def change(old: Array, first: int, out: Array | None = None) -> Array:
        new, row = np.empty_like(old) if out is None else out, first
        while row < first + len(old):
            number, start = divmod(row, height)
            stop = min(height, start + first + len(old) - row)
            left, right = pairs[number]
            # (rows, r) @ (r, columns) -> (rows, columns)
            np.matmul(left[start:stop], right, out=new[row - first : row - first + stop - start])
            row += stop - start
        new += old
        return new

    return change


def added_column(values: Array) -> Change:
    """``b + c`` for a vector stored as a column."""
    return lambda old, first, out=None: np.add(old, values[first : first + len(old), None], out=out)


def replaced_rows(rows: Rows, dtype: Any) -> Change:
    """Some rows instead of those of the same numbers."""
    indices, values = rows

    def change(old: Array, first: int, out: Array | None = None) -> Array:
        inside = (indices >= first) & (indices < first + len(old))
        new = np.empty_like(old) if out is None else out
        new[...] = old
        new[indices[inside] - first] = values[inside].astype(dtype)
        return new

    return change


def scaled_rows(before: Change, magnitude: Array) -> Change:
    """``m V / ‖V‖`` for the rows V of another change."""

    def change(old: Array, first: int, out: Array | None = None) -> Array:
        new = before(old, first, out)
        norms = np.sqrt((new * new).sum(axis=1))
        new *= (magnitude[first : first + len(old)] / np.where(norms == 0, 1, norms))[:, None].astype(new.dtype)
        return new

    return change


def scaled_columns(before: Change, magnitude: Array, windows: Iterable[tuple[int, Array]], columns: int) -> Change:
    """``m V / ‖V‖`` for the columns V of another change, or for groups of adjacent columns.

    Their norms need all rows, so a first pass computes them: `windows` are the old rows, each with the number of the first.
    """
    squares = np.zeros(columns)
    for start, old in windows:
        V = before(old, start)
        squares += (V * V).sum(axis=0, dtype=np.float64)
    norms = np.sqrt(squares.reshape(len(magnitude), -1).sum(axis=1))
    factors = np.repeat(magnitude / np.where(norms == 0, 1, norms), columns // len(magnitude))

    def change(old: Array, first: int, out: Array | None = None) -> Array:
        new = before(old, first, out)
        new *= factors.astype(new.dtype)
        return new

    return change
