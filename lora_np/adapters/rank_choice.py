"""`RankChoice`: the active ranks of an adapter, and the choice of one of them for each pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import overload

import numpy as np

from .._typing import RNG, Array, Parts
from .._validation import generator, integer, one_of
from ..base import Layer, Listener, listeners
from ..errors import InvalidOperationError
from ..layers.lora import LoRALayer
from ..run import LAST_QUANTILE, Draw, Run
from .rank_distribution import RankDistribution


class RankChoice(Listener):
    """Mixin that chooses the rank of a pass: by default, a drawn rank in training and the deployment rank otherwise.

    `DyLoRAAdapter` and the tasks of a `MultiLoRAAdapter` that have ranks share it.
    """

    listens_to = "rank"
    layer_name: str
    mode: str
    """Which components a pass trains: ``"full"``, all up to its rank; ``"frozen"``, the block above the previous rank."""

    def _choose(
        self,
        max_rank: int,
        active_ranks: Sequence[int],
        mode: str = "full",
        rank_distribution: Sequence[float] | None = None,
        rng: RNG = None,
    ) -> None:
        self._ranks = RankDistribution.of(active_ranks, max_rank, rank_distribution)
        self.mode = one_of("mode", mode, ("full", "frozen"))
        self._rng = generator(rng)
        self._deployment_rank = self.active_ranks[-1]

    @property
    def max_rank(self) -> int:
        """The number of components."""
        return self.lora_layer.rank

    @property
    @abstractmethod
    def lora_layer(self) -> LoRALayer:
        """The branch."""

    @property
    def active_ranks(self) -> tuple[int, ...]:
        """The ranks to train and deploy, ascending."""
        return self._ranks.ranks

    @property
    def rank_distribution(self) -> tuple[float, ...]:
        """The probability of each active rank in training."""
        return self._ranks.probabilities

    @property
    def current_deployment_rank(self) -> int:
        """The rank used by `predict`, in evaluation mode and for merging; must be an active rank."""
        return self._deployment_rank

    @current_deployment_rank.setter
    def current_deployment_rank(self, rank: int) -> None:
        self.check_rank(rank)
        self._deployment_rank = int(rank)

    def set_deployment_rank(self, rank: int) -> None:
        """Set `current_deployment_rank`."""
        self.current_deployment_rank = rank

    def check_rank(self, rank: int) -> None:
        """Raise ArgumentError if a rank is not active."""
        self._ranks.check(integer("rank", rank))

    def rank_in(self, run: Run) -> int | Array:
        """The rank that a pass uses: a number, or one for each entry along the first axis."""
        rank = run.rank(self) if callable(run.rank) else run.rank
        if rank is None and run.training:
            raise InvalidOperationError(f"{self.layer_name}: a training pass needs a rank; `new_run` draws one")
        return self._deployment_rank if rank is None else rank

    def trained_part(self, rank: int | Array) -> Parts:
        """The components of the branch that a pass at this rank trains: columns of A, rows of B; empty if it trains all."""
        last = int(rank.max(initial=1)) if isinstance(rank, np.ndarray) else rank
        first = self.trained_from(rank)
        if first == 0 and last == self.max_rank:
            return {}
        part_a, part_b = LoRALayer.parts(first, last)
        return {"matrix_a": part_a, "matrix_b": part_b}

    def nested_branches(self, tasks: Collection[str | None] | None = None) -> list[tuple[LoRALayer, int]]:
        """The branches whose leading components are trained at several ranks, each with the highest rank that is drawn.

        Those of other tasks are left out, if `tasks` is given.

        Raises
        ------
        InvalidOperationError
            In frozen mode, in which a pass at the highest rank trains only some of the components.
        """
        if self.mode == "frozen":
            raise InvalidOperationError(f"{self.layer_name}: mode must be 'full' to sort components, got 'frozen'")
        return [(self.lora_layer, self.rank_at(LAST_QUANTILE))]

    def draw(self) -> Draw:
        """A random quantile, from which every layer in the pass derives its rank."""
        return Draw(self._rng.random())

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError if a rank is not active, or InvalidOperationError for ranks by row in frozen mode."""
        if run.rank is not None:
            self.check_pass(self.rank_in(run), run.keep)

    def check_pass(self, rank: int | Array, keep: bool) -> None:
        """Raise ArgumentError if a rank is not active, or InvalidOperationError for ranks by row in frozen mode."""
        if isinstance(rank, np.ndarray) and self.mode == "frozen" and keep:
            raise InvalidOperationError(
                f"{self.layer_name}: mode must be 'full' if each row has its own rank, got 'frozen', "
                "which trains one block of components per pass"
            )
        self._ranks.check(rank)

    @overload
    def rank_at(self, quantile: float) -> int: ...
    @overload
    def rank_at(self, quantile: Array) -> Array: ...
    def rank_at(self, quantile: float | Array) -> int | Array:
        """The active rank at a quantile in [0, 1) of the rank distribution, or at each of several quantiles."""
        return self._ranks.at(quantile)

    def trained_from(self, rank: int | Array) -> int:
        """The number of leading components that a pass at this rank does not train."""
        return self._ranks.previous(rank) if self.mode == "frozen" and not isinstance(rank, np.ndarray) else 0

    def _rank_details(self) -> dict[str, str]:
        return {
            "dylora.active_ranks": str(list(self.active_ranks)),
            "dylora.current_deployment_rank": str(self._deployment_rank),
            "dylora.mode": self.mode,
        }


def rank_choices(model: Layer) -> dict[str, RankChoice]:
    """The DyLoRA adapters of a model, and the ranks of the tasks that have some, by path."""
    return {path: layer for path, layer in listeners(model).items() if isinstance(layer, RankChoice)}
