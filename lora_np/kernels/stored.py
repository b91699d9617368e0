"""Stored matrices: constant weights kept as BF16, in half of the memory, and widened to float32 as they are multiplied."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np

from .._typing import Array

TILE = 1 << 17
"""The number of elements to widen at a time: 512 KiB of float32, which stay in the cache until they are multiplied."""

FLOAT32 = np.dtype(np.float32)


@final
class StoredMatrix:
    """A read-only matrix of float32 numbers of which only the upper halves are stored: BF16.

    It stands where a layer has a weight array, and has those attributes of one that layers and kernels use. Products widen
    a tile of it at a time; `numpy.asarray` makes an array of all of it.

    Parameters
    ----------
    bits : array of uint16, shape (m, n)
        It is not copied, and may be memory-mapped.
    transposed : bool, default False
        Whether the matrix is the transpose of the stored one.
    """

    __array_ufunc__ = None  # so that ``x @ matrix`` calls __rmatmul__

    ndim = 2
    dtype = FLOAT32

    def __init__(self, bits: Array, transposed: bool = False) -> None:
        self.bits = bits.view()
        self.bits.flags.writeable = False
        self.transposed = transposed

    def __repr__(self) -> str:
        return f"StoredMatrix(BF16, {self.shape[0]} × {self.shape[1]})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return self.bits.shape[::-1] if self.transposed else self.bits.shape

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.bits.size

    @property
    def nbytes(self) -> int:
        """The number of bytes as stored."""
        return self.bits.nbytes

    @property
    def flags(self) -> Any:
        """The flags of the stored array, which is not writeable."""
        return self.bits.flags

    @property
    def T(self) -> StoredMatrix:  # noqa: N802
        """The transpose, which shares the stored array."""
        return StoredMatrix(self.bits, not self.transposed)

    @property
    def real(self) -> Self:
        """The matrix."""
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a StoredMatrix becomes an array by widening, which copies it")
        values = widened(self.bits)
        return (values.T if self.transposed else values).astype(dtype or FLOAT32, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredMatrix, (self.bits, self.transposed)

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # it cannot change

    def __rmatmul__(self, x: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        y = _times_transpose(rows, self.bits) if self.transposed else _times(rows, self.bits)
        return y.reshape(*x.shape[:-1], self.shape[1])

    def __add__(self, other: Array) -> Array:
        return np.asarray(self) + other

    def copy(self, order: Any = "C") -> Array:
        """All of it as a new array."""
        return np.array(self, order=order)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """All of it as a new array; the matrix itself if `dtype` is float32 and `copy` is False."""
        return self if dtype == FLOAT32 and not copy else np.array(self, dtype)

    def ravel(self) -> Array:
        """All of it as a vector."""
        return np.asarray(self).ravel()

    def take(self, indices: Array, axis: int) -> Array:
        """Some rows or columns as a new array."""
        return np.asarray(self).take(indices, axis) if self.transposed else widened(self.bits.take(indices, axis))


def widened(bits: Array, out: Array | None = None) -> Array:
    """The float32 numbers whose upper halves are `bits`, optionally in the memory of an array of uint32."""
    return np.left_shift(bits, 16, out=out, dtype=np.uint32).view(np.float32)


def _times_transpose(x: Array, bits: Array) -> Array:
    """``x Wᵀ`` for W = `bits`, (n, k): a tile makes some columns of the result."""
    n, k = bits.shape
    y = np.empty((len(x), n), np.result_type(x, FLOAT32))
    for part, room in _tiles(n, k):
        np.matmul(x, widened(bits[part], room).T, out=y[:, part])  # (rows, k) @ (k, part) -> (rows, part)
    return y


def _times(x: Array, bits: Array) -> Array:
    """``x W`` for W = `bits`, (k, n): a tile multiplies some columns of x, and the products are added."""
    k, n = bits.shape
    y = np.zeros((len(x), n), np.result_type(x, FLOAT32))
    for part, room in _tiles(k, n):
        y += x[:, part] @ widened(bits[part], room)  # (rows, part) @ (part, n) -> (rows, n)
    return y


def _tiles(rows: int, columns: int) -> Any:
    """The rows of each tile, and memory for it."""
    height = max(1, TILE // columns)
    room = np.empty((min(height, rows), columns), np.uint32)
    for start in range(0, rows, height):
        part = slice(start, min(start + height, rows))
        yield part, room[: part.stop - start]
