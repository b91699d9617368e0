"""`TaskStorage`: an adapter whose branches belong to tasks, with its children, settings, copies and files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Self

from .._validation import generator
from ..base import Layer
from ..kernels import FactorMemory
from ..layers.lora import LoRALayer
from .additive import AdditiveAdapter
from .ranked_tasks import RankedTasks
from .task_children import TaskChildren
from .task_ranks import TaskRanks


class TaskStorage(AdditiveAdapter, RankedTasks):
    """What a `MultiLoRAAdapter` is besides its function: a container of a base layer and of one branch per task."""

    @classmethod
    def around_tasks(
        cls,
        base_layer: Layer,
        branches: Mapping[str, LoRALayer],
        freeze_base_layer: bool = True,
        *,
        ranks: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """An adapter with given branches by task, the first of which is current; see `LoRAAdapterBase.around`.

        `ranks` has the arguments ``active_ranks``, ``mode`` and ``rank_distribution`` of tasks with ranks; see `add_task`.
        """
        adapter = cls.__new__(cls)
        AdditiveAdapter.__init__(adapter, base_layer, freeze_base_layer)
        adapter._rng, adapter._tasks, adapter._task_ranks = generator(None), {}, {}
        adapter._memory = FactorMemory(adapter.input_size, adapter.output_size, adapter.dtype)
        for name in branches:
            adapter._check_new("branches", name)
        adapter._keep({name: adapter.fitted(branch) for name, branch in branches.items()})
        for name, choices in ({} if ranks is None else ranks).items():
            branch = adapter.get_task_adapter(name)
            adapter._task_ranks[name] = TaskRanks(name, branch, rng=adapter._rng, **choices)
        adapter._current_task = next(iter(branches))
        return adapter

    @property
    def settings(self) -> tuple[str, ...]:  # type: ignore[override]
        """The current task and, if a task has ranks, the deployment ranks."""
        return ("current_task", "task_deployment_ranks") if self._task_ranks else ("current_task",)

    def children(self) -> Mapping[str, Layer]:
        """The base layer and every task's branch: a live, read-only view."""
        return TaskChildren(self.base_layer, self._tasks)

    def _listening_children(self) -> Mapping[str, Layer]:
        """The base layer, and the first branch with dropout: one seed is enough for all."""
        children: dict[str, Layer] = {"base": self.base_layer}
        for name, branch in self._tasks.copy().items() if self._has_dropout else ():
            if branch.dropout:
                return children | {f"tasks.{name}.dropout": branch}
        return children

    def _listeners(self) -> dict[str, Any]:
        """As in any container; and the ranks of tasks, each of which follows from the single draw of a pass."""
        return super()._listeners() | {f"tasks.{name}": ranks for name, ranks in self._task_ranks.copy().items()}

    def _owner(self, name: str, frozen: bool) -> tuple[Any, str] | None:
        """As in any container, but at once for the arrays of tasks, which a step looks up by the hundred."""
        kind, _, path = name.partition(".")
        if kind != "tasks":
            return super()._owner(name, frozen)
        task, _, attribute = path.rpartition(".")
        branch = self._tasks.get(task)
        return None if branch is None else branch._owner(attribute, frozen)

    def _count(self, *, frozen: bool = False) -> int:
        """Without listing the arrays, of which there may be many."""
        base = 0 if self.is_base_layer_frozen and not frozen else self.base_layer._count(frozen=frozen)
        ranks = sum(map(attrgetter("rank"), self._tasks.copy().values()))
        return base + (self.input_size + self.output_size) * ranks

    def _details(self) -> dict[str, str]:
        return super()._details() | self._task_details()

    def _set_branches(self, branches: Mapping[str, LoRALayer]) -> None:
        self._rng = copy.deepcopy(self._rng)
        self._tasks = self._tasks.copy()
        self._task_ranks = {name: ranks.of(ranks.lora_layer, self._rng) for name, ranks in self._task_ranks.items()}
        self._keep({name.removeprefix("tasks."): branch for name, branch in branches.items()})

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__ |= super().__getstate__()  # the branches stay where they are
        twin._task_ranks = {name: copy.copy(ranks) for name, ranks in self._task_ranks.copy().items()}
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._memory = FactorMemory(self.input_size, self.output_size, self.dtype)
        self._keep(self._tasks)

    def config(self) -> dict[str, Any]:
        """The base, each task's branch, whether the base is frozen, and the ranks of the tasks that have some."""
        config = {
            "base_layer": self.base_layer,
            "tasks": [[name, branch] for name, branch in list(self._tasks.items())],
            "freeze_base_layer": self.is_base_layer_frozen,
        }
        ranks = [[name, ranks.choices] for name, ranks in self._task_ranks.copy().items()]
        return config | ({"ranks": ranks} if ranks else {})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new adapter with these tasks."""
        branches, ranks = dict(config["tasks"]), dict(config.get("ranks", ()))
        return cls.around_tasks(config["base_layer"], branches, config["freeze_base_layer"], ranks=ranks)
