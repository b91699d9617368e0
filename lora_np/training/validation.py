"""Validation: the loss on samples that are not trained on, and the parameters of the best epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, final

import numpy as np

from .._typing import Array
from .._validation import positive_int
from ..base import Layer
from ..errors import ArgumentError
from ..functions.losses import Loss
from .averaging import loss_by_task, terms_by_task
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
    by_task : bool
        Whether the loss is the sum of those of the tasks.
    patience : int, optional
        The number of epochs in a row without a new best loss after which the training is over; by default, it goes on.
    """

    def __init__(
        self, model: Layer, loss: Loss, samples: Samples, batch_size: int, patience: int | None, *, by_task: bool = False
    ) -> None:
        self.model = model
        self.loss = loss
        self.samples = samples
        self.batch_size = batch_size
        self.patience = patience
        self.by_task = by_task
        self.best = math.inf
        """The lowest loss so far."""
        self.waited = 0
        """The number of epochs since then."""
        self.best_parameters: Mapping[str, Array] = {}
        """The parameters of the best epoch, which are kept only with `patience`."""

    def measure(self) -> float:
        """The loss now. With `patience`, the parameters of the best epoch are kept."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # One call of the loss on all predictions, because not every loss is a mean over rows.
            value = self._loss(self.samples.predict(self.model, self.batch_size))
        if self._improves(value) and self.patience is not None:
            self.best_parameters = {name: p.copy() for name, p in self.model.named_parameters().items()}
        return value

    def _improves(self, value: float) -> bool:
        """Whether the loss of an epoch is the best so far, which is recorded."""
        if value < self.best:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def resume(self, losses: Iterable[float], best_parameters: Mapping[str, Array]) -> None:
        """Return to the state after epochs with the given losses."""
        for value in losses:
            self._improves(value)
        self.best_parameters = best_parameters

    def _loss(self, y: Array) -> float:
        _, targets, tasks, row_weights = self.samples
        if not self.by_task or tasks is None:
            return self.loss(y, targets, row_weights)
        weights = dict.fromkeys(terms_by_task(self.loss, targets, tasks, row_weights), 1.0)
        return loss_by_task(self.loss, y, targets, tasks, weights, row_weights)[0]

    @property
    def is_over(self) -> bool:
        """Whether the patience is exhausted."""
        return self.patience is not None and self.waited >= self.patience

    def put_back_best(self) -> None:
        """Restore the parameters of the best epoch, if they were kept."""
        for name, array in self.best_parameters.items():
            self.model.set_parameter(name, array)


def validation_of(
    model: Layer,
    loss: Loss,
    data: ValidationData | None,
    batch_size: int,
    patience: int | None,
    *,
    by_task: bool,
) -> Validation | None:
    """Check the validation data and the patience; None without data."""
    patience = None if patience is None else positive_int("patience", patience)
    if data is None:
        if patience is not None:
            raise ArgumentError("patience requires validation=(inputs, targets)")
        return None
    try:
        inputs, targets, tasks, weights = (*data, None, None)[: max(len(data), 4)]
    except (TypeError, ValueError):
        raise ArgumentError(
            "validation must be (inputs, targets), (inputs, targets, tasks) or (inputs, targets, tasks, weights)"
        ) from None
    try:
        samples = checked_samples(model, loss, (inputs, targets), tasks, weights)
        return Validation(model, loss, samples, batch_size, patience, by_task=by_task)
    except ArgumentError as error:
        raise ArgumentError(f"validation: {error}") from error
