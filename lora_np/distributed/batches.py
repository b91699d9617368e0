"""Which rows of each shard a step trains on, and how much each shard counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, final

from .._typing import Array, Generator
from ..training.averaging import Weights, weights_of_passes
from .worker import Size


class Piece(NamedTuple):
    """The part of one shard that a step trains on."""

    shard: int
    samples: Any
    """An index along the first axis."""
    weight: float
    """The fraction of the step's rows that this piece holds; its loss is a mean over rows, and is weighted by it."""
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
    batch_size : int, optional
        Samples per shard; all of them by default.
    """

    def __init__(self, sizes: Sequence[Size], batch_size: int | None) -> None:
        self.sizes = sizes
        largest = max(size.samples for size in sizes)
        self.batch_size = largest if batch_size is None else batch_size
        self._orders: list[Array] | None = None
        self.rows = sum(size.samples * size.rows_per_sample for size in sizes)
        self.steps = -(-largest // self.batch_size)
        """Steps per epoch."""

    def shuffle(self, random: Generator) -> None:
        """Draw an order of the samples of each shard, from the first shard to the last."""
        self._orders = [random.permutation(size.samples) for size in self.sizes]

    def at(self, step: int) -> tuple[list[Piece], int]:
        """The pieces of a step, in the order of the shards, and their number of rows; steps count from 0 in each epoch."""
        start = step * self.batch_size
        counts = [max(0, min(self.batch_size, size.samples - start)) for size in self.sizes]
        shares = [count * size.rows_per_sample for count, size in zip(counts, self.sizes, strict=True)]
        rows = sum(shares)
        chosen = slice(start, start + self.batch_size)
        pieces = [
            Piece(number, chosen if self._orders is None else self._orders[number][chosen], shares[number] / rows, count)
            for number, count in enumerate(counts)
            if count > 0
        ]
        return self._with_task_weights(pieces), rows

    def _with_task_weights(self, pieces: list[Piece]) -> list[Piece]:
        sizes = [self.sizes[piece.shard] for piece in pieces]
        rows = [
            {task: n * size.rows_per_sample for task, n in Counter(size.tasks[piece.samples].tolist()).items()}
            for size, piece in zip(sizes, pieces, strict=True)
            if size.tasks is not None
        ]
        if not rows:
            return pieces
        weights = weights_of_passes([(piece.weight, own) for piece, own in zip(pieces, rows, strict=True)])
        return [piece._replace(task_weights=own) for piece, own in zip(pieces, weights, strict=True)]
