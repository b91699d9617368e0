"""What workers run: reading a shard, and differentiating the loss on some of its rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from .._typing import Array, Gradients, Parts
from ..base import Layer, pending
from ..errors import ArgumentError
from ..functions.losses import Loss
from ..training.averaging import Portion, Weights, averages_by_task
from ..training.moment import Moment, fingerprint
from ..training.nested_dropout import ranked
from ..training.samples import Samples, checked_samples
from . import replicas
from ._cache import Recent
from .replicas import Given, Source

Loader: TypeAlias = Callable[[], Any]
"""Reads a shard: a picklable function without arguments that returns (inputs, targets), (inputs, targets, tasks) or
(inputs, targets, tasks, weights)."""

Ranks: TypeAlias = Sequence[int | Array]
"""For each layer with ranks, in the order of `ranked`: its rank in one pass, or one rank for each sample."""


@dataclass(frozen=True)
class Job:
    """What all tasks of one training run have in common."""

    run: str
    """A unique identifier."""
    source: Source
    fingerprint: str
    loss: Loss
    keep_shards: bool
    with_digests: bool = False
    """Whether the sizes of shards come with digests of their data, for a checkpoint."""
    by_task: bool = False
    """Whether the loss is averaged by task, in which case every shard must have tasks."""

    @classmethod
    def of(cls, model: Layer, replica: Source | None, loss: Loss, **choices: bool) -> Self:
        """The job of a training run; without a replica, the model is sent with every task."""
        source = Given(model) if replica is None else replica
        return cls(uuid.uuid4().hex, source, fingerprint(model), loss, **choices)


class Shard(NamedTuple):
    """A part of the data, represented by the function that reads it."""

    number: int
    loader: Loader

    def __str__(self) -> str:
        return f"shard {self.number}, {self.loader!r},"


class Size(NamedTuple):
    """The size of a shard."""

    terms: Array
    """The number of terms of the loss of each sample, times its weight, of which the largest is 1."""
    scale: float
    """The number by which the weights were divided."""
    digest: str = ""
    """A digest of the data, if it was asked for."""
    tasks: Array | None = None
    """The task of each sample, if the loss is averaged by task."""
    names: frozenset[str | None] | None = None
    """The tasks of the samples; None if they have none, so that each layer uses its current task."""


class ShardGradient(NamedTuple):
    """The loss on some rows of a shard and, if it is finite, its gradients and the trained parts of arrays."""

    loss: float
    gradients: Gradients
    parts: Parts


# The shards by training run. Two runs, so that one can start before the last one has ended.
_shards: Recent[Recent[Samples]] = Recent(2)


def measure(job: Job, shard: Shard, moment: Moment) -> Size:
    """The size of a shard, which is read, and checked against the model and the loss; with a digest of its data."""
    samples = _samples(job, shard, moment)
    averages_by_task("task" if job.by_task else "batch", has_tasks=samples.tasks is not None)
    digest = samples.digest() if job.with_digests else ""
    names = None if samples.tasks is None else frozenset(samples.tasks)
    return Size(samples.terms, samples.scale, digest, samples.tasks if job.by_task else None, names)


def differentiate(
    job: Job, shard: Shard, moment: Moment, rows: Any, weights: Weights | None, ranks: Ranks
) -> ShardGradient:
    """The loss on some rows of a shard, with its gradients: the mean or, with weights, the weighted sum over tasks.

    `ranks` is empty if no layer has ranks.
    """
    samples = _samples(job, shard, moment)
    with (
        replicas.of(job.source, job.fingerprint).at(moment) as model,
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
    ):
        rank = dict(zip(ranked(model), ranks, strict=True)).__getitem__ if ranks else None
        tasks = None if weights is None or samples.tasks is None else samples.tasks[rows]
        targets, row_weights = samples.target(rows)
        portion = Portion(samples.forward(model, rows, rank), targets, tasks, row_weights)
        value, dy = portion.differentiated(job.loss, weights)
        if not np.isfinite(value):
            return ShardGradient(value, {}, {})
        model.backward(dy)
        gradients, parts, _ = pending(model)
        return ShardGradient(value, dict(gradients), dict(parts))


def forget(job: Job) -> None:
    """Drop what this process keeps for a training run that has ended."""
    _shards.drop(job.run)
    replicas.forget(job.fingerprint)


def _samples(job: Job, shard: Shard, moment: Moment) -> Samples:
    if not job.keep_shards:
        return _load(job, shard, moment)
    return _shards.get(job.run, Recent).get(shard.number, lambda: _load(job, shard, moment))


def _load(job: Job, shard: Shard, moment: Moment) -> Samples:
    data = shard.loader()
    try:
        inputs, targets, tasks, weights = (*data, None, None)[: max(len(data), 4)]
    except (TypeError, ValueError):
        raise ArgumentError(
            "a loader must return (inputs, targets), (inputs, targets, tasks) or (inputs, targets, tasks, weights), "
            f"got {data!r}"
        ) from None
    with replicas.of(job.source, job.fingerprint).at(moment) as model:
        samples = checked_samples(model, job.loss, (inputs, targets), tasks, weights)
    # In C order, because the order of summation depends on the memory layout, and the bits on the order.
    return samples._replace(inputs=np.ascontiguousarray(samples.inputs), targets=np.ascontiguousarray(samples.targets))
