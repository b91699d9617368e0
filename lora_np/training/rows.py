"""`RowsOnDemand`: inputs of `fit` that become arrays in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np

from .._typing import Array


class RowsOnDemand(ABC):
    """Checked rows in another form than an array, such as a sparse matrix; only those of a batch are converted.

    It has what `fit` needs of an array: `shape`, `dtype`, a length, some of its rows, and conversion by `np.asarray`.
    """

    shape: tuple[int, int]
    """(rows, input_size)."""
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """2."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: Any) -> Self:
        """Some of the rows, not converted."""

    @abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All rows as an array."""
