"""Samples, and what their y means to a network: classes, or values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from .._typing import Array
from ..errors import ArgumentError
from ..functions.losses import Loss, MeanSquaredError, SoftmaxCrossEntropy


class Objective(ABC):
    """How y becomes the targets of a network, and which loss compares them."""

    loss: ClassVar[Loss]
    outputs: int
    """How many outputs the network has."""

    @abstractmethod
    def encode(self, y: Array) -> Array:
        """Targets as `loss` takes them; an ArgumentError where y does not fit."""


@final
class Classes(Objective):
    """One output for each class: its logit.

    Parameters
    ----------
    labels : array, shape (classes,)
        Different from each other, ascending.
    """

    loss = SoftmaxCrossEntropy()

    def __init__(self, labels: Array) -> None:
        self.labels = labels
        self.outputs = len(labels)

    def encode(self, y: Array) -> Array:
        """The position of each label."""
        unknown = np.setdiff1d(y, self.labels)
        if len(unknown):
            raise ArgumentError(f"y must hold the classes {self.labels.tolist()}, got {unknown.tolist()[0]!r}")
        return np.searchsorted(self.labels, y)


@final
class Values(Objective):
    """One output for each value of a sample.

    Parameters
    ----------
    shape : tuple of int
        The shape of one sample's y: ``()``, or ``(values,)``.
    """

    loss = MeanSquaredError()

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.outputs = math.prod(shape)

    def encode(self, y: Array) -> Array:
        """A row for each sample."""
        if y.shape[1:] != self.shape:
            raise ArgumentError(f"y must have shape {('samples', *self.shape)} as before, got {y.shape}")
        return y.reshape(len(y), self.outputs)

    def decode(self, outputs: Array) -> Array:
        """The outputs in the shape of y."""
        return outputs.reshape(len(outputs), *self.shape)


def all_classes(classes: Any, known: Array | None) -> Classes:
    """The classes of a `partial_fit`: those that are given at the first call, which later ones may repeat."""
    if known is None:
        if classes is None:
            raise ArgumentError("classes must be given at the first call to partial_fit")
        return Classes(np.unique(classes))
    if classes is not None and not np.array_equal(np.unique(classes), known):
        raise ArgumentError(f"classes must be those of the first call, {known.tolist()}, got {classes!r}")
    return Classes(known)


@final
@dataclass(frozen=True)
class Samples:
    """What a fit is given, checked.

    Raises
    ------
    ArgumentError
        y does not fit the objective.
    """

    X: Array
    """(samples, features)."""
    y: Array
    objective: Objective
    tasks: tuple[str, ...] | None = None
    """The task of each sample."""

    def __post_init__(self) -> None:
        self.objective.encode(self.y)

    @property
    def targets(self) -> Array:
        """What the loss compares the outputs with."""
        return self.objective.encode(self.y)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The different tasks, ascending."""
        return tuple(sorted(set(self.tasks or ())))

    def labels_by_task(self) -> dict[str, Array]:
        """The different labels of each task, ascending."""
        tasks = np.array(self.tasks, dtype=object)
        return {name: np.unique(self.y[tasks == name]) for name in self.task_names}

    def check_enough(self, what: str) -> None:
        """Refuse to train something on fewer samples than there are classes."""
        count, classes = len(self.X), self.objective.outputs
        if isinstance(self.objective, Classes) and count < classes:
            raise ArgumentError(
                f"X must have at least as many samples as there are classes, {classes}, when {what} is to be trained "
                f"first; got {count}"
            )
