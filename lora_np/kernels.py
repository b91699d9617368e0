"""The products of the layers, over any number of leading axes, as fast as NumPy's own BLAS can be made to run them.

A layer calls `product` where it would write ``@``. The rest is for the reader who cares for speed: OpenBLAS has, on some
cores, a kernel for small products that works in place, whereas a large product is packed first, which costs more than it
gains where the operands are thin. `np.matmul` runs a stack of products in one call, so a large product that is cut into
tiles, as views, goes to that kernel whole. Where the kernel is missing, or the operands are not plain arrays of one real
type, everything falls through to ``@``.
"""

from __future__ import annotations

import itertools
import weakref
from typing import NamedTuple

import numpy as np

from ._blas import small_kernel_limit
from ._typing import Array

LIMIT = small_kernel_limit()
"""The largest M·N·K of a tile's product; 0 where tiles gain nothing."""

THIN = 64
"""Up to this many rows or columns a matrix is thin: tiles make its products faster, and those of others slower."""
TILE_ROWS = (16, 12, 8)
TILE_COLUMNS = (64, 32, 16)
PANEL_BYTES = 256
"""The width of a panel: what the kernel handles at once, for either type."""
SPLIT = 1024
"""About how many rows a panel keeps when it is too tall for a tile of `TILE_ROWS`."""
WORTH_PACKING = 2**15
"""The number of elements from which on panels are faster than the matrix itself."""


def product(x: Array, W: Array) -> Array:
    """``x @ W``.

    Parameters
    ----------
    x : array, shape (..., k)
    W : array, shape (k, n)

    Returns
    -------
    array, shape (..., n)
        New.

    Notes
    -----
    Which other rows are in the batch changes nothing in a row's result, to the bit, where all of this holds: W is packed or
    thin, it goes by tiles (`LIMIT` is not 0), its sizes are multiples of 4, k of 16, and there are two rows or more.
    Otherwise BLAS may round a row in another way when it stands in another place or in another company.
    """
    if type(x) is not np.ndarray or type(W) is not np.ndarray:
        return x @ W
    if not W.flags.writeable:
        panels = _panels_of(W)
        if panels is not None and panels.fits(x):
            return panels.product(x)
    small = x.size * W.shape[1] <= LIMIT
    tile = 0 if small else _tile_of_rows(x, W)
    if not tile:
        return x.dot(W) if x.ndim <= 2 else x @ W  # the same product; `dot` has less to look up
    y = np.empty((*x.shape[:-1], W.shape[1]), x.dtype)
    _multiply_tiles(x.reshape(-1, len(W)), W, y.reshape(-1, W.shape[1]), tile)
    return y


def sum_outer(x: Array, dy: Array) -> Array:
    """Σ over rows of the outer product ``x_rowᵀ dy_row``: the gradient of ``x @ W`` for W.

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
    if type(x) is not np.ndarray or type(dy) is not np.ndarray:
        return x.T @ dy  # (in, rows) @ (rows, out) -> (in, out)
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


def sum_rows(dy: Array) -> Array:
    """Σ over rows: the gradient of a vector that is added to every row.

    Parameters
    ----------
    dy : array, shape (..., out)

    Returns
    -------
    array, shape (out,)
    """
    return np.add.reduce(_rows(dy))


def add(a: Array, b: Array) -> Array:
    """``a + b``, in the memory of `a` where the sum fits there: the caller gives `a` up.

    Parameters
    ----------
    a : array, shape of the sum
        New, and used nowhere else.
    b : array
    """
    if type(a) is np.ndarray and a.dtype == b.dtype:
        a += b
        return a
    return a + b


# ---------------------------------------------------------------- packing


class _Packed(NamedTuple):
    """What `pack` made of an array that does not change."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Of the matrix: the array itself, or its transpose."""
    forward: Panels
    """For ``x @ matrix``."""
    backward: Panels | None
    """For ``dy @ matrix.T``."""


_packed: dict[int, _Packed] = {}
"""By the address of the array object; an entry goes when its array does."""


def pack(matrix: Array, *, backward: bool) -> None:
    """Copy a matrix into panels, where that pays on this machine; its array can no longer be written to.

    Parameters
    ----------
    matrix : array, shape (k, n)
        An array that owns its memory, or its transpose.
    backward : bool
        Whether ``dy @ matrix.T`` is to be fast too.
    """
    array = matrix if matrix.base is None else matrix.base
    array.flags.writeable = False
    if not (LIMIT > 0 and matrix.size >= WORTH_PACKING):
        return
    if id(array) not in _packed:
        weakref.finalize(array, _packed.pop, id(array), None)
    _packed[id(array)] = _Packed(matrix.shape, matrix.strides, Panels(matrix), Panels(matrix.T) if backward else None)


def packed_bytes(array: Array) -> int:
    """The memory of an array's panels."""
    entry = _packed.get(id(array))
    return 0 if entry is None else sum(panels.nbytes for panels in entry[2:] if panels is not None)


def _panels_of(W: Array) -> Panels | None:
    entry = _packed.get(id(W if W.base is None else W.base))
    if entry is None:
        return None
    if (W.shape, W.strides) == (entry.shape, entry.strides):
        return entry.forward
    is_transpose = (W.shape[::-1], W.strides[::-1]) == (entry.shape, entry.strides)
    return entry.backward if is_transpose else None


class Panels:
    """The columns of a matrix, copied in groups so that each group is one piece of memory.

    Parameters
    ----------
    matrix : array, shape (k, n)
        Of one of the types float32 and float64.

    Notes
    -----
    A stack of tiles of rows times a stack of panels is one call of `np.matmul`. A matrix too tall for the kernel is split
    along k, and the partial products are added.
    """

    def __init__(self, matrix: Array) -> None:
        self.dtype = matrix.dtype
        self.shape = k, n = matrix.shape
        width = PANEL_BYTES // matrix.itemsize
        self.columns = n // width * width
        blocks = 1 if _tile_rows(k, width) else -(-k // SPLIT)
        bounds = [k * i // blocks for i in range(blocks + 1)]
        self.blocks = [slice(*pair) for pair in itertools.pairwise(bounds)]
        self.tile = _tile_rows(-(-k // blocks), width)
        panels = matrix[:, : self.columns].reshape(k, -1, width).transpose(1, 0, 2)  # (panels, k, width)
        self.panels = [np.ascontiguousarray(panels[:, block]) for block in self.blocks]
        self.rest = np.ascontiguousarray(matrix[:, self.columns :])  # the columns that fill no panel

    @property
    def nbytes(self) -> int:
        """The memory of the copies."""
        return self.rest.nbytes + sum(panels.nbytes for panels in self.panels)

    def fits(self, x: Array) -> bool:
        """Whether `product` takes this array: plain, of the same type, of two rows or more."""
        return bool(_plain(x, self.rest) and x.flags.c_contiguous and x.size > self.shape[0] and self.tile)

    def product(self, x: Array) -> Array:
        """``x @ matrix``, shape (..., n), for an array that `fits`."""
        k, n = self.shape
        y = np.empty((*x.shape[:-1], n), x.dtype)
        x_rows, y_rows = x.reshape(-1, k), y.reshape(-1, n)
        if self.columns:
            self._multiply(x_rows, y_rows[:, : self.columns])
        if self.columns < n:
            y_rows[:, self.columns :] = product(x_rows, self.rest)
        return y

    def _multiply(self, x: Array, y: Array) -> None:
        first, *others = zip(self.blocks, self.panels, strict=True)
        _multiply_panels(x[:, first[0]], first[1], y, self.tile)
        for block, panels in others:
            part = np.empty(y.shape, y.dtype)
            _multiply_panels(x[:, block], panels, part, self.tile)
            y += part


def _multiply_tiles(x: Array, W: Array, y: Array, tile: int) -> None:
    """``y[...] = x @ W`` by tiles of rows."""
    whole = len(x) // tile * tile
    np.matmul(x[:whole].reshape(-1, tile, x.shape[1]), W, out=y[:whole].reshape(-1, tile, y.shape[1]))
    if whole < len(x):
        last = _last_rows(whole, len(x))
        np.matmul(x[last], W, out=y[last])


def _multiply_panels(x: Array, panels: Array, y: Array, tile: int) -> None:
    """``y[...] = x @ W`` by tiles of rows and panels (count, k, width) of W."""
    count, k, width = panels.shape
    whole = len(x) // tile * tile
    if whole:
        tiles = x[:whole].reshape(-1, tile, k)  # (tiles, tile, k)
        results = y[:whole].reshape(-1, tile, count, width).transpose(2, 0, 1, 3)  # (panels, tiles, tile, width)
        np.matmul(tiles, panels[:, None], out=results)
    if whole < len(x):
        last = _last_rows(whole, len(x))
        np.matmul(x[last], panels, out=y[last].reshape(-1, count, width).transpose(1, 0, 2))


def _last_rows(whole: int, rows: int) -> slice:
    """The rows that fill no tile: two at least, for a single one would be rounded in another way."""
    return slice(min(whole, rows - 2), rows)


def _rows(x: Array) -> Array:
    """All leading axes as one."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _plain(x: Array, W: Array) -> bool:
    """Whether both are arrays, not of a subclass, of one real type that BLAS has."""
    return type(x) is np.ndarray is type(W) and x.dtype == W.dtype and x.dtype.char in "fd"


def _tile_rows(k: int, n: int) -> int:
    """How many rows times a (k, n) matrix the small kernel takes; 0 if too few."""
    return next((rows for rows in TILE_ROWS if rows * k * n <= LIMIT), 0)


def _tile_of_rows(x: Array, W: Array) -> int:
    """How many rows of x at a time to multiply by W; 0 for all at once."""
    k, n = W.shape
    if not LIMIT or x.size == k or not 1 < min(k, n) <= THIN:
        return 0
    as_blas_takes_them = _plain(x, W) and x.flags.c_contiguous and W.itemsize in W.strides
    return _tile_rows(k, n) if as_blas_takes_them else 0


def _tile_of_columns(x: Array, dy: Array) -> int:
    """How many columns of dy at a time to multiply by ``x.T``; 0 for all at once."""
    (rows, k), n = x.shape, dy.shape[1]
    if not LIMIT or rows == 1 or not 1 < k <= THIN:
        return 0
    if not (_plain(x, dy) and x.flags.c_contiguous and dy.flags.c_contiguous):
        return 0
    return next((columns for columns in TILE_COLUMNS if columns <= n and x.size * columns <= LIMIT), 0)
