"""`fit`: minibatch training of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._typing import RNG
from .._validation import generator, instance, positive_int, sequence
from ..base import Layer
from ..errors import ArgumentError, InvalidOperationError
from ..functions.losses import Loss
from .averaging import Average, averages_by_task
from .checkpoint import State, checked_path, rates_of
from .groups import Groups
from .history import History, Progress
from .minibatches import Minibatches
from .monitor import monitor_of
from .nested_dropout import RankSchedule, shared_rank
from .optimizers import Optimizer
from .samples import checked_samples
from .schedules import Schedule, factors_of
from .sorted_start import SortedStart, StepRanks
from .step import Descent
from .validation import ValidationData


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
    tolerance: float = 0.0,
    rank_schedule: RankSchedule | SortedStart = shared_rank,
    callbacks: Iterable[Callable[[Progress], None]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
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
        with weight 0 are left out, as if they were not in `data`; so are rows whose labels the loss ignores.
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
        At least 1. The training ends early after so many epochs in a row that do not lower the best loss: that on the
        validation data, in which case the parameters of the best epoch are put back at the end, or, without `validation`,
        the mean loss of the epoch. The optimizer keeps its last state.
    tolerance : float, default 0
        With `patience`: by how much the best loss must be lowered at least, not negative.
    rank_schedule : callable, default `shared_rank`
        Returns the rank of each step; with `rank_per_row`, each row has a separate rank. A `SortedStart` trains at the
        highest rank first, and sorts the components.
    callbacks : iterable of callables, optional
        Each is called with a `Progress` after each step; an exception ends the training.
    checkpoint : path, optional
        The file in which to save the state of the run, after each epoch and after Ctrl-C. An existing file is replaced.
    resume : bool, default False
        Whether to resume from the checkpoint, if the file exists. `model`, `optimizer` and `rng` are restored, and the run
        ends with the same bits as without the interruption. `epochs` may be larger than before.

    Returns
    -------
    History

    Raises
    ------
    ArgumentError
        If an argument is invalid, or if the checkpoint belongs to a different run, with other data or settings; raised
        before the first step.
    FormatError
        If the checkpoint is damaged. Nothing is changed.
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
    checkpoint = checked_path(checkpoint, resume)
    steps = epochs * -(-len(samples.inputs) // rows_per_step)
    factors, ranks = factors_of(schedule, steps), StepRanks(rank_schedule, model, optimizer, steps, samples.tasks)
    descent = Descent(model, loss, optimizer, clip_norm, Groups.of(groups, decay, optimizer, model.named_parameters()))
    state, sizes, rates = State(random), (batch_size, rows_per_step), rates_of(schedule, optimizer, steps)
    monitor = monitor_of(descent, state, validation, batch_size, patience, tolerance, by_task=by_task)
    training = Minibatches(samples, descent, ranks, state, *sizes, bool(shuffle), by_task, monitor, rates, checkpoint)
    return training.train(epochs, factors, callbacks, resume=resume)


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
