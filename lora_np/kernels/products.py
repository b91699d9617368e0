"""Matrix products for the layers, over any number of leading axes: layers call `product` instead of ``@``.

The optimisations are in tiles.py and panels.py. Operands that are not plain arrays, such as the symbols of a graph being
recorded, use their own ``@`` and ``+``.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from .._typing import Array
from . import tiles
from .panels import has_few_rows, panels_of, product_of_few_rows


def product(x: Array, W: Array) -> Array:
    """``x @ W``.

    Parameters
    ----------
    x : array, shape (..., k)
    W : array, shape (k, n)

    Returns
    -------
    array, shape (..., n)
        A new array.

    Notes
    -----
    The result of a row does not depend on the other rows in the batch, not even in the last bit, if W is packed or thin,
    tiles are in use (`tiles.LIMIT` is not 0), n is a multiple of 4, k a multiple of 16, and there are at least two rows.
    Otherwise BLAS may round a row differently depending on its position and on the other rows in the batch.
    """
    if type(x) is not ndarray or type(W) is not ndarray:
        return x @ W
    if not W.flags.writeable:
        panels = panels_of(W)
        if panels is not None and panels.fits(x):
            return panels.product(x)
    if x.ndim <= 2 and not 0 < tiles.LIMIT < x.size * W.shape[1]:
        return x.dot(W)  # small: another call would cost more than it gains
    if tiles.LIMIT and has_few_rows(x, W):
        return product_of_few_rows(x, W)
    return tiles.product(x, W)


def sum_outer(x: Array, dy: Array) -> Array:
    """The sum over rows of the outer products ``x_rowᵀ dy_row``: the gradient with respect to W in ``x @ W``.

    Fastest with the narrower operand first: ``sum_outer(dy, x).T`` is the same sum.

    Parameters
    ----------
    x : array, shape (..., in)
    dy : array, shape (..., out)

    Returns
    -------
    array, shape (in, out)
    """
    if x.ndim != 2:
        x, dy = _rows(x), _rows(dy)
    if type(x) is not ndarray or type(dy) is not ndarray:
        return x.T @ dy  # (in, rows) @ (rows, out) -> (in, out)
    if not 0 < tiles.LIMIT < x.size * dy.shape[1]:
        return x.T.dot(dy)
    return tiles.sum_outer(x, dy)


def sum_rows(dy: Array) -> Array:
    """The sum over rows: the gradient of a vector that is added to every row.

    Parameters
    ----------
    dy : array, shape (..., out)

    Returns
    -------
    array, shape (out,)
    """
    return np.add.reduce(_rows(dy))


def add(a: Array, b: Array) -> Array:
    """``a + b``, reusing the memory of an operand, which the caller must no longer need.

    The sum of two arrays of the same shape is written to `b`, and the sum of rows and a vector, such as a bias, to `a`; any
    other sum is a new array. Vectors are never overwritten, because they may be parameters.
    """
    if type(a) is ndarray is type(b) and a.ndim > 1 and a.dtype == b.dtype:
        if b.ndim == 1 and len(b) == a.shape[-1]:
            a += b
            return a
        if b.shape == a.shape:
            b += a
            return b
    return a + b


def _rows(x: Array) -> Array:
    """Merge all leading axes into one."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
