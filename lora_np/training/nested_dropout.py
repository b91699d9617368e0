"""Nested dropout: schedules that choose the ranks of a training pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from .._typing import Generator
from ..base import Layer, listeners
from ..errors import ArgumentError
from ..run import Draw, Rank, Ranked, checked_rank

RankSchedule: TypeAlias = Callable[[Sequence[Ranked], Generator, int], Rank | None]
"""Returns the rank of a step, given the DyLoRA adapters and the tasks with ranks, a random generator, and the number of
rows."""


def ranked(model: Layer) -> list[Ranked]:
    """The layers of a model that have ranks to choose from, in the order of the pass."""
    return [layer for layer in listeners(model).values() if layer.listens_to == "rank"]


def current_tasks(model: Layer) -> set[str]:
    """The current tasks of the layers of a model that have tasks."""
    return {layer.current_task for layer in listeners(model).values() if layer.listens_to == "tasks"}


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
