"""`DyLoRASettings`: what a DyLoRAAdapter, or a task with ranks, has besides its branch, as files keep it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, final

from .._validation import finite_float, one_of
from ..adapters.dylora import DyLoRAAdapter
from ..adapters.rank_choice import RankChoice
from ..adapters.rank_distribution import RankDistribution
from ..base import Layer
from ..errors import ArgumentError
from ..layers.lora import LoRALayer
from ..layers.low_rank import SCALINGS


@final
@dataclass(frozen=True)
class DyLoRASettings:
    """The settings of a DyLoRAAdapter, checked. Each is the constructor's argument, or the attribute, of that name.

    Raises
    ------
    ArgumentError
        If a value is not one that a DyLoRAAdapter can have.
    """

    active_ranks: tuple[int, ...]
    alpha: float
    mode: str
    scaling: str
    rank_distribution: tuple[float, ...]
    current_deployment_rank: int

    def __post_init__(self) -> None:
        RankDistribution.of(self.active_ranks, sys.maxsize, self.rank_distribution)
        one_of("mode", self.mode, ("full", "frozen"))
        one_of("scaling", self.scaling, SCALINGS)
        if finite_float("alpha", self.alpha) < 0:
            raise ArgumentError(f"alpha must be at least 0, got {self.alpha}")
        self.check_rank(self.current_deployment_rank, "current_deployment_rank")

    @classmethod
    def of(cls, adapter: RankChoice) -> Self:
        """The settings of an adapter, or of a task."""
        return cls(
            adapter.active_ranks,
            adapter.lora_layer.alpha,
            adapter.mode,
            adapter.lora_layer.scaling_rule,
            adapter.rank_distribution,
            adapter.current_deployment_rank,
        )

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Settings such as `to_json` returns."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise ArgumentError(f"the settings must be {', '.join(names)}, got {values!r}")
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**arguments)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values, by name."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def check_rank(self, rank: Any, name: str = "rank") -> None:
        """Raise ArgumentError if a rank is not active."""
        if isinstance(rank, bool) or not isinstance(rank, int) or rank not in self.active_ranks:
            raise ArgumentError(f"{name} must be one of the active ranks {list(self.active_ranks)}, got {rank!r}")

    def check_branch(self, branch: LoRALayer) -> None:
        """Raise ArgumentError if an active rank exceeds the rank of a branch."""
        RankDistribution.of(self.active_ranks, branch.rank, self.rank_distribution)

    @property
    def choices(self) -> dict[str, Any]:
        """The arguments of an adapter or task with these ranks; the alpha and the scaling are those of the branch."""
        return {name: getattr(self, name) for name in ("active_ranks", "mode", "rank_distribution")}

    def around(self, base_layer: Layer, branch: LoRALayer) -> DyLoRAAdapter:
        """An adapter with these settings; the alpha and the scaling are those of the branch."""
        adapter = DyLoRAAdapter.around(base_layer, branch, **self.choices)
        adapter.current_deployment_rank = self.current_deployment_rank
        return adapter
