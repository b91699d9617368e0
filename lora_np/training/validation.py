"""Validation: the loss on samples that are not trained on."""

from __future__ import annotations

from typing import Any, TypeAlias, final

import numpy as np

from .._typing import Array
from ..base import Layer
from ..errors import ArgumentError
from ..functions.losses import Loss
from .averaging import loss_by_task
from .samples import Samples, checked_samples

ValidationData: TypeAlias = tuple[Any, Any] | tuple[Any, Any, Any] | tuple[Any, Any, Any, Any]
"""Inputs, targets and, optionally, the task of each row, or None, and the weight of each row."""


@final
class Validation:
    """The loss of a model on validation samples.

    Parameters
    ----------
    model : Layer
    loss : Loss
    samples : Samples
    batch_size : int
    by_task : bool, default False
        Whether the loss is the sum of those of the tasks.
    """

    def __init__(self, model: Layer, loss: Loss, samples: Samples, batch_size: int, *, by_task: bool = False) -> None:
        self.model = model
        self.loss = loss
        self.samples = samples
        self.batch_size = batch_size
        self.by_task = by_task

    def measure(self) -> float:
        """The loss now."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # One call of the loss on all predictions, because not every loss is a mean over rows.
            return self._loss(self.samples.predict(self.model, self.batch_size))

    def _loss(self, y: Array) -> float:
        samples = self.samples
        if not self.by_task or samples.tasks is None:
            return self.loss(y, samples.targets, samples.weights)
        return loss_by_task(self.loss, y, samples.targets, samples.tasks, None, samples.weights)[0]


def validation_of(
    model: Layer,
    loss: Loss,
    data: ValidationData | None,
    batch_size: int,
    *,
    by_task: bool,
) -> Validation | None:
    """Check the validation data; None without data."""
    if data is None:
        return None
    try:
        inputs, targets, tasks, weights = (*data, None, None)[: max(len(data), 4)]
    except (TypeError, ValueError):
        raise ArgumentError(
            "validation must be (inputs, targets), (inputs, targets, tasks) or (inputs, targets, tasks, weights)"
        ) from None
    try:
        samples = checked_samples(model, loss, (inputs, targets), tasks, weights)
        return Validation(model, loss, samples, batch_size, by_task=by_task)
    except ArgumentError as error:
        raise ArgumentError(f"validation: {error}") from error
