"""`fit`: minibatch training of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np

from .._typing import RNG, Array, Generator
from .._validation import function, generator, instance, positive_int, real_array, sequence
from ..base import Layer, training_mode
from ..errors import ArgumentError, InvalidOperationError, NonFiniteError
from ..functions.losses import Loss
from ..run import Rank, Ranked, Run
from .interrupts import Interrupts
from .nested_dropout import RankSchedule, ranked, shared_rank
from .optimizers import Optimizer
from .schedules import Schedule, factors_of, scheduled
from .step import Descent


@dataclass(frozen=True)
class Progress:
    """The state of a training run after a step, as passed to callbacks."""

    model: Layer
    epoch: int
    """Counted from 1."""
    epochs: int
    step: int
    """Counted from 1, over all epochs."""
    steps: int
    loss: float
    """The objective on this step's batch, before the step."""

    @property
    def is_epoch_end(self) -> bool:
        """Whether this was the last step of an epoch."""
        return self.step * self.epochs == self.epoch * self.steps


@dataclass
class History:
    """The record of a training run, which `fit` returns."""

    step_losses: list[float] = field(default_factory=list)
    """The objective on each step's batch, before the step."""
    epoch_losses: list[float] = field(default_factory=list)
    """The mean objective over the rows of each epoch."""
    ranks: list[tuple[int, ...]] = field(default_factory=list)
    """The training ranks of each step, one per DyLoRA adapter; none for adapters with a rank per row."""

    def add_step(self, loss: float, adapters: Sequence[Ranked], run: Run | None) -> None:
        """Record a step: its loss, and the ranks that its pass used."""
        ranks = [] if run is None else [adapter.rank_in(run) for adapter in adapters]
        self.step_losses.append(loss)
        self.ranks.append(tuple(rank for rank in ranks if not isinstance(rank, np.ndarray)))


def fit(
    model: Layer,
    data: tuple[Any, Any],
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    *,
    tasks: Iterable[str | None] | None = None,
    shuffle: bool = True,
    rng: RNG = None,
    schedule: Schedule | None = None,
    rank_schedule: RankSchedule = shared_rank,
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
    shuffle : bool, default True
        Whether to reshuffle the rows before each epoch.
    rng : seed or numpy.random.Generator, optional
        For the order of the rows and for the ranks.
    schedule : callable, optional
        Returns a factor of the learning rate, at least 0, given the fraction of the steps that are done: a schedule such as
        `lora_np.training.LinearDecay`, or a function. All factors are computed before the first step, and the optimizer's
        learning rate is restored at the end, even after an error. By default, the learning rate is left alone.
    rank_schedule : callable, default `shared_rank`
        Returns the rank of each step; with `rank_per_row`, each row has a separate rank.
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
    generators are those of the same step. A second Ctrl-C ends it at once.

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
    samples = checked_samples(model, loss, data, tasks)
    rows = len(samples.inputs)
    epochs, batch_size = positive_int("epochs", epochs), positive_int("batch_size", batch_size)
    random = generator(rng)
    function("rank_schedule", rank_schedule)
    steps = epochs * -(-rows // batch_size)
    factors = factors_of(schedule, steps)
    training = _Training(samples, Descent(model, loss, optimizer), rank_schedule, random)
    history = training.history
    with training_mode(model, True), scheduled(optimizer, factors) as set_rate, Interrupts() as interrupts:
        for epoch in range(1, epochs + 1):
            order, total = random.permutation(rows) if shuffle else np.arange(rows), 0.0
            for start in range(0, rows, batch_size):
                batch = order[start : start + batch_size]
                set_rate(len(history.step_losses))
                value = training.step(batch, epoch)
                total += value * len(batch)
                progress = Progress(model, epoch, epochs, len(history.step_losses), steps, value)
                for callback in callbacks:
                    callback(progress)
                interrupts.check()
            history.epoch_losses.append(total / rows)
    return history


@final
class _Training:
    """The steps of a training run, and their record."""

    def __init__(self, samples: Samples, descent: Descent, rank_schedule: RankSchedule, random: Generator) -> None:
        self.samples = samples
        self.descent = descent
        self.rank_schedule = rank_schedule
        self.random = random
        self.adapters = ranked(descent.layer)
        self.history = History()

    def step(self, batch: Array, epoch: int) -> float:
        """Draw the ranks, and take a step on some rows; returns the objective before it."""
        rank = self.rank_schedule(self.adapters, self.random, len(batch))
        forward = self.samples.forward(self.descent.layer, batch, rank if self.adapters else None)
        try:
            value = self.descent.step(forward, self.samples.targets[batch])
        except NonFiniteError as error:
            raise stopped(error, len(self.history.step_losses) + 1, epoch) from error
        self.history.add_step(value, self.adapters, self.descent.run)
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


class Samples(NamedTuple):
    """Checked training data, with one row per sample."""

    inputs: Array
    targets: Array
    tasks: Array | None

    def forward(self, model: Layer, rows: Any, rank: Rank | None = None) -> Callable[[], Array]:
        """A function that runs the forward pass over the given rows."""
        return partial(model.forward, self.inputs[rows], tasks=None if self.tasks is None else self.tasks[rows], rank=rank)


def checked_samples(model: Layer, loss: Loss, data: tuple[Any, Any], tasks: Iterable[str | None] | None) -> Samples:
    """Check the data against the model and the loss, and convert the arrays."""
    try:
        inputs, targets = data
    except (TypeError, ValueError):
        raise ArgumentError("data must be a pair (inputs, targets)") from None
    inputs = model.check_input(inputs, name="inputs")
    targets = real_array("targets", targets)
    if inputs.ndim < 2 or targets.ndim < 1 or len(inputs) != len(targets) or not len(inputs):
        raise ArgumentError(
            "data must have the same, non-zero number of rows in inputs and targets, "
            f"got shapes {inputs.shape} and {targets.shape}"
        )
    row_tasks = None
    if tasks is not None:
        names = sequence("tasks", tasks, "names or None")
        model.new_run(inputs, tasks=names)
        row_tasks = np.array(names, dtype=object)
    # Check all targets at once, against placeholder predictions: only their shape matters.
    loss.check(np.broadcast_to(np.zeros((), model.dtype), model._output_shape(inputs)), targets)
    return Samples(inputs, targets, row_tasks)


def stopped(error: NonFiniteError, step: int, epoch: int) -> NonFiniteError:
    """The error of a step, with the step and the epoch."""
    return NonFiniteError(
        f"step {step}, epoch {epoch}: {error}; the parameters are those of the last finite loss. "
        "A smaller learning rate may help"
    )
