"""Estimators with one adapter per layer: which adapter, and at which rank it is deployed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Self

from sklearn.utils.validation import check_is_fitted

from .._typing import Generator
from .._validation import ascending_ranks, integer, one_of, positive_int
from ..adapters import DoRAAdapter, DyLoRAAdapter, LoRAAdapterBase, StandardLoRAAdapter
from ..errors import ArgumentError, InvalidOperationError
from ..layers import AffineLayer
from ..models.finding import find
from ..training.nested_dropout import RankSchedule, shared_rank
from ..training.sorted_start import SortedStart
from ..training.sorting import checked_warmup
from .names import alpha_of
from .networks import nested_ranks, rank_and_alpha
from .objectives import Samples
from .trained import TrainedEstimator


class OneAdapterEstimator(TrainedEstimator):
    """An estimator with the parameters `adapter`, `rank`, `alpha`, `active_ranks` and `sorted_start`.

    Attributes
    ----------
    active_ranks_ : tuple of int
        The ranks that can be deployed; empty for adapters other than DyLoRA.
    """

    active_ranks_: tuple[int, ...]
    _adapters: ClassVar[Mapping[str, Callable[..., LoRAAdapterBase]]] = {
        "standard": StandardLoRAAdapter,
        "dylora": DyLoRAAdapter,
        "dora": DoRAAdapter,
    }
    """The values of `adapter`."""

    def _check_adapter(self) -> None:
        one_of("adapter", self.adapter, tuple(self._adapters))
        positive_int("rank", self.rank)
        alpha_of(self.alpha)
        self._trained_ranks()
        self._ranks()

    def _ranks(self) -> RankSchedule | SortedStart:
        """The rank schedule of a new training run: for DyLoRA, with a sorted start if the parameter asks for one."""
        if self.sorted_start is None:
            return shared_rank
        start = SortedStart(checked_warmup(self.sorted_start, "sorted_start"))
        return start if self.adapter == "dylora" else shared_rank

    def _trained_ranks(self) -> tuple[int, ...]:
        """The ranks that DyLoRA trains; empty for other adapters."""
        if self.adapter != "dylora":
            return ()
        ranks = range(1, self.rank + 1) if self.active_ranks is None else self.active_ranks
        return ascending_ranks("active_ranks", ranks, self.rank)

    def _factory(self, samples: Samples, rng: Generator) -> Callable[[AffineLayer], LoRAAdapterBase]:
        return partial(self._adapted, rng=rng)

    def _adapted(self, layer: AffineLayer, rng: Generator) -> LoRAAdapterBase:
        rank, alpha = rank_and_alpha(layer, self.rank, alpha_of(self.alpha))
        choices: dict[str, Any] = {}
        if self.adapter == "dylora":
            choices["active_ranks"], choices["rank_distribution"] = nested_ranks(self._trained_ranks(), rank)
        return self._adapters[self.adapter](layer, rank, alpha=alpha, rng=rng, **choices)

    def set_deployment_rank(self, rank: int) -> Self:
        """Choose the rank for predictions, and for merging, without retraining.

        Parameters
        ----------
        rank : int
            One of the trained ranks; a smaller layer uses its full rank.

        Returns
        -------
        self

        Raises
        ------
        InvalidOperationError
            If `adapter` is not ``"dylora"``.
        ArgumentError
            If the rank was not trained.
        """
        check_is_fitted(self, "model_")
        adapters = find(self.model_, DyLoRAAdapter).values()
        if not adapters:
            raise InvalidOperationError('set_deployment_rank needs an estimator fitted with adapter="dylora"')
        if integer("rank", rank) not in self.active_ranks_:
            raise ArgumentError(f"rank must be one of the trained ranks {self.active_ranks_}, got {rank}")
        for adapter in adapters:
            adapter.set_deployment_rank(min(rank, adapter.max_rank))
        return self
