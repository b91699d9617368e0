"""What runs in a worker: reading a shard, and differentiating the loss on some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._typing import Array, Gradients, Parts
from ..adapters import DyLoRAAdapter
from ..errors import ArgumentError
from ..functions.losses import Loss
from ..layers import Layer
from ..training.fit import Samples, checked_samples
from . import replicas
from ._cache import Recent
from .replicas import Moment, Source

Loader: TypeAlias = Callable[[], Any]
"""Reads a shard: a picklable function without arguments that returns (inputs, targets) or (inputs, targets, tasks)."""


Ranks: TypeAlias = Sequence[int | Array]
"""The rank of each DyLoRA adapter in one pass, or one for each row of it."""


def dylora(model: Layer) -> list[DyLoRAAdapter]:
    """The DyLoRA adapters of a model, in the order of `Layer.walk`."""
    return [layer for layer in model.walk().values() if isinstance(layer, DyLoRAAdapter)]


@dataclass(frozen=True)
class Job:
    """What all tasks of one training have in common."""

    run: str
    """A name that no other training has."""
    source: Source
    fingerprint: str
    loss: Loss
    keep_shards: bool


class Shard(NamedTuple):
    """A part of the data: not the arrays, but how to get them."""

    number: int
    loader: Loader

    def __str__(self) -> str:
        return f"shard {self.number}, {self.loader!r},"


class Size(NamedTuple):
    """The size of a shard."""

    samples: int
    """The length of the first axis."""
    rows_per_sample: int
    """The product of the axes between the first and the last."""


class ShardGradient(NamedTuple):
    """The loss on rows of one shard, its gradients, and the trained parts of arrays; no gradients of an infinite loss."""

    loss: float
    gradients: Gradients
    parts: Parts


# The shards by training. Two: one that ends, and one that begins.
_shards: Recent[Recent[Samples]] = Recent(2)


def measure(job: Job, shard: Shard, moment: Moment) -> Size:
    """Read a shard, check that it fits the model and the loss, and give its size."""
    inputs = _samples(job, shard, moment).inputs
    return Size(len(inputs), int(np.prod(inputs.shape[1:-1])))


def differentiate(job: Job, shard: Shard, moment: Moment, rows: Any, ranks: Ranks) -> ShardGradient:
    """The mean loss on rows of a shard, and its gradients; `ranks` are those of the DyLoRA adapters, in their order."""
    samples = _samples(job, shard, moment)
    with (
        replicas.of(job.source, job.fingerprint).at(moment) as model,
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
    ):
        rank = dict(zip(dylora(model), ranks, strict=True)).__getitem__ if ranks else None
        value, dy = job.loss.value_and_gradient(samples.forward(model, rows, rank)(), samples.targets[rows])
        if np.isfinite(value):
            model.backward(dy)
        return ShardGradient(value, dict(model.gradients), dict(model.pending_parts))


def forget(job: Job) -> None:
    """Drop what this process has kept for a training that has ended."""
    _shards.drop(job.run)
    replicas.forget(job.fingerprint)


def _samples(job: Job, shard: Shard, moment: Moment) -> Samples:
    if not job.keep_shards:
        return _load(job, shard, moment)
    return _shards.get(job.run, Recent).get(shard.number, lambda: _load(job, shard, moment))


def _load(job: Job, shard: Shard, moment: Moment) -> Samples:
    data = shard.loader()
    try:
        inputs, targets, tasks = data if len(data) == 3 else (*data, None)
    except (TypeError, ValueError):
        raise ArgumentError(f"a loader must return (inputs, targets) or (inputs, targets, tasks), got {data!r}") from None
    with replicas.of(job.source, job.fingerprint).at(moment) as model:
        samples = checked_samples(model, job.loss, (inputs, targets), tasks)
    # In one layout, so that sums run in one order whatever the loader's memory order.
    return Samples(np.ascontiguousarray(samples.inputs), np.ascontiguousarray(samples.targets), samples.tasks)
