"""`Monitor`: what the loss after each epoch decides, when a training run ends and which parameters it leaves."""

from __future__ import annotations

from typing import Any, final

from ..base import Layer
from .checkpoint import State
from .patience import Patience
from .step import Descent
from .validation import Validation, ValidationData, validation_of


@final
class Monitor:
    """Records the loss of each epoch, and keeps the parameters of the epoch with the lowest validation loss.

    Parameters
    ----------
    model : Layer
    state : State
        Of the run, whose history and best parameters this maintains.
    validation : Validation, optional
        By default, the training loss counts, and the last parameters are left.
    patience : Patience
    """

    def __init__(self, model: Layer, state: State, validation: Validation | None, patience: Patience) -> None:
        self._model = model
        self._state = state
        self._validation = validation
        self._patience = patience

    @property
    def is_over(self) -> bool:
        """Whether the patience is exhausted."""
        return self._patience.is_over

    def end_epoch(self, loss: float) -> float | None:
        """Record the training loss of an epoch; returns the validation loss after it."""
        history = self._state.history
        history.epoch_losses.append(loss)
        if self._validation is None:
            self._patience.is_best(loss)
            return None
        value = self._validation.measure()
        history.validation_losses.append(value)
        if self._patience.is_best(value) and self._patience.epochs is not None:
            self._state.best = {name: p.copy() for name, p in self._model.named_parameters().items()}
        return value

    def resume(self) -> None:
        """Count the epochs of a history that was read from a checkpoint."""
        history = self._state.history
        for loss in history.epoch_losses if self._validation is None else history.validation_losses:
            self._patience.is_best(loss)

    def put_back_best(self) -> None:
        """Restore the best parameters, if they were kept."""
        for name, array in self._state.best.items():
            self._model.set_parameter(name, array)

    def plan(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit."""
        return {
            "validation": None if self._validation is None else self._validation.samples.digest(),
            "patience": self._patience.epochs,
            "tolerance": self._patience.tolerance,
        }


def monitor_of(
    descent: Descent,
    state: State,
    validation: ValidationData | None,
    batch_size: int,
    patience: int | None,
    tolerance: float,
    *,
    by_task: bool,
) -> Monitor:
    """The monitor for arguments of `fit`, which are checked."""
    validated = validation_of(descent.layer, descent.loss, validation, batch_size, by_task=by_task)
    return Monitor(descent.layer, state, validated, Patience(patience, tolerance))
