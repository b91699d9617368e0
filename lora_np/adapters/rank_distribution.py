"""`RankDistribution`: the active ranks of a DyLoRA adapter, and the probability of each in training."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, final, overload

import numpy as np

from .._typing import Array
from .._validation import ascending_ranks, finite_float, fraction, integer, real_array
from ..errors import ArgumentError


@final
@dataclass(frozen=True)
class RankDistribution:
    """Active ranks, each with a probability.

    Parameters
    ----------
    ranks : tuple of int
        Strictly ascending, at least 1.
    probabilities : tuple of float
        One for each rank; they sum to one.
    """

    ranks: tuple[int, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def of(cls, ranks: Sequence[int], max_rank: int, weights: Sequence[float] | None = None) -> Self:
        """Check ranks in 1..max_rank, and give them probabilities proportional to `weights`, by default uniform."""
        active = ascending_ranks("active_ranks", ranks, max_rank)
        return cls(active, _probabilities(weights, len(active)))

    @overload
    def at(self, quantile: float) -> int: ...
    @overload
    def at(self, quantile: Array) -> Array: ...
    def at(self, quantile: float | Array) -> int | Array:
        """The rank at a quantile in [0, 1), or at each of several: the inverse of the cumulative distribution."""
        if isinstance(quantile, np.ndarray):
            return np.array(self.ranks)[np.searchsorted(self._cumulative, quantile, side="right")]
        return self.ranks[bisect_right(self._cumulative, fraction("quantile", quantile))]

    @cached_property
    def _cumulative(self) -> list[float]:
        sums = np.cumsum(self.probabilities)
        cumulative: list[float] = (sums / sums[-1]).tolist()  # exactly 1 from the last rank of non-zero probability
        return cumulative

    def previous(self, rank: int) -> int:
        """The next smaller active rank; 0 for the smallest."""
        index = self.ranks.index(rank)
        return self.ranks[index - 1] if index else 0

    def check(self, rank: object) -> None:
        """Raise ArgumentError if a rank, or one of an array of ranks, is not active."""
        each = rank.tolist() if isinstance(rank, np.ndarray) else [integer("rank", rank)]
        inactive = set(each).difference(self.ranks)
        if inactive:
            raise ArgumentError(f"rank must be one of the active ranks {self.ranks}, got {min(inactive)}")

    def up_to(self, max_rank: int) -> RankDistribution:
        """The distribution for an adapter with fewer components: `max_rank` replaces all ranks above it."""
        kept = [rank for rank in self.ranks if rank <= max_rank]
        if len(kept) == len(self.ranks):
            return self
        ranks = kept if max_rank in kept else [*kept, max_rank]
        weights = [*self.probabilities[: len(kept)], *[0.0] * (len(ranks) - len(kept))]
        weights[-1] += sum(self.probabilities[len(kept) :])
        return RankDistribution(tuple(ranks), _probabilities(weights, len(ranks)))


def geometric(ranks: Sequence[int], p: float = 0.15) -> tuple[float, ...]:
    """Probabilities proportional to ``p (1 - p)^(rank - 1)``: the geometric distribution of Valipour et al. (2022).

    Parameters
    ----------
    ranks : sequence of int
        The active ranks.
    p : float, default 0.15
        In (0, 1). The larger p is, the more often small ranks are trained.
    """
    ranks = ascending_ranks("ranks", ranks, sys.maxsize)
    p = finite_float("p", p)
    if not 0 < p < 1:
        raise ArgumentError(f"p must lie between 0 and 1, got {p}")
    weights = (1 - p) ** (np.array(ranks) - float(ranks[0]))  # relative to the first, so that they do not all underflow
    return tuple(float(weight) for weight in weights / weights.sum())


def _probabilities(distribution: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Normalise probabilities to a sum of one; those that already sum to one are not changed."""
    weights = np.ones(count) if distribution is None else real_array("rank_distribution", distribution, float)
    if weights.shape != (count,):
        raise ArgumentError(f"rank_distribution must have one probability for each of {count} ranks, got {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ArgumentError(f"rank_distribution must contain probabilities that are not all zero, got {distribution}")
    total = float(weights.sum())
    return tuple(float(weight) for weight in (weights if abs(total - 1) < 1e-12 else weights / total))
