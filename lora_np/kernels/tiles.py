"""Tiles: large, thin products split into small ones, for which OpenBLAS has a kernel that copies nothing.

On some cores OpenBLAS multiplies small matrices without copying them, whereas the operands of a large product are first
packed into buffers, which costs more than it gains if an operand is thin. `np.matmul` runs a stack of products in one call,
so a large product that is split into tiles, as views, runs entirely in the small kernel. On cores without that kernel, and
for operands other than plain arrays of the same real dtype, these functions are ordinary NumPy products.
"""

from __future__ import annotations

import numpy as np

from .._typing import Array
from .blas import small_kernel_limit, threads

LIMIT = small_kernel_limit()
"""The largest M·N·K of a tile's product; 0 if tiles are not faster on this machine."""

FEW_ROWS = 64 // threads()
"""Up to this many rows, tiles are faster for any matrix. They use one thread, whereas BLAS shares the work among all."""

THIN = 64
"""A matrix with at most this many rows or columns is thin: tiles speed up its products, and slow down all others."""
TILE_ROWS = (16, 12, 8)
TILE_COLUMNS = (64, 32, 16)


def product(x: Array, W: Array) -> Array:
    """``x @ W`` of plain arrays, by row tiles if that is faster; shape (..., n)."""
    tile = _tile_of_rows(x, W)
    if not tile:
        return x.dot(W) if x.ndim <= 2 else x.reshape(-1, x.shape[-1]).dot(W).reshape(*x.shape[:-1], W.shape[1])
    y = np.empty((*x.shape[:-1], W.shape[1]), x.dtype)
    _multiply(x.reshape(-1, len(W)), W, y.reshape(-1, W.shape[1]), tile)
    return y


def sum_outer(x: Array, dy: Array) -> Array:
    """``x.T @ dy`` of plain matrices too large for the small kernel, by column tiles of dy if that is faster."""
    tile = _tile_of_columns(x, dy)
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
    """The number of rows that the small kernel can multiply by a (k, n) matrix; 0 if too few."""
    return next((rows for rows in TILE_ROWS if rows * k * n <= LIMIT), 0)


def last_rows(whole: int, rows: int) -> slice:
    """The rows that do not fill a tile, but at least two, because a single row would be rounded differently."""
    return slice(min(whole, rows - 2), rows)


def are_plain(x: Array, W: Array) -> bool:
    """Whether both are arrays, not of a subclass, and of the same real dtype, which BLAS supports."""
    return type(x) is np.ndarray is type(W) and x.dtype == W.dtype and x.dtype.char in "fd"


def _multiply(x: Array, W: Array, y: Array, tile: int) -> None:
    """``y[...] = x @ W`` by row tiles."""
    whole = len(x) // tile * tile
    np.matmul(x[:whole].reshape(-1, tile, x.shape[1]), W, out=y[:whole].reshape(-1, tile, y.shape[1]))
    if whole < len(x):
        last = last_rows(whole, len(x))
        np.matmul(x[last], W, out=y[last])


def _tile_of_rows(x: Array, W: Array) -> int:
    """The number of rows of x to multiply by W at a time; 0 for all at once."""
    k, n = W.shape
    if x.size * n <= LIMIT or not LIMIT or not 1 < min(k, n) <= THIN:
        return 0
    as_blas_takes_them = are_plain(x, W) and x.flags.c_contiguous and W.itemsize in W.strides
    return tile_rows(k, n) if as_blas_takes_them else 0


def _tile_of_columns(x: Array, dy: Array) -> int:
    """The number of columns of dy to multiply by ``x.T`` at a time; 0 for all at once."""
    rows, k = x.shape
    if rows == 1 or not 1 < k <= THIN:
        return 0
    if not (are_plain(x, dy) and x.flags.c_contiguous and dy.flags.c_contiguous):
        return 0
    return next((columns for columns in TILE_COLUMNS if x.size * columns <= LIMIT), 0)
