"""Which rows of each shard a step trains on, and how much each shard counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

from .._typing import Array, Generator
from ..training.averaging import Weights, sums_by_task, weights_of_passes
from .worker import Size


class Piece(NamedTuple):
    """The part of one shard that a step trains on."""

    shard: int
    samples: Any
    """An index along the first axis."""
    weight: float
    """The fraction of the step's terms that this piece holds; its loss is a mean over them, and is weighted by it."""
    size: int
    """The number of samples."""
    task_weights: Weights | None = None
    """The factor of the mean loss of each task in this piece, if the loss is averaged by task."""


@final
class Batches:
    """The division of an epoch into steps: each takes the next `batch_size` samples of every shard that has any left.

    Parameters
    ----------
    sizes : sequence of Size
    batch_size : int or None
        Samples per shard; all of them by default.
    """

    def __init__(self, sizes: Sequence[Size], batch_size: int | None) -> None:
        self.sizes = sizes
        scale = max(size.scale for size in sizes)
        self._terms = [size.terms * (size.scale / scale) for size in sizes]
        largest = max(map(len, self._terms))
        self.batch_size = largest if batch_size is None else batch_size
        self._orders: list[Array] | None = None
        self.terms = float(sum(terms.sum() for terms in self._terms))
        """The number of terms of an epoch, times their weights."""
        self.steps = -(-largest // self.batch_size)
        """Steps per epoch."""

    @property
    def tasks(self) -> frozenset[str | None] | None:
        """The tasks of all shards; None if a shard has none, so that each layer may use its current task."""
        names = [size.names for size in self.sizes if size.names is not None]
        return frozenset[str | None]().union(*names) if len(names) == len(self.sizes) else None

    def shuffle(self, random: Generator) -> None:
        """Draw an order of the samples of each shard, from the first shard to the last."""
        self._orders = [random.permutation(len(terms)) for terms in self._terms]

    def at(self, step: int) -> tuple[list[Piece], float]:
        """The pieces of a step, in the order of the shards, and their number of terms; steps count from 0 in each epoch."""
        chosen = slice(step * self.batch_size, (step + 1) * self.batch_size)
        pieces = []
        for shard, terms in enumerate(self._terms):
            samples = chosen if self._orders is None else self._orders[shard][chosen]
            if len(counted := terms[samples]):
                pieces.append(Piece(shard, samples, float(counted.sum()), len(counted)))
        total = sum(piece.weight for piece in pieces)
        shares = [piece._replace(weight=piece.weight / total) for piece in pieces]
        return self._with_task_weights(shares), total

    def _with_task_weights(self, pieces: list[Piece]) -> list[Piece]:
        terms = [
            sums_by_task(self._terms[piece.shard][piece.samples], tasks[piece.samples])
            for piece in pieces
            if (tasks := self.sizes[piece.shard].tasks) is not None
        ]
        if not terms:
            return pieces
        weights = weights_of_passes([(piece.weight, own) for piece, own in zip(pieces, terms, strict=True)])
        return [piece._replace(task_weights=own) for piece, own in zip(pieces, weights, strict=True)]
