"""Synchronous data-parallel training: in every step, workers differentiate the shards, and the sum is taken here."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import final

import numpy as np

from .._typing import RNG, Array, Part
from .._validation import generator, integer, not_none, positive_int
from ..base import Layer
from ..errors import ArgumentError, ArgumentOutOfRangeError, InvalidOperationError, NonFiniteError
from ..functions.losses import Loss
from ..training.fit import History, Progress, check_parts, stopped
from ..training.nested_dropout import RankSchedule, shared_rank
from ..training.optimizers import Optimizer
from ..training.step import Descent
from .batches import Batches, Piece
from .calls import Call, InProcessExecutor, results
from .checkpoint import State, plan_of, read, write
from .replicas import Given, Moment, Source, fingerprint
from .worker import Job, Loader, Ranks, Shard, ShardGradient, Size, differentiate, dylora, forget, measure


def fit_shards(
    model: Layer,
    shards: Iterable[Loader],
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None = None,
    *,
    replica: Source | None = None,
    executor: Executor | None = None,
    shuffle: bool = True,
    rng: RNG = None,
    rank_schedule: RankSchedule = shared_rank,
    callbacks: Iterable[Callable[[Progress], None]] = (),
    retries: int = 2,
    keep_shards: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
) -> History:
    """Train the trainable parameters of a model on data in many places.

    A step takes samples of every shard. Each shard's mean loss and gradients are computed by one task of the executor, to
    which the trainable parameters travel; here they are weighted by rows and added in the order of the shards, whichever
    task ends first. So one worker, many workers and a repeated task give the same bits.

    Parameters
    ----------
    model : Layer
        As in `lora_np.fit`; it is the only one that is changed.
    shards : sequence of callables
        Each is called without arguments where its data are needed, and returns (inputs, targets) or (inputs, targets,
        tasks), as `lora_np.fit` takes them. For workers in other processes it must be picklable: a module's function, or
        ``functools.partial(function, "file")``.
    loss : Loss
        A mean over rows, to which penalties of the weights are added.
    optimizer : Optimizer
        Its state goes on from earlier calls.
    epochs : int
        At least 1.
    batch_size : int, optional
        How many samples of each shard a step takes; all of them if left out. Where a shard has no more of them in an
        epoch, the others go on without it.
    replica : path or callable, optional
        Where a worker gets the model from, once for each process: a file of `lora_np.save_layer`, or a picklable function
        without arguments. It must give the same structure and the same frozen arrays; the parameters that train do not
        matter. If left out, the model travels with every task: right for threads, and for small models.
    executor : concurrent.futures.Executor, optional
        Where the tasks run; in this process, one after the other, if left out. See `dask_executor`.
    shuffle : bool, default True
        Whether to draw the order of each shard's samples anew for each epoch.
    rng : seed or numpy.random.Generator, optional
        For the orders of the samples and the ranks.
    rank_schedule : callable, default `lora_np.training.shared_rank`
        Gives the rank of each step, for all shards; `lora_np.training.rank_per_row`
        gives the rows of each shard ranks of their own.
    callbacks : callables
        Each is called with a `lora_np.training.Progress` after each step; an exception from one ends the training.
    retries : int, default 2
        How often to repeat a task that failed, at least 0.
    keep_shards : bool, default True
        Whether worker processes keep the shards that they have read. Otherwise each step reads them.
    checkpoint : path, optional
        The file in which to save the state of the training.
    checkpoint_every : int, default 100
        After how many steps; the last step is saved in any case.
    resume : bool, default False
        Whether to go on from the checkpoint where that file exists. The training ends with the bits with which it would
        have ended without the interruption; `model`, `optimizer` and `rng` are brought to where they were.

    Returns
    -------
    History
        As from `lora_np.fit`, with the steps before the checkpoint.

    Raises
    ------
    ArgumentError
        Bad input, data that do not fit (the message names the shard), a replica of another model, or a checkpoint of
        another training.
    InvalidOperationError
        Nothing in the model trains; or a task failed too often: the message names step and shard, and the parameters are
        those before that step.
    NonFiniteError
        The loss is infinite or NaN. The parameters are those with which it was last finite.

    Notes
    -----
    With n_k rows of shard k in a step, n = Σ n_k and g_k the gradient of the mean loss over them, the step's gradient is
    ``g = Σ (n_k / n) g_k``: that of the mean over all n rows. With one shard it is `lora_np.fit` to the bit.

    Examples
    --------
    >>> import numpy as np
    >>> from functools import partial
    >>> from lora_np import SGD, DenseLayer, MeanSquaredError
    >>> from lora_np.distributed import fit_shards
    >>> def shard(seed):
    ...     x = np.random.default_rng(seed).normal(size=(16, 3))
    ...     return x, x @ np.ones((3, 1))
    >>> shards = [partial(shard, seed) for seed in range(4)]
    >>> history = fit_shards(DenseLayer(3, 1, rng=0), shards, MeanSquaredError(), SGD(0.1), epochs=100, rng=0)
    >>> history.epoch_losses[-1] < 1e-3
    True
    """
    callbacks = tuple(callbacks)
    check_parts(model, loss, optimizer, callbacks)
    epochs, every = positive_int("epochs", epochs), positive_int("checkpoint_every", checkpoint_every)
    batch_size = None if batch_size is None else positive_int("batch_size", batch_size)
    loaders = _checked_loaders(shards)
    if executor is not None and not isinstance(executor, Executor):
        raise ArgumentError(f"executor must be a concurrent.futures.Executor, got {executor!r}")
    if integer("retries", retries) < 0:
        raise ArgumentOutOfRangeError(f"retries must be at least 0, got {retries}")
    if resume:
        not_none("checkpoint", checkpoint)
    source: Source = Given(model) if replica is None else replica
    job = Job(uuid.uuid4().hex, source, fingerprint(model), loss, bool(keep_shards))
    place = InProcessExecutor() if executor is None else executor
    workers = _Workers(place, job, [Shard(*pair) for pair in enumerate(loaders)], retries)
    with closing(workers), model.training_mode(True):
        sizes = workers.measure(model)
        batches = Batches(sizes, max(size.samples for size in sizes) if batch_size is None else batch_size)
        state, descent = State(generator(rng)), Descent(model, loss, optimizer)
        training = _Training(descent, workers, batches, state, bool(shuffle), rank_schedule)
        plan = {
            "model": job.fingerprint,
            "shards": [list(size) for size in sizes],
            "batch_size": batches.size,
            "shuffle": training.shuffles,
            "loss": type(loss).__name__,
            "optimizer": plan_of(optimizer),
            "rng": type(state.random.bit_generator).__name__,
        }
        if resume and checkpoint is not None and os.path.exists(checkpoint):
            read(checkpoint, plan, state, descent)
            training.repeat_orders()
        for step in range(state.steps, epochs * batches.steps):
            progress = training.step(step, epochs)
            for callback in callbacks:
                callback(progress)
            if checkpoint is not None and (progress.step == progress.steps or progress.step % every == 0):
                write(checkpoint, plan, state, descent)
        return state.history


@dataclass
class _Training:
    """What a step needs."""

    descent: Descent
    workers: _Workers
    batches: Batches
    state: State
    shuffles: bool
    rank_schedule: RankSchedule

    def step(self, step: int, epochs: int) -> Progress:
        """One step, counted from 0 over all epochs."""
        model, state, batches = self.descent.layer, self.state, self.batches
        epoch, number = divmod(step, batches.steps)
        if number == 0:
            self._begin_epoch()
        pieces, rows = batches.at(number)
        ranks = self._draw_ranks(pieces)
        try:
            value = _descend(self.descent, self.workers.differentiate(model, pieces, ranks, step + 1))
        except NonFiniteError as error:
            raise stopped(error, step + 1, epoch + 1) from error
        state.history.step_losses.append(value)
        state.history.ranks.append(tuple(rank for rank in ranks[0] if not isinstance(rank, np.ndarray)))
        state.epoch_total += value * rows
        if number == batches.steps - 1:
            state.history.epoch_losses.append(state.epoch_total / batches.rows)
        return Progress(model, epoch + 1, epochs, step + 1, epochs * batches.steps, value)

    def _begin_epoch(self) -> None:
        self.state.epoch_random, self.state.epoch_total = self.state.random.bit_generator.state, 0.0
        if self.shuffles:
            self.batches.shuffle(self.state.random)

    def repeat_orders(self) -> None:
        """Draw the orders of the present epoch once more."""
        bits = self.state.random.bit_generator
        present, bits.state = bits.state, self.state.epoch_random
        if self.shuffles:
            self.batches.shuffle(self.state.random)
        bits.state = present

    def _draw_ranks(self, pieces: Sequence[Piece]) -> list[Ranks]:
        """The rank of each adapter, for each piece: one draw for all, spread over the rows of each shard's own pass."""
        adapters = dylora(self.descent.layer)
        if not adapters:
            self.rank_schedule(adapters, self.state.random, 0)
            return [()] * len(pieces)
        bits, before = self.state.random.bit_generator, self.state.random.bit_generator.state
        ranks: list[Ranks] = []
        for piece in pieces:
            bits.state = before  # every shard of a step has the same draw
            rank = self.rank_schedule(adapters, self.state.random, piece.size)
            if rank is None:
                raise ArgumentError("rank_schedule must return a rank, or every shard would draw its own")
            ranks.append([rank(adapter) if callable(rank) else rank for adapter in adapters])
        return ranks


@final
class _Workers:
    """The executor, with what all of its tasks have in common."""

    def __init__(self, executor: Executor, job: Job, shards: Sequence[Shard], retries: int) -> None:
        self._executor = executor
        self._job = job
        self._shards = shards
        self._retries = retries

    def close(self) -> None:
        """Drop what this process has kept for the tasks that ran in it."""
        forget(self._job)

    def measure(self, model: Layer) -> list[Size]:
        """The sizes of the shards, which are read and checked."""
        moment = Moment.of(model)
        calls = [Call(str(shard), measure, (self._job, shard, moment)) for shard in self._shards]
        return list(results(self._executor, calls, self._retries))

    def differentiate(
        self, model: Layer, pieces: Sequence[Piece], ranks: Sequence[Ranks], step: int
    ) -> Iterator[tuple[float, ShardGradient]]:
        """The weights and gradients of the pieces of a step, in their order."""
        moment = Moment.of(model)
        tasks = [(self._shards[piece.shard], piece.samples, own) for piece, own in zip(pieces, ranks, strict=True)]
        calls = [Call(str(shard), differentiate, (self._job, shard, moment, *rest)) for shard, *rest in tasks]
        try:
            for piece, gradient in zip(pieces, results(self._executor, calls, self._retries), strict=True):
                yield piece.weight, gradient
        except InvalidOperationError as error:
            raise InvalidOperationError(f"step {step}: {error}; the parameters are those before this step") from error


def _descend(descent: Descent, shares: Iterable[tuple[float, ShardGradient]]) -> float:
    """One step on the weighted sum of the shards' losses, added from the first to the last; returns the objective."""
    value, gradients, parts = 0.0, dict[str, Array](), dict[str, Part]()
    with np.errstate(over="ignore", invalid="ignore"):
        for weight, share in shares:
            value += weight * share.loss
            for name, gradient in share.gradients.items():
                weighted = gradient * weight
                gradients[name] = gradients[name] + weighted if name in gradients else weighted
            parts |= share.parts
        objective = value + float(descent.layer.compute_auxiliary_loss())
    descent.descend(objective, gradients, parts)
    return objective


def _checked_loaders(shards: Iterable[Loader]) -> tuple[Loader, ...]:
    if not isinstance(shards, Iterable):
        raise ArgumentError(f"shards must be a sequence of functions that read data, got {shards!r}")
    loaders = tuple(shards)
    for loader in loaders:
        if not callable(loader):
            raise ArgumentError(f"shards must be functions that read data, not the data, got {loader!r}")
    if not loaders:
        raise ArgumentError("shards must hold at least one loader, got none")
    return loaders
