"""Samples, and the meaning of their y: classes or values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from .._typing import Array
from .._validation import row_weights
from ..errors import ArgumentError
from ..functions.activations import sigmoid, softmax, softplus
from ..functions.losses import BinaryCrossEntropy, Loss, MeanSquaredError, SoftmaxCrossEntropy
from .sparse import SparseRows


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

    def decision(self, logits: Array) -> Array:
        """The logits; for two classes, the second minus the first."""
        return logits[:, 1] - logits[:, 0] if len(self.labels) == 2 else logits

    def probabilities(self, logits: Array) -> Array:
        """The softmax of the logits."""
        return softmax(logits)

    def log_probabilities(self, logits: Array) -> Array:
        """Their logarithms."""
        return log_softmax(logits)

    def decode(self, logits: Array) -> Array:
        """The most probable label of each row."""
        return self.labels[logits.argmax(axis=1)]


@final
class Indicators(Objective):
    """One output per label, of which a sample can have any number: the logit that the sample has it.

    Parameters
    ----------
    count : int
        The number of labels.
    """

    loss = BinaryCrossEntropy()

    def __init__(self, count: int) -> None:
        self.labels, self.outputs = np.arange(count), count

    def encode(self, y: Array) -> Array:
        """The indicators themselves."""
        if y.shape[1:] != (self.outputs,):
            raise ArgumentError(f"y must have {self.outputs} columns, as in earlier calls, got shape {y.shape}")
        if not np.isin(y, (0, 1)).all():
            raise ArgumentError(f"y must contain only 0 and 1 if it has several columns, got {y.min()} to {y.max()}")
        return y

    def decision(self, logits: Array) -> Array:
        """The logits."""
        return logits

    def probabilities(self, logits: Array) -> Array:
        """The sigmoid of each logit."""
        return sigmoid(logits)

    def log_probabilities(self, logits: Array) -> Array:
        """``log σ(z) = -log(1 + exp(-z))``."""
        return -softplus(-logits)

    def decode(self, logits: Array) -> Array:
        """1 for each label that is more probable than not, otherwise 0."""
        return (logits > 0).astype(int)


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
        got = np.unique(classes).tolist()
        raise ArgumentError(f"classes must equal those of the first call, {known.tolist()}, got {got}")
    return Classes(known)


def labels_of(y: Any, classes: Any, known: Classes | Indicators | None) -> tuple[Classes | Indicators, Array]:
    """The meaning of the y of a classifier, and y as an array.

    Parameters
    ----------
    y : array, shape (samples,), or array or sparse matrix of indicators, shape (samples, labels)
    classes : array-like
        The labels that can occur; not used for indicators.
    known : Classes, Indicators or None
        The meaning of y in earlier calls.
    """
    check_classification_targets(y)
    has_indicators = type_of_target(y) == "multilabel-indicator"
    if known is not None and has_indicators != isinstance(known, Indicators):
        expected = "one column" if has_indicators else f"{known.outputs} columns"
        raise ArgumentError(f"y must have {expected}, as in earlier calls, got shape {y.shape}")
    if not has_indicators:
        return all_classes(classes, None if known is None else known.labels), column_or_1d(y, warn=True)
    y = y.toarray() if issparse(y) else y
    return known if isinstance(known, Indicators) else Indicators(y.shape[1]), y


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

    X: Array | SparseRows
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
