"""Memory-mapped parts of a file."""

from __future__ import annotations

import mmap
from typing import Any, BinaryIO

import numpy as np

from .._typing import Array


def mapped(file: BinaryIO, dtype: np.dtype[Any], count: int, begin: int) -> Array:
    """A read-only array of `count` elements, at least 1, from byte `begin` of a file on."""
    # One mapping per call, so that the pages are released together with the array.
    page = begin - begin % mmap.ALLOCATIONGRANULARITY
    length = begin - page + count * dtype.itemsize
    pages = mmap.mmap(file.fileno(), length, offset=page, access=mmap.ACCESS_READ)
    return np.frombuffer(pages, dtype, count, begin - page)
