"""`Patience`: when a training run ends because its loss no longer falls."""

from __future__ import annotations

import math
from typing import final

from .._validation import non_negative_float, positive_int
from ..errors import ArgumentError


@final
class Patience:
    """Counts the epochs whose loss does not improve on the best one.

    Parameters
    ----------
    epochs : int or None
        The number of epochs in a row without an improvement after which the run is over; by default, it never is.
    tolerance : float
        An improvement lowers the best loss by more than this.
    """

    def __init__(self, epochs: int | None, tolerance: float) -> None:
        self.epochs = None if epochs is None else positive_int("patience", epochs)
        self.tolerance = non_negative_float("tolerance", tolerance)
        if self.tolerance and epochs is None:
            raise ArgumentError("tolerance requires patience")
        self.best = math.inf
        """The lowest loss so far."""
        self.waited = 0
        """The number of epochs since the last improvement."""

    def is_best(self, loss: float) -> bool:
        """Record the loss of an epoch; returns whether it is the lowest so far."""
        self.waited = 0 if loss < self.best - self.tolerance else self.waited + 1
        if not loss < self.best:
            return False
        self.best = loss
        return True

    @property
    def is_over(self) -> bool:
        """Whether the patience is exhausted."""
        return self.epochs is not None and self.waited >= self.epochs
