"""Losses: what training minimises. One method gives the value and the gradient, so that the two cannot disagree.

Values are means: over every element for the regression losses and binary cross-entropy, over rows for softmax
cross-entropy. A batch without rows has the value 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import numpy as np

from .._typing import Array
from .._validation import finite_float, real_array, same_shape
from ..errors import ArgumentError, ArgumentOutOfRangeError
from .activations import sigmoid, softplus
from .numerical import numerical_gradient


class Loss(ABC):
    """A scalar function of predictions and targets, with its gradient.

    A new loss writes one method, `compute`; checks are done before it.
    """

    @final
    def value_and_gradient(self, predictions: Any, targets: Any) -> tuple[float, Array]:
        """The loss and its gradient with respect to the predictions.

        Parameters
        ----------
        predictions : array, shape (..., outputs)
        targets : array
            The shape of `predictions`; nothing is broadcast.

        Returns
        -------
        value : float
        gradient : array, the shape and dtype of `predictions`.

        Raises
        ------
        ArgumentError
            Another shape, or not real numbers.
        """
        value, gradient = self.compute(*self.check(predictions, targets))
        return float(value), gradient

    @final
    def __call__(self, predictions: Any, targets: Any) -> float:
        """The value alone."""
        return self.value_and_gradient(predictions, targets)[0]

    @final
    def check(self, predictions: Any, targets: Any) -> tuple[Array, Array]:
        """Predictions and targets in the form that `compute` takes; an ArgumentError where they do not fit."""
        predictions = real_array("predictions", predictions)
        if predictions.dtype.kind != "f":
            predictions = predictions.astype(float)
        return predictions, self.checked_targets(predictions, real_array("targets", targets))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """The targets in the form that `compute` takes; here: of the predictions' shape and dtype."""
        same_shape("targets", targets, predictions.shape)
        return targets.astype(predictions.dtype, copy=False)

    @abstractmethod
    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """Value and gradient of checked arrays; analytic, so that the gradient can be checked by complex step."""


def _count(array: Array) -> int:
    """The number to divide a sum by: never zero, so that the mean over nothing is zero."""
    return max(array.size, 1)


@final
class MeanSquaredError(Loss):
    """``L = Σ (p - t)² / n``, with n the number of elements; ``dL/dp = 2 (p - t) / n``."""

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """Value and gradient."""
        difference = predictions - targets
        n = _count(difference)
        return (difference * difference).sum() / n, difference * (2 / n)


@final
class MeanAbsoluteError(Loss):
    """``L = Σ |p - t| / n``; ``dL/dp = sign(p - t) / n``, and 0 where p = t."""

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """Value and gradient."""
        difference = predictions - targets
        n = _count(difference)
        magnitude = np.where(difference.real < 0, -difference, difference)
        return magnitude.sum() / n, np.sign(difference.real) * (1 / n)


@final
class Huber(Loss):
    """Quadratic near the target, linear beyond δ (Huber 1964).

    ``L = Σ h(p - t) / n`` with ``h(e) = e²/2`` where abs(e) <= δ and ``δ (abs(e) - δ/2)`` elsewhere;
    ``dL/dp = clip(p - t, -δ, δ) / n``.

    Parameters
    ----------
    delta : float, default 1
        Where the two parts meet, in the unit of the targets; greater than 0.
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = finite_float("delta", delta)
        if self.delta <= 0:
            raise ArgumentOutOfRangeError(f"delta must be greater than 0, got {delta}")

    def __repr__(self) -> str:
        return f"Huber(delta={self.delta:g})"

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """Value and gradient."""
        difference = predictions - targets
        n = _count(difference)
        magnitude = np.where(difference.real < 0, -difference, difference)
        near = magnitude.real <= self.delta
        # The far side's square is never computed: it could overflow.
        small = np.where(near, difference, 0)
        value = np.where(near, 0.5 * small * small, self.delta * (magnitude - 0.5 * self.delta))
        return value.sum() / n, np.clip(difference.real, -self.delta, self.delta) * (1 / n)


@final
class SoftmaxCrossEntropy(Loss):
    """The negative log-likelihood of softmax probabilities, from logits.

    ``L = -Σ t log softmax(z) / rows``; ``dL/dz = (softmax(z) Σ t - t) / rows``, which is the familiar
    ``(softmax(z) - t) / rows`` where the targets of a row sum to one.

    Targets are either integer class labels, of the shape of the logits without their last axis, or one-hot rows (or
    any weights that are not negative), of the shape of the logits.
    """

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """One-hot targets; labels are checked against the number of classes."""
        if predictions.ndim == 0:
            raise ArgumentError("predictions must have at least one axis, got a scalar")
        if targets.shape == predictions.shape:
            if (targets < 0).any():
                raise ArgumentOutOfRangeError(f"targets must not be negative, got {targets.min()}")
            return targets.astype(predictions.dtype, copy=False)
        classes = predictions.shape[-1]
        if targets.shape != predictions.shape[:-1]:
            raise ArgumentError(
                f"targets must be labels of shape {predictions.shape[:-1]} or one-hot rows of shape {predictions.shape}, "
                f"got {targets.shape}"
            )
        if targets.dtype.kind not in "iu":
            raise ArgumentError(f"targets must be integer labels, got dtype {targets.dtype}")
        if targets.size and not 0 <= targets.min() <= targets.max() < classes:
            raise ArgumentOutOfRangeError(
                f"targets must be labels in 0..{classes - 1}, got {targets.min()}..{targets.max()}"
            )
        return np.eye(classes, dtype=predictions.dtype)[targets]

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """Value and gradient."""
        rows = _count(predictions[..., 0])
        shifted = predictions - predictions.real.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        log_probabilities = shifted - log_sum
        total = targets.sum(axis=-1, keepdims=True)
        gradient = (np.exp(log_probabilities) * total - targets) * (1 / rows)
        return -(targets * log_probabilities).sum() / rows, gradient


@final
class BinaryCrossEntropy(Loss):
    """The negative log-likelihood of independent yes-or-no probabilities, from logits.

    ``L = Σ (softplus(z) - t z) / n``; ``dL/dz = (sigmoid(z) - t) / n``. Targets lie in [0, 1].
    """

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """Targets of the predictions' shape, in [0, 1]."""
        targets = super().checked_targets(predictions, targets)
        if targets.size and not (targets.min() >= 0 and targets.max() <= 1):
            raise ArgumentOutOfRangeError(f"targets must lie in [0, 1], got {targets.min()}..{targets.max()}")
        return targets

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """Value and gradient."""
        n = _count(predictions)
        value = (softplus(predictions) - targets * predictions).sum() / n
        return value, (sigmoid(predictions) - targets) * (1 / n)


@final
class FunctionLoss(Loss):
    """A plain scalar function of predictions and targets, differentiated numerically: simple, and slow.

    The gradient takes two evaluations for each element of the predictions, by central differences, so it has about 9
    digits; a function with a corner gets a slope between those of its two sides there.

    Parameters
    ----------
    function : callable
        ``function(predictions, targets) -> float``, with arrays of any shapes that it understands.

    Raises
    ------
    ArgumentError
        It is not callable, or gives something else than a real scalar.
    """

    def __init__(self, function: Callable[[Array, Array], Any]) -> None:
        if not callable(function):
            raise ArgumentError(f"function must be callable, got {function!r}")
        self.function = function

    def __repr__(self) -> str:
        return f"FunctionLoss({self.function!r})"

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """The targets as they are: what fits is the function's business."""
        return targets

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """Value and numerical gradient."""
        gradient = numerical_gradient(lambda moved: self._value(moved, targets), predictions, method="central")
        return self._value(predictions, targets), gradient.astype(predictions.dtype)

    def _value(self, predictions: Array, targets: Array) -> Array:
        value = real_array("function's result", self.function(predictions, targets))
        same_shape("function's result", value, ())
        return value
