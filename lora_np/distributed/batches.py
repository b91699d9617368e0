"""Which rows of which shard a step trains on, and how much each shard counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

from .._typing import Array, Generator
from .worker import Size


class Piece(NamedTuple):
    """The rows of one shard in one step."""

    shard: int
    samples: Any
    """An index along the first axis."""
    weight: float
    """The share of this piece in the rows of the step; a loss is a mean over rows, so gradients are weighted by it."""
    size: int
    """The number of samples."""


@final
class Batches:
    """Each step takes the next `batch_size` samples of every shard that has some left in this epoch.

    Parameters
    ----------
    sizes : sequence of Size
    batch_size : int
        Of each shard.
    """

    def __init__(self, sizes: Sequence[Size], batch_size: int) -> None:
        self._sizes = sizes
        self.size = batch_size
        self._orders: list[Array] | None = None
        self.rows = sum(size.samples * size.rows_per_sample for size in sizes)
        self.steps = max(-(-size.samples // batch_size) for size in sizes)
        """In one epoch."""

    def shuffle(self, random: Generator) -> None:
        """Draw an order of the samples of each shard, in the order of the shards."""
        self._orders = [random.permutation(size.samples) for size in self._sizes]

    def at(self, step: int) -> tuple[list[Piece], int]:
        """The pieces of a step of the epoch, counted from 0, by shard number; and their rows."""
        start = step * self.size
        counts = [max(0, min(self.size, size.samples - start)) for size in self._sizes]
        shares = [count * size.rows_per_sample for count, size in zip(counts, self._sizes, strict=True)]
        rows = sum(shares)
        chosen = slice(start, start + self.size)
        return [
            Piece(number, chosen if self._orders is None else self._orders[number][chosen], shares[number] / rows, count)
            for number, count in enumerate(counts)
            if count > 0
        ], rows
