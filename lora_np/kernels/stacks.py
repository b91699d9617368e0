"""Products of the slices of a matrix by small matrices, or by stacks of them: arrays of matrices of the same shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .._typing import Array


def multiply_twice(x: Array, bounds: Sequence[int], factors: Iterable[tuple[Array, Array]], y: Array | None) -> list[Array]:
    """``h = x @ A`` and ``y = h @ B`` for each slice of rows and its factors; returns the h.

    Parameters
    ----------
    x : array, shape (rows, in)
    bounds : sequence of int
        Where the slices start, and where the last one ends.
    factors : iterable of pairs of arrays
        For each slice, A and B: matrices, or stacks of one matrix for each of equally many successive rows.
    y : array, shape (rows, out), or None
        The array to write to, of the dtype of the products; if None, the second products are skipped.
    """
    hs = []
    for (A, B), start, stop in zip(factors, bounds, bounds[1:], strict=False):
        if A.ndim == 2:
            h = x[start:stop].dot(A)
            if y is not None:
                h.dot(B, y[start:stop])
        else:
            h = np.matmul(_stack(x[start:stop], len(A)), A)
            if y is not None:
                np.matmul(h, B, _stack(y[start:stop], len(A)))
        hs.append(h)
    return hs


def outer_each(hs: Sequence[Array], x: Array, bounds: Sequence[int], counts: Sequence[Array], out: Array) -> list[Array]:
    """``hᵀ @ x`` for each slice of rows and its h; in a stack, for each group of successive elements.

    Parameters
    ----------
    hs : sequence of arrays
        Stacks, and then matrices.
    x, bounds : array, sequence of int
        As in `multiply_twice`.
    counts : sequence of arrays
        For each stack, the number of elements in each group, ascending.
    out : array, shape (`outer_rows`, size)
        The array to write to; the results are views of it.
    """
    results, first = [], 0
    for h, start, stop, groups in zip(hs, bounds, bounds[1:], counts, strict=False):
        last = first + len(groups) * h.shape[2]
        result = out[first:last].reshape(len(groups), h.shape[2], out.shape[1])
        _outer_by_group(h, _stack(x[start:stop], len(h)), groups, result)
        results.append(result)
        first = last
    stacks = len(counts)
    for h, start, stop in zip(hs[stacks:], bounds[stacks:], bounds[stacks + 1 :], strict=False):
        last = first + h.shape[1]
        results.append(h.T.dot(x[start:stop], out[first:last]))
        first = last
    return results


def outer_rows(hs: Sequence[Array], counts: Sequence[Array]) -> int:
    """The number of rows of all results of `outer_each`."""
    stacks = sum(len(groups) * h.shape[2] for h, groups in zip(hs, counts, strict=False))
    return stacks + sum(h.shape[1] for h in hs[len(counts) :])


def _outer_by_group(h: Array, x: Array, counts: Array, out: Array) -> None:
    """``hᵀ @ x`` for each group of elements of stacks, of shape (groups, r, size), into `out`."""
    inner = h.shape[1]
    group = element = 0
    for count, groups in enumerate(np.bincount(counts).tolist()):  # the groups of one size are a stack
        if groups:
            elements = slice(element, element + count * groups)
            own_h, own_x = (array[elements].reshape(groups, count * inner, array.shape[2]) for array in (h, x))
            multiply = np.multiply if count * inner == 1 else np.matmul  # a product over one row is faster without BLAS
            multiply(own_h.mT, own_x, out[group : group + groups])
            group, element = group + groups, elements.stop


def _stack(rows: Array, count: int) -> Array:
    return rows.reshape(count, len(rows) // count, rows.shape[1])
