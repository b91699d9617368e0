"""`Run`: the context of one pass. Containers pass it on unread; layers read the fields that they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np

from ._typing import Array
from ._validation import fraction, integer
from .errors import ArgumentError
from .sequences import Past, Spans

Rank: TypeAlias = int | Array | Callable[[Any], int | Array]
"""A rank for the whole pass, a rank for each entry along the first axis, or a function that maps a layer to either."""


class Tasks(NamedTuple):
    """The task of each entry along the first axis, grouped once for all layers of a pass."""

    names: tuple[str | None, ...]
    """The distinct tasks in order of first occurrence; None means the base alone."""
    codes: Array
    """The task of each entry, as an index into the names."""
    counts: Array
    """The number of entries of each task."""
    order: Array | None
    """The indices that sort the entries by task; None if they are sorted already."""
    inverse: Array | None
    """The indices that undo `order`."""

    @classmethod
    def of(cls, tasks: Iterable[str | None], rows: int) -> Self:
        """Check and group a sequence of tasks, which must have length `rows`."""
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise ArgumentError(f"tasks must be a sequence with a name or None for each row, got {tasks!r}")
        number: dict[str | None, int] = {}
        try:
            codes = np.array([number.setdefault(task, len(number)) for task in tasks], dtype=np.intp)
        except TypeError:  # an entry is not hashable, so it is not a name
            raise ArgumentError(f"tasks must contain names or None, got {tasks!r}") from None
        if not set(map(type, number)) <= {str, type(None)}:
            for name in number:
                if not (name is None or isinstance(name, str)):
                    raise ArgumentError(f"tasks must contain names or None, got {name!r}")
        if len(codes) != rows:
            raise ArgumentError(f"tasks must have one entry for each of {rows} rows of input, got {len(codes)}")
        return cls.coded(tuple(number), codes)

    @classmethod
    def coded(cls, names: tuple[str | None, ...], codes: Array) -> Self:
        """The tasks of entries, each given as an index into the names."""
        return cls(names, codes, np.bincount(codes, minlength=len(names)), *sorting(codes))

    def spread(self, lengths: Array) -> Tasks:
        """The tasks of the rows of sequences, given those of the sequences and their lengths."""
        return self.coded(self.names, self.codes.repeat(lengths))


def sorting(codes: Array) -> tuple[Array | None, Array | None]:
    """The indices that sort the codes, stably, and those that undo it; None if the codes are sorted already."""
    if (codes[1:] >= codes[:-1]).all():
        return None, None
    order = codes.argsort(kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return order, inverse


LAST_QUANTILE = math.nextafter(1.0, 0.0)
"""The quantile of the highest rank that is ever drawn."""


@dataclass(frozen=True, eq=False)
class Draw:
    """The random choice of a training pass: the rank of each layer is this quantile of the layer's rank distribution.

    Layers with equal active ranks therefore train at the same rank (Valipour et al. 2022).
    """

    quantile: float | Array
    """In [0, 1): a number, or one for each entry along the first axis."""

    @classmethod
    def of_rows(cls, quantile: float, rows: int) -> Self:
        """The quantiles ``(quantile + i / rows) mod 1`` for i = 0, ..., rows - 1 (Rippel et al. 2014).

        The number of rows at each rank is proportional to its probability, to within one row. If `quantile` is uniform, the
        rank of each row has the same distribution as a single draw.
        """
        return cls((fraction("quantile", quantile) + np.arange(rows) / rows) % 1)

    def __call__(self, layer: Any) -> int | Array:
        """The rank for a layer."""
        rank: int | Array = layer.rank_at(self.quantile)
        return rank


@dataclass(frozen=True, eq=False)
class _OfSequences:
    """The rank of each row of sequences, given the rank of each sequence: a function of the layer, like a draw."""

    rank: Rank
    lengths: Array

    def __call__(self, layer: Any) -> int | Array:
        rank = self.rank(layer) if callable(self.rank) else self.rank
        return rank.repeat(self.lengths) if isinstance(rank, np.ndarray) else rank


class Ranked(Protocol):
    """The interface that rank schedules use: a layer with ranks to choose from."""

    def rank_at(self, quantile: float) -> int:
        """The active rank at a quantile of the layer's rank distribution."""

    def rank_in(self, run: Run) -> int | Array:
        """The rank that a pass uses in this layer: a number, or one for each entry along the first axis."""


class Run(NamedTuple):
    """The context of one pass: made by `Layer.new_run`, and immutable during the pass."""

    training: bool = False
    tasks: Tasks | None = None
    """None: each layer uses its current task."""
    rank: Rank | None = None
    """None: each layer uses its deployment rank."""
    keep: bool = True
    """Whether `vjp` will follow. If not, containers free the cache of each layer before the next layer runs."""
    spans: Spans | None = None
    """The sequences that the rows belong to, for layers that mix the rows of a sequence."""
    past: Past | None = None
    """What such layers keep of earlier passes over the same sequences; they add to it."""
    seed: tuple[int, ...] | None = None
    """The random seed of a training pass, from which layers with dropout derive their masks."""

    def over(self, spans: Spans) -> Run:
        """The run of the rows of sequences, given that of the sequences: each row has its sequence's task and rank."""
        tasks = None if self.tasks is None else self.tasks.spread(spans.lengths)
        by_layer = self.rank is not None and not isinstance(self.rank, int)
        rank = _OfSequences(self.rank, spans.lengths) if by_layer else self.rank  # type: ignore[arg-type]
        return self._replace(tasks=tasks, rank=rank, spans=spans)


TRAINING, EVALUATION, INFERENCE = Run(True), Run(), Run(keep=False)
"""The runs of `forward` in each mode, and of `predict`, without tasks or ranks."""


def checked_rank(rank: Any, rows: int | None) -> Rank | None:
    """Check a rank and convert it to the form that `Run` holds; `rows` is None for an input without rows."""
    if rank is None or type(rank) is int or callable(rank):
        return rank
    if isinstance(rank, str) or not isinstance(rank, Iterable):
        return integer("rank", rank)
    try:
        ranks = np.asarray(rank)
    except ValueError:  # of unequal lengths
        ranks = np.empty(())
    if ranks.dtype.kind not in "iu" or ranks.shape != (rows,):
        rule = " if the input has no rows" if rows is None else f", or an integer for each of {rows} rows of input"
        raise ArgumentError(f"rank must be an integer{rule}, got {rank!r}")
    return ranks
