"""`FactorMemory`: the factors of many low-rank layers in a few large arrays, from which those of a batch are gathered."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array

FIRST_BYTES = 2**16
"""The size of the first block of memory, if layers arrive one at a time."""


class Place(NamedTuple):
    """Where the factors of a layer are."""

    memory: FactorMemory
    number: int


class _Block(np.ndarray):
    """The type of a block.

    Only if the type of the owner differs from that of its views does NumPy let views of a view keep that view alive, which
    shows when a place is free again.
    """


class _View(weakref.ref[Array]):
    """A reference to the elements of a place, which knows the number of the place."""

    __slots__ = ("number",)
    number: int


class FactorMemory:
    """Memory for pairs of factors, A of shape (in, r) and B of shape (r, out), of any ranks.

    Parameters
    ----------
    input_size, output_size : int
    dtype : {float64, float32}

    Notes
    -----
    A block is a matrix with in + out columns. A place of rank r is r successive rows of it, which contain Aᵀ and then B,
    each contiguous. Blocks never move or grow, so a view stays valid as long as it exists. A place is free again once the
    last view of it is gone, and the memory of a block once the last view of any of its places is. If layers arrive one at a
    time, each new block has half the size of all before it, so the time to add a layer does not depend on their number.
    """

    def __init__(self, input_size: int, output_size: int, dtype: np.dtype[Any]) -> None:
        self.sizes, self.dtype = (input_size, output_size), dtype
        self.ranks, self.scalings = np.zeros(1, np.intp), np.zeros(1)
        """By the number of the place. Number 0 is no place, and has rank 0."""
        self._blocks, self._starts = np.zeros(1, np.intp), np.zeros(1, np.intp)
        """By the number of the place: the number of its block, and its first row there."""
        self._arrays: list[weakref.ref[_Block]] = []
        self._open: _Block | None = None
        self._used, self._size, self._count = 0, 0, 1
        self._views: dict[int, _View] = {}
        self._released: list[_View] = []
        self._release = self._released.append
        self._free: dict[int, list[int]] = {}

    def reserve(self, rows: int) -> None:
        """Open a block with at least this number of rows, unless as many are left in the open one."""
        if self._open is None or len(self._open) - self._used < rows:
            self._open, self._used = _Block((rows, sum(self.sizes)), self.dtype), 0
            self._arrays.append(weakref.ref(self._open))
            self._size += rows

    def place(self, rank: int, scaling: float) -> tuple[Place, Array, Array]:
        """A free place, and its views of A and B, whose elements are undefined."""
        number = self._freed(rank)
        number = self._added(rank) if number is None else number
        self.ranks[number], self.scalings[number] = rank, scaling
        block = self._block(self._blocks[number])
        values = np.ndarray(rank * block.shape[1], self.dtype, block, self._starts[number] * block.strides[0])
        view = self._views[number] = _View(values, self._release)
        view.number = number
        A, B = self._factors(values, rank)
        return Place(self, number), A, B

    def _freed(self, rank: int) -> int | None:
        """The number of a place of this rank that is free again; None if there is none."""
        while self._released:
            number = self._released.pop().number
            self._free.setdefault(int(self.ranks[number]), []).append(number)
        numbers = self._free.get(rank, [])
        while numbers:
            number = numbers.pop()
            if self._arrays[self._blocks[number]]() is not None:
                return number
        return None

    def _added(self, rank: int) -> int:
        """The number of a new place."""
        first = FIRST_BYTES // (sum(self.sizes) * self.dtype.itemsize)
        if self._open is None or len(self._open) - self._used < rank:
            self.reserve(max(rank, first, self._size // 2))
        number = self._count
        if number == len(self.ranks):
            more = 8 + number // 2
            for name in ("ranks", "scalings", "_blocks", "_starts"):
                values = getattr(self, name)
                setattr(self, name, np.concatenate([values, np.zeros(more, values.dtype)]))
        self._blocks[number], self._starts[number] = len(self._arrays) - 1, self._used
        self._count, self._used = number + 1, self._used + rank
        return number

    def gather(self, numbers: Array, rank: int) -> tuple[Array, Array]:
        """Copies of the factors at places of one rank: A, shape (count, in, r), and B, shape (count, r, out)."""
        blocks, starts = self._blocks[numbers], self._starts[numbers]
        if (blocks == blocks[0]).all():
            return self._factors(self._windows(blocks[0], rank)[starts], rank)
        values = np.empty((len(numbers), rank * sum(self.sizes)), self.dtype)
        for block in np.unique(blocks):
            here = (blocks == block).nonzero()[0]
            values[here] = self._windows(block, rank)[starts[here]]
        return self._factors(values, rank)

    def _windows(self, block: int, rank: int) -> Array:
        """The values of any `rank` successive rows of a block, by the first of these rows: overlapping views."""
        array = self._block(block)
        rows, columns = array.shape
        shape, strides = (rows - rank + 1, rank * columns), (array.strides[0], array.itemsize)
        return np.ndarray(shape, self.dtype, array, 0, strides)

    def _block(self, number: int) -> _Block:
        block = self._arrays[number]()
        assert block is not None  # it is open, or the views of its places keep it
        return block

    def _factors(self, values: Array, rank: int) -> tuple[Array, Array]:
        """The views of A and B, given the elements of whole places along the last axis."""
        (inputs, outputs), split = self.sizes, rank * self.sizes[0]
        A_transposed = values[..., :split].reshape(*values.shape[:-1], rank, inputs)
        return A_transposed.mT, values[..., split:].reshape(*values.shape[:-1], rank, outputs)
