"""Panels: a matrix cut into groups of columns, each small enough for the kernel that copies nothing.

A constant matrix can be copied once into panels, the memory layout that multiplies fastest. `pack` stores the copies here
by the identity of the array, and `panels_of` finds them; formulas do not mention them. Packed arrays are read-only, so the
copies cannot become stale. With few rows of x, panels are faster than BLAS even as views of the matrix.
"""

from __future__ import annotations

import itertools
import weakref
from functools import partial
from typing import NamedTuple

import numpy as np

from .._typing import Array
from . import blas, tiles, workers
from .stored import StoredMatrix

PANEL_BYTES = 256
"""The width of a panel: the columns that the kernel handles at once, for either dtype."""
SPLIT = 1024
"""The approximate number of rows per block of a panel that is too tall for a tile of `tiles.TILE_ROWS`."""
WORTH_PACKING = 2**15
"""The smallest number of elements for which panels are faster than the matrix itself."""
WORTH_A_THREAD = 2**22
"""The smallest M·N·K for which another thread saves more time than it takes to start: about 0.1 ms of work."""


class _Packed(NamedTuple):
    """The packed copies of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """The strides of the matrix, which is the array itself or its transpose."""
    forward: Panels | None
    """For ``x @ matrix``; None if panels are not faster."""
    backward: Panels | None
    """For ``dy @ matrix.T``."""
    owner: weakref.ref[Array]
    """The array that owns the memory; its callback removes this entry when it is freed."""
    was_writeable: tuple[bool, bool]
    """Whether the owner and the matrix could be written to before."""


_packed: dict[int, _Packed] = {}
"""The packed arrays by their address."""


def pack(matrix: Array, *, backward: bool) -> None:
    """Make a matrix read-only and, if that is faster on this machine, copy it into panels.

    Parameters
    ----------
    matrix : array, shape (k, n)
        A parameter, or its transpose.
    backward : bool
        Whether to make a second copy, for ``dy @ matrix.T``.
    """
    if isinstance(matrix, StoredMatrix):
        return  # copies would take more memory than it saves
    address, owner = _address(matrix), _owner(matrix)
    entry = _packed.get(address)
    if entry is None:
        others = _packed_in(owner)
        of_owner = others[0].was_writeable[0] if others else owner.flags.writeable
        reference = weakref.ref(owner, lambda _: _packed.pop(address, None))
        was_writeable = of_owner, matrix.flags.writeable
    else:
        reference, was_writeable = entry.owner, entry.was_writeable
    owner.flags.writeable = False
    is_faster = _is_worth_it(matrix)
    panels = Panels(matrix) if is_faster else None, Panels(matrix.T) if is_faster and backward else None
    _packed[address] = _Packed(matrix.shape, matrix.strides, *panels, reference, was_writeable)


def unpack(array: Array) -> bool:
    """Discard the panels of an array, and let it be written to, as before it was packed.

    The owner of its memory stays read-only as long as another array in it is packed.

    Returns
    -------
    bool
        Whether the array may be written to: not if it was not packed, if it could not be written to before, or if it owns
        the memory of another array that is packed.
    """
    entry = None if isinstance(array, StoredMatrix) else _packed.pop(_address(array), None)
    if entry is None:
        return False
    owner, (of_owner, of_array) = _owner(array), entry.was_writeable
    if of_array:
        owner.flags.writeable = True  # or NumPy refuses to let the array be written to
        array.flags.writeable = True
    owner.flags.writeable = of_owner and not _packed_in(owner)
    return array.flags.writeable


def packed_bytes(array: Array) -> int:
    """The size in bytes of an array's panels; 0 if it has none."""
    entry = None if isinstance(array, StoredMatrix) else _packed.get(_address(array))
    return 0 if entry is None else sum(each.nbytes for each in (entry.forward, entry.backward) if each is not None)


def panels_of(W: Array) -> Panels | None:
    """The panels of a matrix, which may be the transpose of the packed array; None if it has none."""
    entry = _packed.get(_address(W)) if _is_worth_it(W) else None
    if entry is None:
        return None
    if (W.shape, W.strides) == (entry.shape, entry.strides):
        return entry.forward
    is_transpose = (W.shape[::-1], W.strides[::-1]) == (entry.shape, entry.strides)
    return entry.backward if is_transpose else None


def has_few_rows(x: Array, W: Array) -> bool:
    """Whether x has so few rows that BLAS would take longer to copy W than to multiply by it, and W fits the kernel."""
    k, n = W.shape
    width = PANEL_BYTES // W.itemsize
    if not (k < x.size <= tiles.FEW_ROWS * k and min(k, n) > tiles.THIN and width <= n):
        return False
    as_blas_takes_them = tiles.are_plain(x, W) and x.flags.c_contiguous and W.itemsize in W.strides
    return as_blas_takes_them and tiles.TILE_ROWS[-1] * k * width <= tiles.LIMIT


def product_of_few_rows(x: Array, W: Array) -> Array:
    """``x @ W`` by panels that are views of W."""
    k, n = W.shape
    width = PANEL_BYTES // W.itemsize
    whole = n // width * width
    y = np.empty((*x.shape[:-1], n), x.dtype)
    x_rows, y_rows = x.reshape(-1, k), y.reshape(-1, n)
    panels = W[:, :whole].reshape(k, -1, width).transpose(1, 0, 2)  # (panels, k, width)
    _multiply_panels(x_rows, panels, y_rows[:, :whole], tiles.TILE_ROWS[-1])
    if whole < n:
        y_rows[:, whole:] = tiles.product(x_rows, W[:, whole:])
    return y


def _is_worth_it(matrix: Array) -> bool:
    return tiles.LIMIT > 0 and matrix.size >= WORTH_PACKING


def _owner(array: Array) -> Array:
    return array.base if isinstance(array.base, np.ndarray) else array


def _packed_in(owner: Array) -> list[_Packed]:
    """What is packed in the memory of an array."""
    return [entry for entry in _packed.copy().values() if entry.owner() is owner]


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class Panels:
    """The columns of a matrix, copied in groups, each contiguous in memory.

    Parameters
    ----------
    matrix : array, shape (k, n)
        Of dtype float32 or float64.

    Notes
    -----
    A stack of row tiles times a stack of panels is a single call of `np.matmul`. A matrix too tall for the kernel is split
    along k, and the partial products are added.
    """

    def __init__(self, matrix: Array) -> None:
        self.dtype = matrix.dtype
        self.shape = k, n = matrix.shape
        width = PANEL_BYTES // matrix.itemsize
        self.columns = n // width * width
        blocks = 1 if tiles.tile_rows(k, width) else -(-k // SPLIT)
        bounds = [k * i // blocks for i in range(blocks + 1)]
        self.blocks = [slice(*pair) for pair in itertools.pairwise(bounds)]
        self.tile = tiles.tile_rows(-(-k // blocks), width)
        panels = matrix[:, : self.columns].reshape(k, -1, width).transpose(1, 0, 2)  # (panels, k, width)
        self.panels = [panels[:, block].copy() for block in self.blocks]  # copies: views would keep the matrix alive
        self.rest = matrix[:, self.columns :].copy()  # the columns that do not fill a panel

    @property
    def nbytes(self) -> int:
        """The size of the copies in bytes."""
        return self.rest.nbytes + sum(panels.nbytes for panels in self.panels)

    def fits(self, x: Array) -> bool:
        """Whether `product` accepts this array: plain, contiguous, of the same dtype, and with at least two rows."""
        return bool(tiles.are_plain(x, self.rest) and x.flags.c_contiguous and x.size > self.shape[0] and self.tile)

    def product(self, x: Array) -> Array:
        """``x @ matrix``, shape (..., n), for an array that `fits`."""
        k, n = self.shape
        y = np.empty((*x.shape[:-1], n), x.dtype)
        x_rows, y_rows = x.reshape(-1, k), y.reshape(-1, n)
        if self.columns:
            if x.size * self.columns < 2 * WORTH_A_THREAD:
                self._multiply(x_rows, y_rows, slice(None), slice(0, len(self.panels[0])))
            else:
                workers.run([partial(self._multiply, x_rows, y_rows, *part) for part in self._parts(len(x_rows))])
        if self.columns < n:
            y_rows[:, self.columns :] = tiles.product(x_rows, self.rest)
        return y

    def _parts(self, rows: int) -> list[tuple[slice, slice]]:
        """The rows and panels of the parts of a product, one for each thread that pays.

        Rows are divided between tiles, so the tiles, and the bits of the result, are the same for any number of parts.
        """
        work = rows * self.shape[0] * self.columns // WORTH_A_THREAD
        threads = max(1, min(work, blas.threads()))
        by_panels = min(threads, len(self.panels[0]))
        by_rows = min(threads // by_panels, rows // self.tile) or 1
        return list(itertools.product(_shares(rows, by_rows, self.tile), _shares(len(self.panels[0]), by_panels)))

    def _multiply(self, x: Array, y: Array, rows: slice, panels: slice) -> None:
        """Some rows of ``x @ matrix``, and the columns of some panels."""
        width = PANEL_BYTES // y.itemsize
        x, y = x[rows], y[rows, panels.start * width : panels.stop * width]
        first, *others = zip(self.blocks, self.panels, strict=True)
        _multiply_panels(x[:, first[0]], first[1][panels], y, self.tile)
        for block, block_panels in others:
            addend = np.empty(y.shape, y.dtype)
            _multiply_panels(x[:, block], block_panels[panels], addend, self.tile)
            y += addend


def _shares(length: int, count: int, unit: int = 1) -> list[slice]:
    """Nearly equal shares of a length; all but the last one end at a multiple of the unit."""
    bounds = [length // unit * i // count * unit for i in range(count)]
    return [slice(*pair) for pair in itertools.pairwise([*bounds, length])]


def _multiply_panels(x: Array, panels: Array, y: Array, tile: int) -> None:
    """``y[...] = x @ W`` by row tiles of x and panels of W, shape (count, k, width)."""
    count, k, width = panels.shape
    whole = len(x) // tile * tile
    if whole:
        x_tiles = x[:whole].reshape(-1, tile, k)  # (tiles, tile, k)
        results = y[:whole].reshape(-1, tile, count, width).transpose(2, 0, 1, 3)  # (panels, tiles, tile, width)
        np.matmul(x_tiles, panels[:, None], out=results)
    if whole < len(x):
        last = tiles.last_rows(whole, len(x))
        np.matmul(x[last], panels, out=y[last].reshape(-1, count, width).transpose(1, 0, 2))
