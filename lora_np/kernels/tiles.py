"""Tiles: large thin products cut into small ones, for which OpenBLAS has a kernel that works in place.

On some cores OpenBLAS multiplies small matrices without copying them, whereas a large product is first packed into
buffers, which costs more than it gains if an operand is thin. `np.matmul` runs a stack of products in one call, so a large
product that is cut into tiles, as views, goes to the small kernel whole. On cores without that kernel, and for anything but
plain arrays of one real type, the products here are NumPy's own.
"""

from __future__ import annotations

import numpy as np

from .._typing import Array
from .blas import small_kernel_limit

LIMIT = small_kernel_limit()
"""The largest M·N·K of a tile's product; 0 if tiles gain nothing on this machine."""

THIN = 64
"""Up to this many rows or columns a matrix is thin: tiles make its products faster, and those of other matrices slower."""
TILE_ROWS = (16, 12, 8)
TILE_COLUMNS = (64, 32, 16)


def product(x: Array, W: Array) -> Array:
    """``x @ W`` of plain arrays, by tiles of rows if that is faster; shape (..., n)."""
    small = x.size * W.shape[1] <= LIMIT
    tile = 0 if small else _tile_of_rows(x, W)
    if not tile:
        return x.dot(W) if x.ndim <= 2 else x @ W  # the same product; `dot` has less to look up
    y = np.empty((*x.shape[:-1], W.shape[1]), x.dtype)
    _multiply(x.reshape(-1, len(W)), W, y.reshape(-1, W.shape[1]), tile)
    return y


def sum_outer(x: Array, dy: Array) -> Array:
    """``x.T @ dy`` of plain matrices, by tiles of columns of dy if that is faster; shape (in, out)."""
    small = x.size * dy.shape[1] <= LIMIT
    tile = 0 if small else _tile_of_columns(x, dy)
    if not tile:
        return x.T.dot(dy)
    (rows, n), k = dy.shape, x.shape[1]
    dW = np.empty((k, n), x.dtype)
    whole = n // tile * tile
    columns = dy[:, :whole].reshape(rows, -1, tile).transpose(1, 0, 2)  # (tiles, rows, tile)
    np.matmul(x.T, columns, out=dW[:, :whole].reshape(k, -1, tile).transpose(1, 0, 2))
    if whole < n:
        np.matmul(x.T, dy[:, whole:], out=dW[:, whole:])
    return dW


def tile_rows(k: int, n: int) -> int:
    """How many rows times a (k, n) matrix the small kernel takes; 0 if too few."""
    return next((rows for rows in TILE_ROWS if rows * k * n <= LIMIT), 0)


def last_rows(whole: int, rows: int) -> slice:
    """The rows that fill no tile: at least two, because a single row would be rounded differently."""
    return slice(min(whole, rows - 2), rows)


def are_plain(x: Array, W: Array) -> bool:
    """Whether both are arrays, not of a subclass, of one real type that BLAS has."""
    return type(x) is np.ndarray is type(W) and x.dtype == W.dtype and x.dtype.char in "fd"


def _multiply(x: Array, W: Array, y: Array, tile: int) -> None:
    """``y[...] = x @ W`` by tiles of rows."""
    whole = len(x) // tile * tile
    np.matmul(x[:whole].reshape(-1, tile, x.shape[1]), W, out=y[:whole].reshape(-1, tile, y.shape[1]))
    if whole < len(x):
        last = last_rows(whole, len(x))
        np.matmul(x[last], W, out=y[last])


def _tile_of_rows(x: Array, W: Array) -> int:
    """How many rows of x at a time to multiply by W; 0 for all at once."""
    k, n = W.shape
    if not LIMIT or x.size == k or not 1 < min(k, n) <= THIN:
        return 0
    as_blas_takes_them = are_plain(x, W) and x.flags.c_contiguous and W.itemsize in W.strides
    return tile_rows(k, n) if as_blas_takes_them else 0


def _tile_of_columns(x: Array, dy: Array) -> int:
    """How many columns of dy at a time to multiply by ``x.T``; 0 for all at once."""
    (rows, k), n = x.shape, dy.shape[1]
    if not LIMIT or rows == 1 or not 1 < k <= THIN:
        return 0
    if not (are_plain(x, dy) and x.flags.c_contiguous and dy.flags.c_contiguous):
        return 0
    return next((columns for columns in TILE_COLUMNS if columns <= n and x.size * columns <= LIMIT), 0)
