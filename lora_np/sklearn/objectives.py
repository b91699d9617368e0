"""Samples, and the meaning of their y: classes or values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from .._typing import Array
from .._validation import row_weights
from ..errors import ArgumentError
from ..functions.losses import Loss, MeanSquaredError, SoftmaxCrossEntropy


class Objective(ABC):
    """How y becomes the targets of a network, and the loss that compares outputs with them."""

    loss: ClassVar[Loss]
    outputs: int
    """The number of outputs of the network."""

    @abstractmethod
    def encode(self, y: Array) -> Array:
        """The targets in the form that `loss` takes; raises ArgumentError if y does not fit."""


@final
class Classes(Objective):
    """One output per class: its logit.

    Parameters
    ----------
    labels : array, shape (classes,)
        Distinct, ascending.
    """

    loss = SoftmaxCrossEntropy()

    def __init__(self, labels: Array) -> None:
        self.labels = labels
        self.outputs = len(labels)

    def encode(self, y: Array) -> Array:
        """The index of each label."""
        unknown = np.setdiff1d(y, self.labels)
        if len(unknown):
            raise ArgumentError(f"y must contain only the classes {self.labels.tolist()}, got {unknown.tolist()[0]!r}")
        return np.searchsorted(self.labels, y)


@final
class Values(Objective):
    """One output per value of y.

    Parameters
    ----------
    shape : tuple of int
        The shape of y for one sample: ``()`` or ``(values,)``.
    """

    loss = MeanSquaredError()

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.outputs = math.prod(shape)

    def encode(self, y: Array) -> Array:
        """One row per sample."""
        if y.shape[1:] != self.shape:
            raise ArgumentError(f"y must have shape {self.shape} for each sample, as in earlier calls, got {y.shape[1:]}")
        return y.reshape(len(y), self.outputs)

    def decode(self, outputs: Array) -> Array:
        """The outputs in the shape of y."""
        return outputs.reshape(len(outputs), *self.shape)


def all_classes(classes: Any, known: Array | None) -> Classes:
    """The classes of a `partial_fit`: the first call must give them, later calls may repeat them."""
    if known is None:
        if classes is None:
            raise ArgumentError("classes must be given in the first call to partial_fit")
        return Classes(np.unique(classes))
    if classes is not None and not np.array_equal(np.unique(classes), known):
        raise ArgumentError(f"classes must equal those of the first call, {known.tolist()}, got {classes!r}")
    return Classes(known)


def log_softmax(logits: Array) -> Array:
    """``log softmax(z) = z - log Σ exp(z)`` over the last axis, finite even where a probability is 0."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def weights_of(sample_weight: Any, samples: int) -> Array | None:
    """The checked weights of samples; None if they all count the same."""
    if sample_weight is None:
        return None
    weights = row_weights("sample_weight", np.asarray(sample_weight), samples)
    if not weights.any():
        raise ArgumentError("sample_weight must contain a number greater than 0, got only zeros")
    return weights


@final
@dataclass(frozen=True)
class Samples:
    """The checked arguments of a fit.

    Raises
    ------
    ArgumentError
        If y does not fit the objective.
    """

    X: Array
    """(samples, features)."""
    y: Array
    objective: Objective
    tasks: tuple[str, ...] | None = None
    """The task of each sample."""
    weights: Array | None = None
    """The weight of each sample."""

    def __post_init__(self) -> None:
        self.objective.encode(self.y)

    @property
    def targets(self) -> Array:
        """The targets of the loss."""
        return self.objective.encode(self.y)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The distinct tasks, ascending."""
        return tuple(sorted(set(self.tasks or ())))

    def labels_by_task(self) -> dict[str, Array]:
        """The distinct labels of each task, ascending."""
        tasks = np.array(self.tasks, dtype=object)
        return {name: np.unique(self.y[tasks == name]) for name in self.task_names}

    def check_enough(self, what: str) -> None:
        """Reject fewer samples than classes if a part of the network is trained first."""
        count, classes = len(self.X), self.objective.outputs
        if isinstance(self.objective, Classes) and count < classes:
            raise ArgumentError(
                f"X must have at least {classes} samples, one per class, to train {what} first, got {count}"
            )
