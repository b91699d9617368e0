"""`fit`: minibatch training of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import numpy as np

from .._typing import RNG, Array, Generator
from .._validation import generator, instance, positive_int, sequence
from ..base import Layer, training_mode
from ..errors import ArgumentError, InvalidOperationError, NonFiniteError
from ..functions.losses import Loss
from ..run import Rank
from .averaging import Average, Portion, averages_by_task, rows_with_terms
from .groups import Groups
from .history import History, Progress
from .interrupts import Interrupts
from .nested_dropout import RankSchedule, ranks_of_pieces, shared_rank
from .optimizers import Optimizer
from .samples import Samples, checked_samples
from .schedules import Schedule, factors_of, scheduled
from .sorted_start import SortedStart, StepRanks
from .step import Descent
from .validation import Validation, ValidationData, validation_of


def fit(
    model: Layer,
    data: tuple[Any, Any],
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    *,
    tasks: Iterable[str | None] | None = None,
    average: Average = "batch",
    weights: Any = None,
    shuffle: bool = True,
    rng: RNG = None,
    schedule: Schedule | None = None,
    groups: Mapping[str, float] | None = None,
    decay: Mapping[str, float] | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    validation: ValidationData | None = None,
    patience: int | None = None,
    rank_schedule: RankSchedule | SortedStart = shared_rank,
    callbacks: Iterable[Callable[[Progress], None]] = (),
) -> History:
    """Train the trainable parameters of a model on minibatches.

    Parameters
    ----------
    model : Layer
        Set to training mode during the call; its previous mode is restored afterwards.
    data : (inputs, targets)
        Arrays with one row per sample: inputs of shape (rows, ..., input_size), and targets as `loss` expects them.
    loss : Loss
        The loss to minimise; penalties on the weights are added to it.
    optimizer : Optimizer
        Its state carries over from earlier calls.
    epochs, batch_size : int
        At least 1. The last batch of an epoch may be smaller.
    tasks : sequence of str or None, optional
        The task of each row. Batches mix tasks, and each step trains all tasks in its batch; see `Layer.forward`.
    average : {"batch", "task"}, default "batch"
        Whether the loss is averaged over all rows of a batch, or over those of each task separately, in which case the
        losses of the tasks add up. With ``"task"``, and unless `clip_norm` is given, each task trains as it would on its
        rows of each batch alone; in the same way, the validation loss is the sum of those of the tasks.
    weights : array, shape (rows,), optional
        The weight of each row, not negative: the loss of a step is the weighted mean over its rows, ``Σ w L / Σ w``. Rows
        with weight 0 are left out, as if they were not in `data`.
    shuffle : bool, default True
        Whether to reshuffle the rows before each epoch.
    rng : seed or numpy.random.Generator, optional
        For the order of the rows and for the ranks.
    schedule : callable, optional
        Returns a factor of the learning rate, at least 0, given the fraction of the steps that are done: a schedule such as
        `lora_np.training.LinearDecay`, or a function. All factors are computed before the first step, and the optimizer's
        learning rate is restored at the end, even after an error. By default, the learning rate is left alone.
    groups : mapping of str to float, optional
        Factors of the learning rate, at least 0, by shell pattern of parameter names; the first matching pattern counts.
        ``{"*.matrix_b": 16.0}`` is LoRA+ (Hayou et al. 2024). The decay of `AdamW` is scaled with the learning rate.
    decay : mapping of str to float, optional
        Factors of the optimizer's weight decay, at least 0, by pattern as in `groups`: with ``{"*.bias": 0.0}``, biases do
        not decay. Requires an optimizer with weight decay, such as `AdamW`.
    clip_norm : float, optional
        Greater than 0. Before each step, the gradients of all trained parameters, of all tasks, are scaled down together so
        that their Euclidean norm is at most this (Pascanu et al. 2013).
    accumulate : int, default 1
        The number of forward and backward passes per step, each over `batch_size` rows. A step equals that on a batch of
        all of these rows, in less memory, if the loss is a mean over rows or over the labels that it does not ignore. With
        dropout, each pass draws separate masks.
    validation : (inputs, targets), (inputs, targets, tasks) or (inputs, targets, tasks, weights), optional
        Samples on which to measure the loss after each epoch, as `Layer.predict` sees them: DyLoRA adapters use their
        deployment rank. Penalties on the weights are not included.
    patience : int, optional
        At least 1; requires `validation`. The training ends early after so many epochs in a row that do not lower the best
        validation loss, and the parameters of the best epoch are put back at the end. The optimizer keeps its last state.
    rank_schedule : callable, default `shared_rank`
        Returns the rank of each step; with `rank_per_row`, each row has a separate rank. A `SortedStart` trains at the
        highest rank first, and sorts the components.
    callbacks : iterable of callables
        Each is called with a `Progress` after each step; an exception ends the training.

    Returns
    -------
    History

    Raises
    ------
    ArgumentError
        If an argument is invalid; raised before the first step.
    InvalidOperationError
        If the model has no trainable parameters.
    NonFiniteError
        If the loss becomes infinite or NaN; the parameters are those of the last finite loss.

    Notes
    -----
    Ctrl-C (KeyboardInterrupt) ends the training after the current step and its callbacks: parameters, optimizer and
    generators are those of the same step. A second Ctrl-C ends it at once. After Ctrl-C or an error, the parameters of the
    best epoch are not put back.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import SGD, DenseLayer, MeanSquaredError
    >>> from lora_np.training import fit
    >>> x = np.random.default_rng(0).normal(size=(64, 3))
    >>> history = fit(DenseLayer(3, 1, rng=0), (x, x @ np.ones((3, 1))), MeanSquaredError(), SGD(0.1), 20, 16, rng=0)
    >>> history.epoch_losses[-1] < 1e-3
    True
    """
    callbacks = check_parts(model, loss, optimizer, callbacks)
    samples = checked_samples(model, loss, data, tasks, weights)
    by_task = averages_by_task(average, has_tasks=samples.tasks is not None)
    epochs, batch_size, random = positive_int("epochs", epochs), positive_int("batch_size", batch_size), generator(rng)
    rows_per_step = batch_size * positive_int("accumulate", accumulate)
    steps = epochs * -(-len(samples.inputs) // rows_per_step)
    factors, ranks = factors_of(schedule, steps), StepRanks(rank_schedule, model, optimizer, steps)
    descent = Descent(model, loss, optimizer, clip_norm, Groups.of(groups, decay, optimizer, model.named_parameters()))
    validated = validation_of(model, loss, validation, batch_size, patience, by_task=by_task)
    training = _Training(samples, descent, ranks, random, batch_size, validated, by_task=by_task)
    with training_mode(model, True), scheduled(optimizer, factors) as set_rate, Interrupts() as interrupts:
        training.run(training.steps(epochs, rows_per_step, shuffle, set_rate), callbacks, interrupts)
    if validated is not None:
        validated.put_back_best()
    return training.history


@final
class _Training:
    """The steps of a training run, and their record."""

    def __init__(
        self,
        samples: Samples,
        descent: Descent,
        ranks: StepRanks,
        random: Generator,
        batch_size: int,
        validation: Validation | None,
        *,
        by_task: bool,
    ) -> None:
        self.samples = samples
        self.descent = descent
        self.ranks = ranks
        self.random = random
        self.batch_size = batch_size
        self.validation = validation
        self.tasks = samples.tasks if by_task else None
        self.adapters = ranks.adapters
        self.history = History()

    def run(
        self, steps: Iterator[Progress], callbacks: Iterable[Callable[[Progress], None]], interrupts: Interrupts
    ) -> None:
        """Take the steps, each followed by the callbacks."""
        for progress in steps:
            for callback in callbacks:
                callback(progress)
            interrupts.check()

    def steps(self, epochs: int, rows_per_step: int, shuffle: bool, set_rate: Callable[[int], None]) -> Iterator[Progress]:
        """Take the steps one by one, and measure the validation loss after the last step of each epoch."""
        samples, history = self.samples, self.history
        rows = len(samples.inputs)
        weights = np.ones(rows) if samples.weights is None else samples.weights
        steps = -(-rows // rows_per_step)
        for epoch in range(1, epochs + 1):
            order, total = self.random.permutation(rows) if shuffle else np.arange(rows), 0.0
            for number in range(steps):
                batch = order[number * rows_per_step : (number + 1) * rows_per_step]
                set_rate(len(history.step_losses))
                self.ranks.begin(len(history.step_losses))
                value = self._step(batch, epoch)
                total += value * weights[batch].sum()
                measured = self._end_epoch(float(total / weights.sum())) if number == steps - 1 else None
                yield Progress(self.descent.layer, epoch, epochs, len(history.step_losses), epochs * steps, value, measured)
            if self.validation is not None and self.validation.is_over:
                return

    def _step(self, batch: Array, epoch: int) -> float:
        """Draw the ranks, and take a step on some rows; returns the objective before it."""
        if self.tasks is not None:
            batch = rows_with_terms(self.descent.loss, self.samples.targets, self.tasks, batch)
        rank = self.ranks.draw(self.random, len(batch))
        try:
            value = self._descend(batch, rank)
        except NonFiniteError as error:
            raise stopped(error, len(self.history.step_losses) + 1, epoch) from error
        self.history.add_step(value, self.adapters, self.descent.run)
        return value

    def _descend(self, batch: Array, rank: Rank | None) -> float:
        """A step, in one pass or in several."""
        if len(batch) <= self.batch_size:
            return self.descent.step(*self._portion(batch, rank if self.adapters else None))
        pieces = [slice(start, start + self.batch_size) for start in range(0, len(batch), self.batch_size)]
        ranks = ranks_of_pieces(rank, self.adapters, len(batch), pieces)
        return self.descent.accumulated_step(
            [self._portion(batch[piece], own) for piece, own in zip(pieces, ranks, strict=True)]
        )

    def _portion(self, rows: Array, rank: Rank | None) -> Portion:
        """One pass over some rows."""
        forward = self.samples.forward(self.descent.layer, rows, rank)
        targets, row_weights = self.samples.target(rows)
        return Portion(forward, targets, None if self.tasks is None else self.tasks[rows], row_weights)

    def _end_epoch(self, mean: float) -> float | None:
        """Record an epoch; returns the validation loss after it."""
        self.history.epoch_losses.append(mean)
        if self.validation is None:
            return None
        value = self.validation.measure()
        self.history.validation_losses.append(value)
        return value


def check_parts(
    model: Layer, loss: Loss, optimizer: Optimizer, callbacks: Iterable[Callable[[Progress], None]]
) -> tuple[Callable[[Progress], None], ...]:
    """Check the arguments of `fit` other than the data; returns the callbacks."""
    instance("model", model, Layer, "a layer")
    callbacks = sequence("callbacks", callbacks, "functions")
    if not isinstance(loss, Loss):
        raise ArgumentError(f"loss must be a Loss such as lora_np.MeanSquaredError(), got {loss!r}")
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer must be an Optimizer such as lora_np.Adam(), got {optimizer!r}")
    for callback in callbacks:
        if not callable(callback):
            raise ArgumentError(f"callbacks must be callable, got {callback!r}")
    if not model.supports_training:
        raise InvalidOperationError(f"{model.layer_name} has nothing to train: all of its parameters are frozen")
    return callbacks


def stopped(error: NonFiniteError, step: int, epoch: int) -> NonFiniteError:
    """The error of a step, with the step and the epoch."""
    return NonFiniteError(
        f"step {step}, epoch {epoch}: {error}; the parameters are those of the last finite loss. "
        "A smaller learning rate may help"
    )
