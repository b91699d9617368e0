"""`RankedTasks`: tasks of which some have ranks, so that each trains and deploys like a DyLoRA adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from .._typing import Array, Parts
from .._validation import fraction, mapping, one_of, rank_within, resolved_alpha
from ..base import prefixed
from ..errors import ArgumentError
from ..layers.lora import LoRALayer
from ..layers.low_rank import SCALINGS
from ..run import Run
from .rank_distribution import RankDistribution
from .task_choice import TaskChoice
from .task_ranks import TaskRanks


class RankedTasks(TaskChoice):
    """Mixin that adds tasks, with or without ranks, and picks the rank of a task for each pass."""

    _new_branch: Callable[..., LoRALayer]

    def add_task(
        self,
        task_name: str,
        rank: int,
        alpha: float = -1.0,
        active_ranks: Sequence[int] | None = None,
        *,
        mode: Literal["full", "frozen"] = "full",
        scaling: Literal["max", "paper", "rslora"] = "max",
        rank_distribution: Sequence[float] | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Add a task; the current task does not change.

        Parameters
        ----------
        task_name : str
            New and not blank.
        rank : int
            In 1..min(input_size, output_size).
        alpha : float, default -1
            A negative value means this task's rank.
        active_ranks : sequence of int, optional
            Strictly ascending, in 1..rank. They give the task nested dropout, as in `DyLoRAAdapter`: each training pass
            draws one of them, and the task can be deployed at any; initially, at the last. By default, the task has no
            ranks to choose from: its rows always use all components, whatever the `rank` of the pass.
        mode : {"full", "frozen"}, default "full"
        scaling : {"max", "paper", "rslora"}, default "max"
        rank_distribution : sequence of float, optional
            As in `DyLoRAAdapter`; `mode` and `rank_distribution` require `active_ranks`.
        dropout : float, default 0
            p, in [0, 1), for the input of this task's branch in training passes; see `LoRALayer`.

        Raises
        ------
        ArgumentError
            If an argument violates the constraints above; nothing is changed.
        """
        self.check_task(
            task_name,
            rank,
            alpha,
            active_ranks,
            mode=mode,
            scaling=scaling,
            rank_distribution=rank_distribution,
            dropout=dropout,
        )
        branch = self.fitted(self._new_branch(rank, alpha, scaling=scaling, dropout=dropout, rng=self._rng))
        if active_ranks is not None:
            self._task_ranks[task_name] = TaskRanks(task_name, branch, active_ranks, mode, rank_distribution, self._rng)
        self._keep({task_name: branch})

    def check_task(
        self,
        task_name: str,
        rank: int,
        alpha: float = -1.0,
        active_ranks: Sequence[int] | None = None,
        *,
        mode: str = "full",
        scaling: str = "max",
        rank_distribution: Sequence[float] | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Raise ArgumentError if `add_task` would, with the same arguments."""
        self._check_new("task_name", task_name)
        rank = rank_within(rank, self.input_size, self.output_size)
        resolved_alpha(alpha, rank)
        one_of("scaling", scaling, SCALINGS)
        fraction("dropout", dropout)
        if active_ranks is not None:
            one_of("mode", mode, ("full", "frozen"))
            RankDistribution.of(active_ranks, rank, rank_distribution)
        elif mode != "full" or rank_distribution is not None:
            raise ArgumentError("active_ranks must not be None if mode or rank_distribution is given")

    @property
    def task_ranks(self) -> Mapping[str, TaskRanks]:
        """The ranks of the tasks that have some: a live, read-only view."""
        return MappingProxyType(self._task_ranks)

    @property
    def task_deployment_ranks(self) -> dict[str, int]:
        """The deployment rank of each task that has ranks, used by `predict`, in evaluation mode and for merging."""
        return {name: ranks.current_deployment_rank for name, ranks in self._task_ranks.copy().items()}

    @task_deployment_ranks.setter
    def task_deployment_ranks(self, ranks: Mapping[str, int]) -> None:
        mapping("task_deployment_ranks", ranks)
        for name, rank in ranks.items():
            self._ranks_of(name).check_rank(rank)
        for name, rank in ranks.items():
            self._task_ranks[name].current_deployment_rank = rank

    def set_task_deployment_rank(self, task_name: str, rank: int) -> None:
        """Deploy a task at one of its active ranks; `lora_np.select_rank` does so for all tasks with ranks.

        Raises
        ------
        ArgumentError
            If the task is unknown or has no ranks to choose from, or if the rank is not one of them.
        """
        self._ranks_of(task_name).set_deployment_rank(rank)

    def _ranks_of(self, task_name: str) -> TaskRanks:
        self.get_task_adapter(task_name)
        ranks = self._task_ranks.get(task_name)
        if ranks is None:
            raise ArgumentError(f"task_name must be a task with active ranks, but {task_name!r} always uses all components")
        return ranks

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError if a task is unknown, or if a rank is not an active rank of the tasks of its rows."""
        super().check_run(run)
        if run.rank is not None:
            for ranks, rank in self._present(run):
                ranks.check_pass(rank, run.keep)

    def trained_parts(self, run: Run) -> Parts:
        """The components that a pass trains of the branches of the tasks present."""
        parts: dict[str, Any] = {}
        for ranks, rank in self._present(run):
            parts |= prefixed(f"tasks.{ranks.task_name}", ranks.trained_part(rank))
        return parts

    def _present(self, run: Run) -> Iterator[tuple[TaskRanks, int | Array]]:
        """The tasks with ranks that take part in a pass, each with its rank, or that of each of its rows."""
        names = (self._current_task,) if run.tasks is None else run.tasks.names
        for task, name in enumerate(names if self._task_ranks else ()):
            ranks = None if name is None else self._task_ranks.get(name)
            if ranks is not None:
                rank = ranks.rank_in(run)
                if run.tasks is not None and isinstance(rank, np.ndarray):
                    rank = rank[run.tasks.codes == task]
                yield ranks, rank

    def _task_details(self) -> dict[str, str]:
        details = {
            "multilora.number_of_tasks": str(len(self._tasks)),
            "multilora.current_task": self._current_task,
            "multilora.tasks": ", ".join(self._shown_tasks()),
        }
        ranks = [f"{name}: {ranks.shown}" for name, ranks in list(self._task_ranks.items())[:8]]
        return details | ({"multilora.deployment_ranks": ", ".join(ranks)} if ranks else {})
