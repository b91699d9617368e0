"""`TaskRanks`: the ranks of one task of a MultiLoRA adapter, which trains and deploys like a DyLoRA adapter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, final

from .._typing import RNG
from ..layers.lora import LoRALayer
from ..run import Run
from .rank_choice import RankChoice


@final
class TaskRanks(RankChoice):
    """The active ranks of a task, and the rank at which it is deployed; see `MultiLoRAAdapter.add_task`.

    Parameters
    ----------
    task_name : str
    branch : LoRALayer
        The branch of the task.
    active_ranks : sequence of int
    mode : {"full", "frozen"}, default "full"
    rank_distribution : sequence of float, optional
        As in `DyLoRAAdapter`.
    rng : seed or numpy.random.Generator, optional
        For the draws.

    Raises
    ------
    ArgumentError
        If the ranks are not strictly ascending from 1 to the rank of the branch, or if another argument is invalid.
    """

    def __init__(
        self,
        task_name: str,
        branch: LoRALayer,
        active_ranks: Sequence[int],
        mode: Literal["full", "frozen"] = "full",
        rank_distribution: Sequence[float] | None = None,
        rng: RNG = None,
    ) -> None:
        self.task_name = task_name
        self.layer_name = f"task {task_name!r}"
        self._branch = branch
        self._choose(branch.rank, active_ranks, mode, rank_distribution, rng)

    @property
    def lora_layer(self) -> LoRALayer:
        """The branch, of rank `max_rank`."""
        return self._branch

    def nested_branches(self, tasks: Collection[str | None] | None = None) -> list[tuple[LoRALayer, int]]:
        """As in `RankChoice`; empty if `tasks` is given and this task is not among them."""
        return [] if tasks is not None and self.task_name not in tasks else super().nested_branches()

    def check_run(self, run: Run) -> None:
        """Nothing: the adapter checks the ranks, because it knows the rows of the task."""

    @property
    def choices(self) -> dict[str, Any]:
        """The active ranks, the mode and the rank distribution."""
        return {name: getattr(self, name) for name in ("active_ranks", "mode", "rank_distribution")}

    @property
    def shown(self) -> str:
        """The deployment rank and the active ranks, for people."""
        return f"{self._deployment_rank} of {list(self.active_ranks)}"

    def of(self, branch: LoRALayer, rng: RNG) -> TaskRanks:
        """The ranks with another branch; if its rank is lower, it replaces the active ranks above it."""
        ranks = self._ranks.up_to(branch.rank)
        twin = TaskRanks(self.task_name, branch, ranks.ranks, self.mode, ranks.probabilities, rng)  # type: ignore[arg-type]
        twin.current_deployment_rank = min(self._deployment_rank, ranks.ranks[-1])
        return twin
