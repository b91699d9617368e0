"""`Run`: what one pass knows. Containers hand it on unread; a layer reads what concerns it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np

from ._typing import Array
from ._validation import fraction, integer
from .errors import ArgumentError

Rank: TypeAlias = int | Array | Callable[[Any], int | Array]
"""A rank for the whole pass; one for each entry of the first axis; or a rule that gives a layer one of the two."""


class Tasks(NamedTuple):
    """The task of each entry of the first axis, grouped once for all layers of a pass."""

    names: tuple[str | None, ...]
    """Each task once, in the order of its first entry; None is the base alone."""
    counts: Array
    """How many entries each has."""
    order: Array | None
    """The entries sorted by task; None where they are already."""
    inverse: Array | None

    @classmethod
    def of(cls, tasks: Iterable[str | None], rows: int) -> Self:
        """The tasks of as many rows; an ArgumentError where they are not."""
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise ArgumentError(f"tasks must be a sequence with a name or None for each row, got {tasks!r}")
        number: dict[str | None, int] = {}
        try:
            codes = np.array([number.setdefault(task, len(number)) for task in tasks], dtype=np.intp)
        except TypeError:  # one of them is not hashable, let alone a name
            raise ArgumentError(f"tasks must hold names or None, got {tasks!r}") from None
        for name in number:
            if not (name is None or isinstance(name, str)):
                raise ArgumentError(f"tasks must hold names or None, got {name!r}")
        if len(codes) != rows:
            raise ArgumentError(f"tasks must have one entry for each of {rows} rows of input, got {len(codes)}")
        order = inverse = None
        if (codes[1:] < codes[:-1]).any():
            order = codes.argsort(kind="stable")
            inverse = np.empty_like(order)
            inverse[order] = np.arange(rows)
        return cls(tuple(number), np.bincount(codes, minlength=len(number)), order, inverse)

    def together(self, x: Array) -> Array:
        """The rows, those of each task together: (rows, ..., size) -> (all rows, size)."""
        x = x if self.order is None else x.take(self.order, axis=0)
        return x.reshape(-1, x.shape[-1])

    def apart(self, y: Array, shape: tuple[int, ...]) -> Array:
        """Rows in the order of the caller, with the leading axes of a shape."""
        y = y.reshape(*shape[:-1], y.shape[-1])
        return y if self.inverse is None else y.take(self.inverse, axis=0)


@dataclass(frozen=True, eq=False)
class Draw:
    """The random choice of a training pass: every layer's rank is at this quantile of its own rank distribution.

    So layers with equal active ranks train at the same rank (Valipour et al. 2022).
    """

    quantile: float | Array
    """In [0, 1): a number, or one for each entry of the first axis."""

    @classmethod
    def of_rows(cls, quantile: float, rows: int) -> Self:
        """The quantiles ``(quantile + i / rows) mod 1``, i from 0 up to `rows` (Rippel et al. 2014).

        Each rank gets its share of the rows, to within one row, and at a uniform quantile each single row's rank is
        distributed as the draw of one rank is.
        """
        return cls((fraction("quantile", quantile) + np.arange(rows) / max(rows, 1)) % 1)

    def __call__(self, layer: Any) -> int | Array:
        """The rank of a layer."""
        rank: int | Array = layer.rank_at(self.quantile)
        return rank


class Ranked(Protocol):
    """A layer that has ranks to choose from, as a schedule of ranks sees it."""

    def rank_at(self, quantile: float) -> int:
        """The active rank at a quantile of the layer's rank distribution."""

    def rank_in(self, run: Run) -> int | Array:
        """The rank that a pass uses in this layer: a number, or one for each entry of the first axis."""


class Run(NamedTuple):
    """What one pass knows. It is made by `Layer.new_run`, and nothing in it changes during the pass."""

    training: bool = False
    tasks: Tasks | None = None
    """None: every layer takes its current task."""
    rank: Rank | None = None
    """None: every layer takes its deployment rank."""
    keep: bool = True
    """Whether a `vjp` will follow. Where none does, a container lets go of each layer's cache before the next runs."""


EVALUATION, INFERENCE = Run(), Run(keep=False)
"""The passes of `forward` in evaluation mode, and of `predict`, of which nothing else is known."""


def checked_rank(rank: Any, rows: int | None) -> Rank | None:
    """A rank as `Run` holds it; an ArgumentError where it is none. `rows` is None for an input without rows."""
    if rank is None or type(rank) is int or callable(rank):
        return rank
    if isinstance(rank, str) or not (isinstance(rank, Iterable) or (isinstance(rank, np.ndarray) and rank.ndim)):
        return integer("rank", rank)
    ranks = np.asarray(rank)
    if ranks.dtype.kind not in "iu" or ranks.shape != (rows,):
        raise ArgumentError(f"rank must be an integer, or one for each of {rows} rows of input, got {rank!r}")
    return ranks
