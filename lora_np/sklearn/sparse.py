"""Sparse input, of which only batches become arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

from .._typing import Array
from ..layers import Layer
from ..training.rows import RowsOnDemand
from ..training.samples import predict_in_batches

ROWS = 1024
"""The number of rows of a sparse matrix that are predicted together."""


@final
class SparseRows(RowsOnDemand):
    """The rows of a matrix in SciPy's CSR format."""

    def __init__(self, matrix: Any) -> None:
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype

    def __getitem__(self, rows: Any) -> Self:
        return type(self)(self.matrix[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array: Array = self.matrix.toarray()
        return array if dtype is None else array.astype(dtype, copy=False)


def predict(model: Layer, X: Array | SparseRows, tasks: Sequence[str] | None = None) -> Array:
    """The outputs of a model for all rows: in one pass, or in batches if they are sparse."""
    if not isinstance(X, SparseRows):
        return model.predict(X, tasks=tasks)
    return predict_in_batches(model, X, tasks, ROWS)
