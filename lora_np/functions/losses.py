"""Loss functions. One method computes both the value and the gradient, so that the two cannot disagree.

Values are means: over rows for softmax cross-entropy, over elements for all others. The loss of an empty batch is 0.
With weights of the rows, they are weighted means.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import numpy as np

from .._typing import Array
from .._validation import finite_float, real_array, row_weights, same_shape
from ..errors import ArgumentError, ArgumentOutOfRangeError
from .activations import sigmoid, softplus
from .numerical import numerical_gradient

IGNORED = (-1, -100)
"""The labels of rows without a loss."""


class Loss(ABC):
    """A scalar function of predictions and targets, with its gradient.

    Subclasses implement `compute`, which receives arguments that have already been checked.
    """

    @final
    def value_and_gradient(self, predictions: Any, targets: Any, weights: Any = None) -> tuple[float, Array]:
        """The loss and its gradient with respect to the predictions.

        Parameters
        ----------
        predictions : array, shape (..., outputs)
        targets : array, shape (..., outputs)
            Nothing is broadcast. `SoftmaxCrossEntropy` also accepts class labels.
        weights : array, shape (rows,), optional
            The weight of each row, that is of each index of the first axis, of at least two: ``Σ w L / Σ w``. Not negative.
            If all are 0, so is the loss.

        Returns
        -------
        value : float
        gradient : array, the shape and dtype of `predictions`

        Raises
        ------
        ArgumentError
            If an argument is not an array of real numbers, the shapes do not match, or a target or weight is out of range.
        """
        p, t = self.check(predictions, targets)
        value, gradient = self.compute(p, t) if weights is None else self._weighted(p, t, np.asarray(targets), weights)
        return float(value), gradient

    @final
    def __call__(self, predictions: Any, targets: Any, weights: Any = None) -> float:
        """The value, without the gradient."""
        return self.value_and_gradient(predictions, targets, weights)[0]

    def _weighted(self, predictions: Array, checked_targets: Array, targets: Array, weights: Any) -> tuple[Any, Array]:
        if predictions.ndim < 2:
            raise ArgumentError(f"weights need predictions with at least two axes, got shape {predictions.shape}")
        weights = row_weights("weights", weights, len(predictions))
        weights = weights / (weights.max(initial=0) or 1)  # their sum could overflow
        terms = self.terms(targets)
        counted = (terms * weights).sum()
        factors = weights * (terms.sum() / counted) if counted else np.zeros_like(weights)
        return self.compute_weighted(predictions, checked_targets, factors.astype(predictions.dtype))

    @final
    def check(self, predictions: Any, targets: Any) -> tuple[Array, Array]:
        """Check predictions and targets, and convert them to the form that `compute` expects.

        Raises
        ------
        ArgumentError
            If `value_and_gradient` would raise it.
        """
        predictions = real_array("predictions", predictions)
        if predictions.dtype.kind != "f":
            predictions = predictions.astype(float)
        return predictions, self.checked_targets(predictions, real_array("targets", targets))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """The targets in the form that `compute` expects: by default, with the shape and dtype of the predictions."""
        same_shape("targets", targets, predictions.shape)
        return targets.astype(predictions.dtype, copy=False)

    def terms(self, targets: Array) -> Array:
        """How many of the terms over which the loss is a mean belong to each row of valid targets, up to a common factor.

        By default, one for each vector of the row, that is for each index of the axes between the first and the last.
        """
        return np.full(len(targets), math.prod(targets.shape[1:-1]))

    @abstractmethod
    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """The value and the gradient for checked arrays.

        The value is written analytically, so that a complex step can check the gradient.
        """

    def compute_weighted(self, predictions: Array, targets: Array, factors: Array) -> tuple[Any, Array]:
        """As `compute`, if what each row contributes to the loss is multiplied by a factor.

        By default, the loss is computed for each row alone, and the results are averaged.

        Parameters
        ----------
        predictions, targets : arrays
            Checked.
        factors : array, shape (rows,)
            Relative weights: with ones, the result is that of `compute`, if it is a mean over rows.
        """
        shares = factors / _count(factors)
        rows = [self.compute(predictions[[row]], targets[[row]]) for row in range(len(factors))]
        value = sum((share * value for share, (value, _) in zip(shares, rows, strict=True)), 0.0)
        gradients = [share * gradient for share, (_, gradient) in zip(shares, rows, strict=True)]
        return value, np.concatenate(gradients) if rows else np.zeros_like(predictions)


def _count(array: Array) -> int:
    """The number of elements, but at least 1, so that the mean over no elements is 0."""
    return max(array.size, 1)


class ElementwiseLoss(Loss):
    """A mean over elements: ``L = Σ ℓ(p, t) / n``, with n the number of elements; ``dL/dp = ℓ'(p, t) / n``."""

    @abstractmethod
    def elements(self, predictions: Array, targets: Array) -> tuple[Array, Array]:
        """``ℓ(p, t)`` and ``ℓ'(p, t)``, its derivative with respect to p, of each element."""

    @final
    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """The value and the gradient."""
        values, slopes = self.elements(predictions, targets)
        n = _count(predictions)
        # The sum of large values could overflow where their mean does not.
        return (values / n).sum(), slopes * (1 / n)

    @final
    def compute_weighted(self, predictions: Array, targets: Array, factors: Array) -> tuple[Any, Array]:
        """The value and the gradient, with a factor for each row."""
        values, slopes = self.elements(predictions, targets)
        shares = _column(factors, predictions) / _count(predictions)
        return (values * shares).sum(), slopes * shares


def _column(factors: Array, array: Array) -> Array:
    """One number per row, in the shape that multiplies the rows of an array."""
    return factors.reshape(-1, *[1] * (array.ndim - 1))


@final
class MeanSquaredError(ElementwiseLoss):
    """Mean squared error, minimised by the conditional mean (Hastie, Tibshirani and Friedman 2009, sec. 2.4).

    ``L = Σ (p - t)² / n``, with n the number of elements; ``dL/dp = 2 (p - t) / n``.
    """

    def elements(self, predictions: Array, targets: Array) -> tuple[Array, Array]:
        """``(p - t)²`` and ``2 (p - t)``."""
        difference = predictions - targets
        return difference * difference, 2 * difference


@final
class MeanAbsoluteError(ElementwiseLoss):
    """Mean absolute error, minimised by the conditional median (Hastie, Tibshirani and Friedman 2009, sec. 2.4).

    ``L = Σ |p - t| / n``, with n the number of elements; ``dL/dp = sign(p - t) / n``, which is 0 where p = t.
    """

    def elements(self, predictions: Array, targets: Array) -> tuple[Array, Array]:
        """``|p - t|`` and ``sign(p - t)``."""
        difference = predictions - targets
        return np.where(difference.real < 0, -difference, difference), np.sign(difference.real)


@final
class Huber(ElementwiseLoss):
    """Huber loss: quadratic for errors up to δ, linear beyond (Huber 1964).

    ``L = Σ h(p - t) / n``, with ``h(e) = e²/2`` if ``|e| <= δ``, else ``δ (|e| - δ/2)``, and n the number of elements;
    ``dL/dp = clip(p - t, -δ, δ) / n``.

    Parameters
    ----------
    delta : float, default 1
        δ, the error at which the two parts meet, in the units of the targets; greater than 0.
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = finite_float("delta", delta)
        if self.delta <= 0:
            raise ArgumentOutOfRangeError(f"delta must be greater than 0, got {delta}")

    def __repr__(self) -> str:
        return f"Huber(delta={self.delta:g})"

    def elements(self, predictions: Array, targets: Array) -> tuple[Array, Array]:
        """``h(p - t)`` and ``clip(p - t, -δ, δ)``."""
        difference = predictions - targets
        magnitude = np.where(difference.real < 0, -difference, difference)
        near = magnitude.real <= self.delta
        # Large errors are never squared: that could overflow.
        small = np.where(near, difference, 0)
        values = np.where(near, 0.5 * small * small, self.delta * (magnitude - 0.5 * self.delta))
        return values, np.clip(difference.real, -self.delta, self.delta)


@final
class SoftmaxCrossEntropy(Loss):
    """Negative log-likelihood of softmax probabilities, computed from logits (Bishop 2006, eq. 4.108 and 4.109).

    ``L = -Σ t log softmax(z) / rows``; ``dL/dz = (softmax(z) Σ t - t) / rows``, which is the familiar
    ``(softmax(z) - t) / rows`` if the targets of each row sum to 1.

    Targets are either integer class labels, with the shape of the logits without the last axis, or one-hot rows (or any
    non-negative weights), with the shape of the logits. Rows with the label -1 or -100 (as in PyTorch), such as padding,
    are ignored: they have no loss and no gradient, and the mean is over the others, of which there must be one.
    """

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """One-hot rows or weights as they are; labels are checked against the number of classes and made one-hot.

        Ignored labels become rows of zeros, and the other rows are scaled so that the mean over all rows is theirs.
        """
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
        check_labels(targets, classes)
        remaining = int(np.count_nonzero(targets >= 0))
        if targets.size and not remaining:
            raise ArgumentError("targets must have at least one label that is not ignored")
        labels = targets.reshape(-1)
        rows = np.zeros((labels.size, classes), predictions.dtype)
        labelled = np.flatnonzero(labels >= 0)
        rows[labelled, labels[labelled]] = labels.size / max(remaining, 1)
        return rows.reshape(predictions.shape)

    def terms(self, targets: Array) -> Array:
        """The number of labels of each row that are not ignored."""
        return super().terms(targets) if targets.dtype.kind == "f" else labels_of_rows(targets)

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """The value and the gradient."""
        rows = _count(predictions[..., 0])
        with np.errstate(over="ignore"):  # -∞, whose exponential is 0, is right
            shifted = predictions - predictions.real.max(axis=-1, keepdims=True)
        powers = np.exp(shifted)
        power_sum = powers.sum(axis=-1, keepdims=True)
        log_probabilities = shifted - np.log(power_sum)
        counted = np.where(targets == 0, 0, log_probabilities)  # 0 · -∞ is not a number
        powers *= targets.sum(axis=-1, keepdims=True) / power_sum
        powers -= targets
        return -((targets / rows) * counted).sum(), powers * (1 / rows)

    def compute_weighted(self, predictions: Array, targets: Array, factors: Array) -> tuple[Any, Array]:
        """The value and the gradient, which are linear in the targets."""
        return self.compute(predictions, targets * _column(factors, predictions))


def check_labels(targets: Array, classes: int) -> None:
    """Raise ArgumentOutOfRangeError if an integer is neither a class nor one of the labels to ignore."""
    if not targets.size or -1 <= targets.min() <= targets.max() < classes:
        return  # at a tenth of the cost of the general test
    wrong = targets[(targets >= classes) | (targets < 0) & ~np.isin(targets, IGNORED)]
    if wrong.size:
        raise ArgumentOutOfRangeError(
            f"targets must be labels in 0..{classes - 1}, or -1 or -100 to be ignored, got {wrong[0]}"
        )


def labels_of_rows(targets: Array) -> Array:
    """The number of labels of each row that are not ignored."""
    return (targets >= 0).sum(axis=tuple(range(1, targets.ndim)), dtype=int)


@final
class BinaryCrossEntropy(ElementwiseLoss):
    """Negative log-likelihood of Bernoulli probabilities, computed from logits (Bishop 2006, eq. 4.90 and 4.91).

    ``L = -Σ (t log σ(z) + (1 - t) log(1 - σ(z))) / n = Σ (softplus(z) - t z) / n``, with n the number of elements;
    ``dL/dz = (σ(z) - t) / n``. Targets lie in [0, 1].
    """

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """Targets with the shape and dtype of the predictions, in [0, 1]."""
        targets = super().checked_targets(predictions, targets)
        if targets.size and not (targets.min() >= 0 and targets.max() <= 1):
            raise ArgumentOutOfRangeError(f"targets must lie in [0, 1], got {targets.min()}..{targets.max()}")
        return targets

    def elements(self, predictions: Array, targets: Array) -> tuple[Array, Array]:
        """``softplus(z) - t z`` and ``σ(z) - t``."""
        return softplus(predictions) - targets * predictions, sigmoid(predictions) - targets


@final
class FunctionLoss(Loss):
    """Any scalar function of predictions and targets, differentiated numerically: convenient but slow.

    With weights, it is evaluated for each row alone, and the results are averaged.

    The gradient is computed by central differences, ``(f(p + h) - f(p - h)) / 2h``: two evaluations for each element of the
    predictions, accurate to about 9 digits. At a kink, the result lies between the one-sided slopes.

    Parameters
    ----------
    function : callable
        ``function(predictions, targets) -> float``. It defines which shapes of targets are valid.

    Raises
    ------
    ArgumentError
        If `function` is not callable or, when the loss is computed, does not return a real scalar.
    """

    def __init__(self, function: Callable[[Array, Array], Any]) -> None:
        if not callable(function):
            raise ArgumentError(f"function must be callable, got {function!r}")
        self.function = function

    def __repr__(self) -> str:
        return f"FunctionLoss({self.function!r})"

    def checked_targets(self, predictions: Array, targets: Array) -> Array:
        """The targets unchanged: the function defines which are valid."""
        return targets

    def compute(self, predictions: Array, targets: Array) -> tuple[Any, Array]:
        """The value and the numerical gradient."""
        gradient = numerical_gradient(lambda moved: self._value(moved, targets), predictions, method="central")
        return self._value(predictions, targets), gradient.astype(predictions.dtype)

    def _value(self, predictions: Array, targets: Array) -> Array:
        value = real_array("function's result", self.function(predictions, targets))
        same_shape("function's result", value, ())
        return value
