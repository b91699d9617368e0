"""`fit`: minibatch training of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .._typing import RNG, Array
from .._validation import generator, positive_int, real_array
from ..base import Layer, training_mode
from ..errors import ArgumentError, InvalidOperationError, NonFiniteError
from ..functions.losses import Loss
from ..run import Rank, Ranked, Run
from .nested_dropout import RankSchedule, ranked, shared_rank
from .optimizers import Optimizer
from .step import Descent


@dataclass(frozen=True)
class Progress:
    """What a callback learns after each step."""

    model: Layer
    epoch: int
    """From 1."""
    epochs: int
    step: int
    """From 1, over all epochs."""
    steps: int
    loss: float
    """The objective of this step's batch, before the step."""

    @property
    def is_epoch_end(self) -> bool:
        """Whether this was the last step of an epoch."""
        return self.step * self.epochs == self.epoch * self.steps


@dataclass
class History:
    """What `fit` returns."""

    step_losses: list[float] = field(default_factory=list)
    """The objective of each step's batch, before the step."""
    epoch_losses: list[float] = field(default_factory=list)
    """Their mean over the rows of each epoch."""
    ranks: list[tuple[int, ...]] = field(default_factory=list)
    """The training ranks of each step, one for each DyLoRA adapter; none if each row has its own."""

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
    rank_schedule: RankSchedule = shared_rank,
    callbacks: Iterable[Callable[[Progress], None]] = (),
) -> History:
    """Train the trainable parameters of a model on minibatches.

    Parameters
    ----------
    model : Layer
        It is in training mode during the call, and in its own mode again afterwards.
    data : (inputs, targets)
        Arrays with one row for each sample: inputs (rows, ..., input_size), targets as `loss` takes them.
    loss : Loss
        What to minimise, to which penalties of the weights are added.
    optimizer : Optimizer
        Its state goes on from earlier calls.
    epochs, batch_size : int
        At least 1. The last batch of an epoch may be smaller.
    tasks : sequence of str or None, optional
        The task of each row: batches are mixed, and each trains all tasks that it holds (`Layer.forward`).
    shuffle : bool, default True
        Whether to draw the order of the rows anew for each epoch.
    rng : seed or numpy.random.Generator, optional
        For the order of the rows and the ranks.
    rank_schedule : callable, default `shared_rank`
        Gives the rank of each step; `rank_per_row` gives each row a rank of its own.
    callbacks : callables
        Each is called with a `Progress` after each step; an exception from one ends the training.

    Returns
    -------
    History

    Raises
    ------
    ArgumentError
        Bad input, before the first step.
    InvalidOperationError
        Nothing in the model trains.
    NonFiniteError
        The loss is infinite or NaN. The parameters are those with which it was last finite.

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
    callbacks = tuple(callbacks)
    check_parts(model, loss, optimizer, callbacks)
    samples = checked_samples(model, loss, data, tasks)
    rows = len(samples.inputs)
    epochs, batch_size = positive_int("epochs", epochs), positive_int("batch_size", batch_size)
    random = generator(rng)
    adapters, descent, history = ranked(model), Descent(model, loss, optimizer), History()
    steps = epochs * -(-rows // batch_size)
    with training_mode(model, True):
        for epoch in range(1, epochs + 1):
            order = random.permutation(rows) if shuffle else np.arange(rows)
            total = 0.0
            for start in range(0, rows, batch_size):
                batch = order[start : start + batch_size]
                rank = rank_schedule(adapters, random, len(batch))
                try:
                    value = descent.step(samples.forward(model, batch, rank if adapters else None), samples.targets[batch])
                except NonFiniteError as error:
                    raise stopped(error, len(history.step_losses) + 1, epoch) from error
                history.add_step(value, adapters, descent.run)
                total += value * len(batch)
                progress = Progress(model, epoch, epochs, len(history.step_losses), steps, value)
                for callback in callbacks:
                    callback(progress)
            history.epoch_losses.append(total / rows)
    return history


def check_parts(model: Layer, loss: Loss, optimizer: Optimizer, callbacks: Iterable[Callable[[Progress], None]]) -> None:
    """Refuse what cannot be trained, or trained with."""
    if not isinstance(loss, Loss):
        raise ArgumentError(f"loss must be a Loss such as lora_np.MeanSquaredError(), got {loss!r}")
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer must be an Optimizer such as lora_np.Adam(), got {optimizer!r}")
    for callback in callbacks:
        if not callable(callback):
            raise ArgumentError(f"callbacks must be callable, got {callback!r}")
    if not model.supports_training:
        raise InvalidOperationError(f"{model.layer_name} has nothing to train: all of its parameters are frozen")


class Samples(NamedTuple):
    """Data that fit a model and a loss, with one row for each sample."""

    inputs: Array
    targets: Array
    tasks: Array | None

    def forward(self, model: Layer, rows: Any, rank: Rank | None = None) -> Callable[[], Array]:
        """The forward pass of these rows."""
        return partial(model.forward, self.inputs[rows], tasks=None if self.tasks is None else self.tasks[rows], rank=rank)


def checked_samples(model: Layer, loss: Loss, data: tuple[Any, Any], tasks: Iterable[str | None] | None) -> Samples:
    """Data in the form that the model and the loss take; an ArgumentError where they do not fit."""
    try:
        inputs, targets = data
    except (TypeError, ValueError):
        raise ArgumentError("data must be a pair (inputs, targets)") from None
    inputs = model.check_input(inputs, name="inputs")
    targets = real_array("targets", targets)
    if inputs.ndim < 2 or targets.ndim < 1 or len(inputs) != len(targets) or not len(inputs):
        raise ArgumentError(
            "data must have as many rows of inputs as of targets, and some: "
            f"got inputs of shape {inputs.shape}, targets of shape {targets.shape}"
        )
    row_tasks = None
    if tasks is not None:
        names = tuple(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else tasks
        model.new_run(inputs, tasks=names)
        row_tasks = np.array(names, dtype=object)
    # All targets are checked at once, against predictions of which only the shape matters.
    loss.check(np.broadcast_to(np.zeros((), model.dtype), (*inputs.shape[:-1], model.output_size)), targets)
    return Samples(inputs, targets, row_tasks)


def stopped(error: NonFiniteError, step: int, epoch: int) -> NonFiniteError:
    """The error of a step, with its place in the training."""
    return NonFiniteError(
        f"step {step}, epoch {epoch}: {error}; the parameters are those of the last finite loss. "
        "A smaller learning rate may help"
    )
