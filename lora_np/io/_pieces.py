"""The computation of a merged tensor, piece by piece, in buffers that stay in the cache, on one or several threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, final

import numpy as np

from .._typing import Array
from ..kernels.bfloat16 import narrow, widen
from ._changes import Change
from .safetensors import decoded

PIECE = 1 << 16
"""The number of elements computed at a time: few enough to stay in the cache throughout."""


def windows(length: int, step: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges (start, stop), of at most `step` elements each."""
    for start in range(0, length, step):
        yield start, min(start + step, length)


def rows_within(limit: int, columns: int) -> int:
    """The number of rows of a matrix that have at most `limit` elements together, but at least one row."""
    return max(1, limit // max(1, columns))


class Conversion(NamedTuple):
    """How rows are computed: from stored elements, in a floating-point type, to stored elements."""

    source: str
    """The dtype of the old elements."""
    change: Change
    dtype: str
    """The dtype of the new elements."""


@final
class Workers:
    """Threads that compute the pieces of a window, each with two buffers.

    A piece is computed as a whole, so the results do not depend on the number of threads.

    Parameters
    ----------
    count : int
        The number of threads, the calling one included.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1) if count > 1 else None
        self._buffers: list[tuple[Array, Array]] = [(np.empty(0), np.empty(0))] * count
        self._output = np.empty(0, np.uint8)

    def output(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array for the rows of a window; its memory is that of the previous one, which must have been written."""
        size = math.prod(shape) * dtype.itemsize
        if self._output.size < size:
            self._output = np.empty(size, np.uint8)  # fresh memory would cost a page fault every 4 KB
        return self._output[:size].view(dtype).reshape(shape)

    def compute(self, old: Array, new: Array, first: int, rows: int, conversion: Conversion, dtype: Any) -> None:
        """Compute the rows `new` from the rows `old`, of which `first` is the index of the first, `rows` at a time."""
        pieces = [(start, min(start + rows, len(old))) for start in range(0, len(old), rows)]

        def work(number: int) -> None:
            for start, stop in pieces[number :: self.count]:
                self._compute(number, old[start:stop], new[start:stop], first + start, conversion, dtype)

        others = [] if self._pool is None else [self._pool.submit(work, number) for number in range(1, self.count)]
        work(0)
        for other in others:
            other.result()

    def _compute(self, number: int, old: Array, new: Array, first: int, conversion: Conversion, dtype: Any) -> None:
        values, result = (buffer[: old.size].reshape(old.shape) for buffer in self._enough(number, old.size, dtype))
        if conversion.source == "BF16" and dtype == np.float32:
            widen(old, values)
        else:
            np.copyto(values, decoded(old, conversion.source), casting="unsafe")
        result = conversion.change(values, first, result)
        if conversion.dtype == "BF16":
            narrow(np.ascontiguousarray(result), new, values.view("<u4"))
        else:
            np.copyto(new, result, casting="unsafe")

    def _enough(self, number: int, size: int, dtype: Any) -> tuple[Array, Array]:
        """The buffers of a thread, made larger if need be."""
        old = self._buffers[number][0]
        if old.size < size or old.dtype != dtype:
            self._buffers[number] = np.empty(size, dtype), np.empty(size, dtype)
        return self._buffers[number]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def usable_threads(limit: int = 4) -> int:
    """The number of processors that this process may use, at most `limit`."""
    if hasattr(os, "sched_getaffinity"):
        return min(limit, len(os.sched_getaffinity(0)))
    return min(limit, os.cpu_count() or 1)
