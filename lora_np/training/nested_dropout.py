"""Nested dropout: schedules that choose the ranks of a training pass, and the training loop of DyLoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, Literal, TypeAlias

import numpy as np

from .._typing import Array, Generator
from .._validation import finite_float, not_none, one_of, positive_int
from ..base import Layer, listeners, training_mode
from ..errors import ArgumentError, NonFiniteError
from ..functions.losses import FunctionLoss, Loss
from ..run import Draw, Rank, Ranked, checked_rank
from .interrupts import Interrupts
from .optimizers import SGD
from .sorting import HIGHEST, checked_warmup, sort_components, trained_branches, warmup_length
from .step import Descent

RankSchedule: TypeAlias = Callable[[Sequence[Ranked], Generator, int], Rank | None]
"""Returns the rank of a step, given the DyLoRA adapters of the model, a random generator, and the number of rows."""


def ranked(model: Layer) -> list[Ranked]:
    """The layers of a model that have ranks to choose from, in the order of the pass."""
    return [layer for layer in listeners(model).values() if layer.listens_to == "rank"]


def shared_rank(adapters: Sequence[Ranked], rng: Generator, rows: int) -> Rank:
    """One draw for the whole model: adapters with equal active ranks train at the same rank (Valipour et al. 2022)."""
    return Draw(rng.random())


def rank_per_row(adapters: Sequence[Ranked], rng: Generator, rows: int) -> Rank:
    """A rank for each row of the batch, shared by all adapters, so that each step trains all ranks (Rippel et al. 2014).

    The number of rows at each rank is proportional to its probability, to within one row; a step costs the same as one at
    a single rank. ``docs/dylora-quality.md`` compares it with `shared_rank`. Adapters in frozen mode do not support it.
    """
    return Draw.of_rows(rng.random(), rows)


def independent_ranks(adapters: Sequence[Ranked], rng: Generator, rows: int) -> Rank:
    """A separate draw for each adapter."""
    return {adapter: adapter.rank_at(rng.random()) for adapter in adapters}.__getitem__


def ranks_of_pieces(rank: Rank | None, adapters: Sequence[Ranked], rows: int, pieces: Sequence[slice]) -> list[Rank | None]:
    """The rank of each piece of a batch, given the rank that a schedule returned for all of its rows."""
    if not adapters:
        return [None] * len(pieces)
    rank = checked_rank(rank, rows)
    if rank is None:
        raise ArgumentError("rank_schedule must return a rank, got None: every pass of a step would draw a different one")
    chosen = {adapter: rank(adapter) if callable(rank) else rank for adapter in adapters}

    def of(piece: slice) -> Rank:
        return {adapter: own[piece] if isinstance(own, np.ndarray) else own for adapter, own in chosen.items()}.__getitem__

    return [of(piece) for piece in pieces]


def nested_dropout(
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
    draws_rows = one_of("rank_per", rank_per, ("pass", "row")) == "row"
    epochs = positive_int("epochs", epochs)
    optimizer = SGD(finite_float("learning_rate", learning_rate))
    loss = loss_function if isinstance(loss_function, Loss) else FunctionLoss(loss_function)
    pairs = _checked_pairs(adapter, loss, inputs, targets)
    if draws_rows:
        adapter.new_run(pairs[0][0], rank=_rank_of_rows(0.0, pairs[0][0]), training=True)  # raises in frozen mode
    length = 0 if warmup is None else _checked_length(adapter, warmup, epochs * len(pairs))
    with np.errstate(all="ignore"):
        loss(adapter.predict(pairs[0][0]), pairs[0][1])  # raises if a plain function is not a valid loss
    descent = Descent(adapter, loss, optimizer)

    def rank_of(step: int, x: Array) -> Rank | None:
        return HIGHEST if step < length else _rank_of_rows(rng.random(), x) if draws_rows else None

    means, steps = [], count()
    with training_mode(adapter, True), Interrupts() as interrupts:
        for epoch in range(1, epochs + 1):
            losses = []
            try:
                for x, target in pairs:
                    step = next(steps)
                    if 0 < step == length:
                        sort_components(adapter)
                    losses.append(descent.step(partial(adapter.forward, x, rank=rank_of(step, x)), target))
                    interrupts.check()
            except NonFiniteError as error:
                raise NonFiniteError(f"epoch {epoch}: {error}; try a smaller learning_rate") from error
            means.append(float(np.mean(losses)))
    return means


def _checked_length(adapter: Layer, warmup: float | int, steps: int) -> int:
    """The number of warm-up steps; raises in frozen mode."""
    trained_branches(adapter)
    return warmup_length(checked_warmup(warmup), steps)


def _rank_of_rows(quantile: float, x: Array) -> Rank:
    return Draw.of_rows(quantile, len(x) if x.ndim > 1 else 1)


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
