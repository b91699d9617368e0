"""`train_pairs`: gradient descent with nested dropout, one step for each pair of an input and a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, Literal

import numpy as np

from .._typing import Array, Generator
from .._validation import finite_float, not_none, one_of, positive_int
from ..base import Layer, training_mode
from ..errors import ArgumentError, NonFiniteError
from ..functions.losses import FunctionLoss, Loss
from .interrupts import Interrupts
from .nested_dropout import rank_per_row, ranked, shared_rank
from .optimizers import SGD
from .sorted_start import SortedStart, StepRanks
from .step import Descent


def train_pairs(
    adapter: Layer,
    inputs: Sequence[Any],
    targets: Sequence[Any],
    epochs: int,
    learning_rate: float,
    loss_function: Loss | Callable[[Array, Array], Any],
    rank_per: Literal["pass", "row"],
    warmup: float | int | None,
    rng: Generator,
) -> list[float]:
    """Train by gradient descent, one step per pair; see `DyLoRAAdapter.train_with_nested_dropout`."""
    schedule = rank_per_row if one_of("rank_per", rank_per, ("pass", "row")) == "row" else shared_rank
    epochs = positive_int("epochs", epochs)
    optimizer = SGD(finite_float("learning_rate", learning_rate))
    loss = loss_function if isinstance(loss_function, Loss) else FunctionLoss(loss_function)
    pairs = _checked_pairs(adapter, loss, inputs, targets)
    first, target = pairs[0]
    if schedule is rank_per_row:
        adapter.new_run(first, rank=rank_per_row(ranked(adapter), np.random.default_rng(0), _rows(first)), training=True)
    started = schedule if warmup is None else SortedStart(warmup, schedule)
    ranks = StepRanks(started, adapter, optimizer, epochs * len(pairs))
    with np.errstate(all="ignore"):
        loss(adapter.predict(first), target)  # raises if a plain function is not a valid loss
    descent = Descent(adapter, loss, optimizer)

    means, steps = [], count()
    with training_mode(adapter, True), Interrupts() as interrupts:
        for epoch in range(1, epochs + 1):
            losses = []
            try:
                for x, target in pairs:
                    ranks.begin(next(steps))
                    forward = partial(adapter.forward, x, rank=ranks.draw(rng, _rows(x)))
                    losses.append(descent.step(forward, target))
                    interrupts.check()
            except NonFiniteError as error:
                raise NonFiniteError(f"epoch {epoch}: {error}; try a smaller learning_rate") from error
            means.append(float(np.mean(losses)))
    return means


def _rows(x: Array) -> int:
    return len(x) if x.ndim > 1 else 1


def _checked_pairs(adapter: Layer, loss: Loss, inputs: Sequence[Any], targets: Sequence[Any]) -> list[tuple[Array, Any]]:
    """Check inputs and targets against the adapter and the loss, and pair them."""
    inputs, targets = _sequence("inputs", inputs), _sequence("targets", targets)
    if len(inputs) != len(targets) or not inputs:
        raise ArgumentError(f"inputs and targets must have the same, non-zero length, got {len(inputs)} and {len(targets)}")
    xs = [adapter.check_input(x, name=f"inputs[{i}]") for i, x in enumerate(inputs)]
    pairs = list(zip(xs, targets, strict=True))
    for i, (x, target) in enumerate(pairs):
        try:
            loss.check(np.broadcast_to(np.zeros((), adapter.dtype), adapter._output_shape(x)), target)
        except ArgumentError as error:
            raise ArgumentError(f"targets[{i}]: {error}") from error
    return pairs


def _sequence(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    not_none(name, values)
    try:
        return tuple(values)
    except TypeError:
        raise ArgumentError(f"{name} must be a sequence of arrays, got {values!r}") from None
