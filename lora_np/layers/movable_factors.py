"""`MovableFactors`: lets a low-rank layer keep its factors in the memory of many layers, a `FactorMemory`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._typing import Array
from ..base import Layer
from ..kernels import FactorMemory, Place


class MovableFactors(Layer):
    """Mixin that moves `matrix_a` and `matrix_b`; requires them, the rank and the scaling."""

    matrix_a: Array
    matrix_b: Array
    rank: int
    scaling: float
    place: Place | None = None
    """Where the factors are, if they are in the memory of many layers."""

    @property
    def is_movable(self) -> bool:
        """Whether the factors may move: they have not moved yet, and are writeable arrays, not symbols of a graph."""
        factors = (self.matrix_a, self.matrix_b)
        return self.place is None and all(isinstance(factor, np.ndarray) and factor.flags.writeable for factor in factors)

    def move_to(self, memory: FactorMemory) -> None:
        """Move the factors to the memory of many layers; arrays obtained before no longer belong to this layer."""
        place, A, B = memory.place(self.rank, self.scaling)
        A[...], B[...] = self.matrix_a, self.matrix_b
        self.matrix_a, self.matrix_b, self.place = A, B, place

    def __setattr__(self, name: str, value: object) -> None:
        if name in _PLACED:
            self.__dict__["place"] = None
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own memory.
        return super().__getstate__() | {"place": None}


_PLACED = frozenset({"matrix_a", "matrix_b", "rank", "alpha", "scaling_rule"})
"""The attributes that a place depends on."""
