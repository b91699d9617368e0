"""The few products that are worth a name, over any number of leading axes."""

from __future__ import annotations

from ._typing import Array


def sum_outer(x: Array, dy: Array) -> Array:
    """Σ over rows of the outer product ``x_rowᵀ dy_row``: the gradient of ``x @ W`` for W.

    Parameters
    ----------
    x : array, shape (..., in)
    dy : array, shape (..., out)

    Returns
    -------
    array, shape (in, out)
    """
    x_rows = x.reshape(-1, x.shape[-1])
    dy_rows = dy.reshape(-1, dy.shape[-1])
    return x_rows.T @ dy_rows  # (in, rows) @ (rows, out) -> (in, out)


def sum_rows(dy: Array) -> Array:
    """Σ over rows: the gradient of a vector that is added to every row.

    Parameters
    ----------
    dy : array, shape (..., out)

    Returns
    -------
    array, shape (out,)
    """
    return dy.reshape(-1, dy.shape[-1]).sum(axis=0)
