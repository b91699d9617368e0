"""`Minibatches`: the steps of `fit`, which can be interrupted and resumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from .._typing import Array
from ..base import training_mode
from ..errors import ArgumentError, NonFiniteError
from ..run import Rank
from .averaging import Portion
from .checkpoint import State, plan_of, read, write
from .history import History, Progress
from .interrupts import Interrupts
from .moment import fingerprint
from .monitor import Monitor
from .nested_dropout import ranks_of_pieces
from .samples import Samples
from .schedules import scheduled
from .sorted_start import StepRanks
from .step import Descent


@final
@dataclass
class Minibatches:
    """A training run on minibatches, and its record.

    Parameters
    ----------
    samples : Samples
    descent : Descent
    ranks : StepRanks
    state : State
    batch_size, rows_per_step : int
        The largest number of rows of a pass, and of a step.
    shuffles, by_task : bool
        Whether the rows are reshuffled before each epoch, and whether the loss is averaged by task.
    monitor : Monitor
    rates : mapping, optional
        See `rates_of`.
    checkpoint : path, optional
    """

    samples: Samples
    descent: Descent
    ranks: StepRanks
    state: State
    batch_size: int
    rows_per_step: int
    shuffles: bool
    by_task: bool
    monitor: Monitor
    rates: dict[str, Any] | None
    checkpoint: str | None
    order: Array = field(init=False)

    def __post_init__(self) -> None:
        rows = len(self.samples.inputs)
        self.tasks = self.samples.tasks if self.by_task else None
        self.per_epoch = -(-rows // self.rows_per_step)
        self.plan = {} if self.checkpoint is None else self._plan()

    def train(
        self,
        epochs: int,
        factors: tuple[float, ...] | None,
        callbacks: Iterable[Callable[[Progress], None]],
        *,
        resume: bool,
    ) -> History:
        """Train in training mode, from the start or from the checkpoint, with the factors of the learning rate."""
        mode, rates = training_mode(self.descent.layer, True), scheduled(self.descent.optimizer, factors)
        with mode, rates as set_rate, Interrupts() as interrupts:
            if resume:
                self._resume()
            self._run(epochs, set_rate, callbacks, interrupts)
        self.monitor.put_back_best()
        return self.state.history

    def _run(
        self,
        epochs: int,
        set_rate: Callable[[int], None],
        callbacks: Iterable[Callable[[Progress], None]],
        interrupts: Interrupts,
    ) -> None:
        """Take the remaining steps, each followed by the callbacks; save the state after each epoch and after Ctrl-C."""
        for progress in self._steps(epochs, set_rate):
            for callback in callbacks:
                callback(progress)
            if progress.is_epoch_end:
                self._save()
            try:
                interrupts.check()
            except KeyboardInterrupt:
                self._save()
                raise

    def _resume(self) -> None:
        """Return to the step after which the checkpoint was written."""
        if self.checkpoint is None or not os.path.exists(self.checkpoint):
            return
        read(self.checkpoint, self.plan, self.state, self.descent)
        with self.state.at_start_of_epoch():
            self._draw_order()
        self.monitor.resume()

    def _save(self) -> None:
        if self.checkpoint is not None:
            write(self.checkpoint, self.plan, self.state, self.descent)

    def _plan(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit."""
        return {
            "model": fingerprint(self.descent.layer),
            "data": self.samples.digest(),
            "batch_size": self.batch_size,
            "rows_per_step": self.rows_per_step,
            "shuffle": self.shuffles,
            "average": "task" if self.by_task else "batch",
            **self.monitor.plan(),
            **plan_of(self.descent, self.ranks, self.rates, self.state.random),
        }

    def _steps(self, epochs: int, set_rate: Callable[[int], None]) -> Iterator[Progress]:
        """Take the steps one by one, and measure the validation loss after the last step of each epoch."""
        state, steps = self.state, epochs * self.per_epoch
        for step in range(state.steps, steps):
            epoch, number = divmod(step, self.per_epoch)
            if number == 0:
                if self.monitor.is_over:
                    return
                state.begin_epoch()
                self._draw_order()
            batch = self.order[number * self.rows_per_step : (number + 1) * self.rows_per_step]
            set_rate(step)
            self.ranks.begin(step)
            value = self._step(batch, epoch + 1)
            state.epoch_total += float(value) * float(self.samples.terms[batch].sum())
            ends = number == self.per_epoch - 1
            measured = self.monitor.end_epoch(float(state.epoch_total / self.samples.terms.sum())) if ends else None
            yield Progress(self.descent.layer, epoch + 1, epochs, step + 1, steps, value, measured)

    def _draw_order(self) -> None:
        rows = len(self.samples.inputs)
        self.order = self.state.random.permutation(rows) if self.shuffles else np.arange(rows)

    def _step(self, batch: Array, epoch: int) -> float:
        """Draw the ranks, and take a step on some rows; returns the objective before it."""
        adapters, history = self.ranks.adapters, self.state.history
        rank = self.ranks.draw(self.state.random, len(batch))
        if rank is None and adapters and self.checkpoint is not None:
            raise ArgumentError("rank_schedule must return a rank, got None: the checkpoint lacks the adapters' generators")
        try:
            value = self._descend(batch, rank if adapters else None)
        except NonFiniteError as error:
            raise stopped(error, len(history.step_losses) + 1, epoch) from error
        history.add_step(value, adapters, self.descent.run)
        return value

    def _descend(self, batch: Array, rank: Rank | None) -> float:
        """A step, in one pass or in several."""
        if len(batch) <= self.batch_size:
            return self.descent.step(*self._portion(batch, rank))
        pieces = [slice(start, start + self.batch_size) for start in range(0, len(batch), self.batch_size)]
        ranks = ranks_of_pieces(rank, self.ranks.adapters, len(batch), pieces)
        return self.descent.accumulated_step(
            [self._portion(batch[piece], own) for piece, own in zip(pieces, ranks, strict=True)]
        )

    def _portion(self, rows: Array, rank: Rank | None) -> Portion:
        """One pass over some rows."""
        forward = self.samples.forward(self.descent.layer, rows, rank)
        targets, row_weights = self.samples.target(rows)
        return Portion(forward, targets, None if self.tasks is None else self.tasks[rows], row_weights)


def stopped(error: NonFiniteError, step: int, epoch: int) -> NonFiniteError:
    """The error of a step, with the step and the epoch."""
    return NonFiniteError(
        f"step {step}, epoch {epoch}: {error}; the parameters are those of the last finite loss. "
        "A smaller learning rate may help"
    )
