"""Synchronous data-parallel training: in each step, workers differentiate the shards, and the driver adds the gradients."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from .._typing import RNG
from .._validation import generator, positive_int
from ..base import Layer, training_mode
from ..errors import ArgumentError, NonFiniteError
from ..functions.losses import Loss
from ..training.accumulation import summed
from ..training.averaging import Average, averages_by_task
from ..training.checkpoint import State, checked_path, plan_of, rates_of, read, write
from ..training.fit import check_parts
from ..training.groups import Groups
from ..training.history import History, Progress
from ..training.interrupts import Interrupts
from ..training.minibatches import stopped
from ..training.monitor import Monitor, monitor_of
from ..training.nested_dropout import RankSchedule, shared_rank
from ..training.optimizers import Optimizer
from ..training.schedules import Schedule, factors_of, scheduled
from ..training.sorted_start import SortedStart, StepRanks
from ..training.step import Descent
from ..training.validation import ValidationData
from .batches import Batches, Piece
from .replicas import Source
from .worker import Job, Loader, Ranks, ShardGradient
from .workers import Workers


def fit_shards(
    model: Layer,
    shards: Iterable[Loader],
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None = None,
    *,
    average: Average = "batch",
    replica: Source | None = None,
    executor: Executor | None = None,
    shuffle: bool = True,
    rng: RNG = None,
    schedule: Schedule | None = None,
    groups: Mapping[str, float] | None = None,
    decay: Mapping[str, float] | None = None,
    clip_norm: float | None = None,
    validation: ValidationData | None = None,
    patience: int | None = None,
    tolerance: float = 0.0,
    rank_schedule: RankSchedule | SortedStart = shared_rank,
    callbacks: Iterable[Callable[[Progress], None]] = (),
    retries: int = 2,
    keep_shards: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
) -> History:
    """Train the trainable parameters of a model on data that are split into shards.

    Each step takes samples of every shard. For each shard, one task of the executor receives the trainable parameters and
    computes the mean loss and its gradients; the driver weights them by rows and adds them in the order of the shards,
    whichever task ends first. The result is therefore the same, bit for bit, with one worker, with many, and after retries.

    Parameters
    ----------
    model : Layer
        As in `lora_np.fit`; replicas in workers are separate copies.
    shards : sequence of callables
        Each takes no arguments, is called by the worker that needs the data, and returns (inputs, targets), (inputs,
        targets, tasks) or (inputs, targets, tasks, weights) in the form that `lora_np.fit` takes; tasks may be None. For
        workers in other processes it must be picklable: a module-level function, or
        ``functools.partial(function, "file")``.
    loss : Loss
        A mean over rows or labels, to which weight penalties are added.
    optimizer : Optimizer
        It keeps its state from earlier calls.
    epochs : int
        At least 1.
    batch_size : int, optional
        Samples per shard and step; all of them by default. A shard that has none left sits out the rest of the epoch.
    average : {"batch", "task"}, default "batch"
        As in `lora_np.fit`; with ``"task"``, every shard must have tasks, which the driver then keeps.
    replica : path or callable, optional
        Where each worker process gets the model from, once: a file of `lora_np.save_layer`, or a picklable function
        without arguments. Structure and frozen arrays must equal those of `model`; trainable parameters may differ. By
        default, the model is sent with every task, which is right for threads, and for small models.
    executor : concurrent.futures.Executor, optional
        Where the tasks run; by default in this process, one after the other. See `dask_executor`.
    shuffle : bool, default True
        Whether to draw a new order of the samples of each shard in each epoch.
    rng : seed or numpy.random.Generator, optional
        For sample orders and ranks.
    schedule, groups, decay, clip_norm : optional
        As in `lora_np.fit`; norms are those of the gradients of all shards together. A run with a schedule resumes only
        with the same learning rate and number of steps.
    validation, patience, tolerance : optional
        As in `lora_np.fit`; the driver measures the validation loss.
    rank_schedule : callable, default `lora_np.training.shared_rank`
        Chooses the rank of each step, the same for all shards. With `lora_np.training.rank_per_row`, each sample has a
        separate rank, and a `lora_np.training.SortedStart` trains at the highest rank first.
    callbacks : callables, optional
        Each is called with a `lora_np.training.Progress` after each step; an exception ends the training.
    retries : int, default 2
        How often to retry a failed task, at least 0.
    keep_shards : bool, default True
        Whether worker processes keep the shards that they have read; if not, each step reads them again.
    checkpoint : path, optional
        The file in which to save the state of the run.
    checkpoint_every : int, default 100
        The number of steps between checkpoints; the state after the last step is always saved.
    resume : bool, default False
        Whether to resume from the checkpoint, if the file exists. `model`, `optimizer` and `rng` are restored, and the run
        ends with the same bits as without the interruption.

    Returns
    -------
    History
        As from `lora_np.fit`; it includes the steps before the checkpoint.

    Raises
    ------
    ArgumentError
        If an argument is invalid, a shard does not fit the model or the loss (the message names the shard), `replica`
        provides a different model, or the checkpoint is damaged or belongs to a different run.
    InvalidOperationError
        If the model has no trainable parameters, or if a task still fails after the last retry. In that case the message
        names the step and the shard, and the parameters are those before that step.
    NonFiniteError
        If the loss becomes infinite or NaN. The parameters are those of the last finite loss.

    Notes
    -----
    Let a step take n_k rows of shard k, n = Σ n_k in total, and let g_k be the gradient of the mean loss over the n_k rows.
    Its gradient is ``g = Σ (n_k / n) g_k``, the gradient of the mean loss over all n rows. With a single shard, the result
    equals that of `lora_np.fit` bit for bit. If tasks are averaged separately, the mean loss of task t on its n_kt rows of
    shard k counts as n_kt / Σ_k n_kt.

    If the loss is a mean over labels, as with labels of tokens, some of which may be ignored, n_k is the number of labels
    that count instead. With weights, n_k is the sum of the weights of these rows or labels.

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
    callbacks, by_task = check_parts(model, loss, optimizer, callbacks), averages_by_task(average, has_tasks=True)
    epochs, every = positive_int("epochs", epochs), positive_int("checkpoint_every", checkpoint_every)
    batch_size = None if batch_size is None else positive_int("batch_size", batch_size)
    state, checkpoint = State(generator(rng)), checked_path(checkpoint, resume)
    descent = Descent(model, loss, optimizer, clip_norm, Groups.of(groups, decay, optimizer, model.named_parameters()))
    job = Job.of(model, replica, loss, keep_shards=bool(keep_shards), with_digests=checkpoint is not None, by_task=by_task)
    monitor = monitor_of(descent, state, validation, batch_size or sys.maxsize, patience, tolerance, by_task=by_task)
    with closing(Workers(executor, job, shards, retries)) as workers, training_mode(model, True):
        batches = Batches(workers.measure(model), batch_size)
        ranks = StepRanks(rank_schedule, model, optimizer, epochs * batches.steps, batches.tasks)
        training = _Training(descent, workers, batches, state, bool(shuffle), ranks, monitor, schedule)
        return training.train(epochs, callbacks, checkpoint, every, resume=resume)


@final
@dataclass
class _Training:
    """A training run: its steps and its checkpoints."""

    descent: Descent
    workers: Workers
    batches: Batches
    state: State
    shuffles: bool
    ranks: StepRanks
    monitor: Monitor
    schedule: Schedule | None
    set_rate: Callable[[int], None] = field(init=False)
    rates: Mapping[str, Any] | None = field(init=False)

    def train(
        self,
        epochs: int,
        callbacks: Sequence[Callable[[Progress], None]],
        checkpoint: str | os.PathLike[str] | None,
        every: int,
        *,
        resume: bool,
    ) -> History:
        """Train with the schedule of the learning rate, from the start or from the checkpoint."""
        optimizer, steps = self.descent.optimizer, epochs * self.batches.steps
        self.rates = rates_of(self.schedule, optimizer, steps)
        with scheduled(optimizer, factors_of(self.schedule, steps)) as self.set_rate:
            if resume and checkpoint is not None and os.path.exists(checkpoint):
                self.resume(checkpoint)
            with Interrupts() as interrupts:
                return self.run(epochs, callbacks, checkpoint, every, interrupts)

    def run(
        self,
        epochs: int,
        callbacks: Sequence[Callable[[Progress], None]],
        checkpoint: str | os.PathLike[str] | None,
        every: int,
        interrupts: Interrupts,
    ) -> History:
        """Take all remaining steps, with a checkpoint after each `every` steps and after the last one."""
        plan = self._plan()
        for step in range(self.state.steps, epochs * self.batches.steps):
            if self.monitor.is_over:
                break
            progress = self._step(step, epochs)
            for callback in callbacks:
                callback(progress)
            is_last = progress.step == progress.steps or self.monitor.is_over
            if checkpoint is not None and (is_last or progress.step % every == 0):
                write(checkpoint, plan, self.state, self.descent)
            interrupts.check()
        self.monitor.put_back_best()
        return self.state.history

    def resume(self, checkpoint: str | os.PathLike[str]) -> None:
        """Return to the step at which a checkpoint was written."""
        read(checkpoint, self._plan(), self.state, self.descent)
        with self.state.at_start_of_epoch():
            self._draw_orders()
        self.monitor.resume()

    def _plan(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit."""
        return {
            "model": self.workers.job.fingerprint,
            "shards": [[len(size.terms), size.scale] for size in self.batches.sizes],
            "data": [size.digest for size in self.batches.sizes],
            "batch_size": self.batches.batch_size,
            "shuffle": self.shuffles,
            "average": "task" if self.workers.job.by_task else "batch",
            **self.monitor.plan(),
            **plan_of(self.descent, self.ranks, self.rates, self.state.random),
        }

    def _step(self, step: int, epochs: int) -> Progress:
        """One step; steps count from 0 over all epochs."""
        model, state, batches = self.descent.layer, self.state, self.batches
        epoch, number = divmod(step, batches.steps)
        if number == 0:
            state.begin_epoch()
            self._draw_orders()
        self.set_rate(step)
        self.ranks.begin(step)
        pieces, terms = batches.at(number)
        ranks = self._draw_ranks(pieces)
        try:
            value = _descend(self.descent, self.workers.differentiate(model, pieces, ranks, step + 1))
        except NonFiniteError as error:
            raise stopped(error, step + 1, epoch + 1) from error
        state.history.step_losses.append(value)
        state.history.ranks.append(tuple(rank for rank in ranks[0] if not isinstance(rank, np.ndarray)))
        state.epoch_total += value * terms
        measured = self.monitor.end_epoch(state.epoch_total / batches.terms) if number == batches.steps - 1 else None
        return Progress(model, epoch + 1, epochs, step + 1, epochs * batches.steps, value, measured)

    def _draw_orders(self) -> None:
        if self.shuffles:
            self.batches.shuffle(self.state.random)

    def _draw_ranks(self, pieces: Sequence[Piece]) -> list[Ranks]:
        """The ranks of each piece: one draw for the whole step, which gives each piece as many ranks as it has samples."""
        layers = self.ranks.adapters
        if not layers:
            self.ranks.draw(self.state.random, 0)
            return [()] * len(pieces)
        bits, before = self.state.random.bit_generator, self.state.random.bit_generator.state
        ranks: list[Ranks] = []
        for piece in pieces:
            bits.state = before  # all shards of a step share one draw
            rank = self.ranks.draw(self.state.random, piece.size)
            if rank is None:
                raise ArgumentError("rank_schedule must return a rank, got None: every shard would draw a different one")
            ranks.append([rank(layer) if callable(rank) else rank for layer in layers])
        return ranks


def _descend(descent: Descent, shares: Iterable[tuple[float, ShardGradient]]) -> float:
    """One step on the weighted sum of the losses, added from the first shard to the last; returns the objective."""
    with np.errstate(over="ignore", invalid="ignore"):
        value, gradients, parts = summed((weight, share.loss, share.gradients, share.parts) for weight, share in shares)
        objective = value + float(descent.layer.compute_auxiliary_loss())
    descent.descend(objective, gradients, parts)
    return objective
