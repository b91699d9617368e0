"""`TaskChoice`: the tasks of an adapter, each with a branch, and which of them a pass uses."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .._typing import Generator
from .._validation import not_none
from ..base import Layer, Listener
from ..errors import ArgumentError, ArgumentNullError, InvalidOperationError
from ..kernels import FactorMemory
from ..layers.lora import LoRALayer
from ..run import Run
from .task_ranks import TaskRanks


class TaskChoice(Listener):
    """Mixin that holds tasks; requires the sizes, the dtype and `fitted`. Without `tasks`, a pass uses the current one."""

    listens_to = "tasks"
    input_size: int
    output_size: int
    dtype: np.dtype[Any]
    layer_name: str
    fitted: Callable[[Layer], LoRALayer]
    _tasks: dict[str, LoRALayer]
    _task_ranks: dict[str, TaskRanks]
    _current_task: str
    _rng: Generator
    _memory: FactorMemory
    _has_dropout = False
    """Whether a task has, or had, dropout: most adapters need not look for one in each pass."""

    @property
    def task_adapters(self) -> Mapping[str, LoRALayer]:
        """The branches by task, in insertion order: a live, read-only view."""
        return MappingProxyType(self._tasks)

    @property
    def number_of_tasks(self) -> int:
        """The number of tasks; also `len`."""
        return len(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[str]:
        """The names of the tasks, as they are now: another thread may add or remove tasks meanwhile."""
        return iter(list(self._tasks))

    def __getitem__(self, task_name: str) -> LoRALayer:
        """The branch of a task; a KeyError for an unknown one."""
        return self._tasks[task_name]

    def __contains__(self, task_name: object) -> bool:
        return task_name in self._tasks

    @property
    def current_task(self) -> str:
        """The task that `forward`, `predict` and merging use by default; must be a known task."""
        return self._current_task

    @current_task.setter
    def current_task(self, task_name: str) -> None:
        self.get_task_adapter(task_name)
        self._current_task = task_name

    def set_current_task(self, task_name: str) -> None:
        """Set `current_task`."""
        self.current_task = task_name

    def _keep(self, branches: Mapping[str, LoRALayer]) -> None:
        """Store fitted branches, after moving their factors into the memory of the adapter.

        Factors stay where they are if they are read-only, such as a mapped file, or in the memory of another adapter.
        """
        moving = [branch for branch in branches.values() if branch.is_movable]
        if len(moving) > 1:
            self._memory.reserve(sum(branch.rank for branch in moving))
        for branch in moving:
            branch.move_to(self._memory)
        self._has_dropout |= any(branch.dropout for branch in branches.values())
        for name, ranks in self._task_ranks.copy().items():
            branch = branches.get(name, ranks.lora_layer)
            if branch is not ranks.lora_layer:
                self._task_ranks[name] = ranks.of(branch, self._rng)
        self._tasks |= branches

    def _check_new(self, argument: str, name: str) -> None:
        not_none(argument, name)
        if not isinstance(name, str) or not name.strip():
            raise ArgumentError(f"{argument} must be a string that is not blank, got {name!r}")
        if name in self._tasks:
            raise ArgumentError(f"{argument} must be new, but the task {name!r} already exists")

    def replace_task(self, task_name: str, branch: LoRALayer) -> None:
        """Replace the branch of a task with another of the same sizes and dtype, and any rank.

        Its factors move to the memory of the tasks, so arrays obtained from it before no longer belong to it. If its
        rank is lower, it replaces the active ranks above it.

        Raises
        ------
        ArgumentError
            If the task is unknown, or if the branch does not fit; nothing is changed.
        """
        self.get_task_adapter(task_name)
        self._keep({task_name: self.fitted(branch)})

    def remove_task(self, task_name: str) -> bool:
        """Remove a task and its branch. If it was the current task, the first remaining task becomes current.

        Returns
        -------
        bool
            False if the task is unknown.

        Raises
        ------
        InvalidOperationError
            If it is the last task.
        """
        if not isinstance(task_name, str) or task_name not in self._tasks:
            return False
        if len(self._tasks) == 1:
            raise InvalidOperationError(f"{self.layer_name}: {task_name!r} is the last task and cannot be removed")
        if self._current_task == task_name:  # first, because another thread may be reading
            self._current_task = next(name for name in self._tasks if name != task_name)
        del self._tasks[task_name]
        self._task_ranks.pop(task_name, None)
        return True

    def get_task_adapter(self, task_name: str) -> LoRALayer:
        """The branch of a task; an unknown one raises ArgumentError."""
        if task_name is None:
            raise ArgumentNullError("task_name must not be None")
        branch = self._tasks.get(task_name) if isinstance(task_name, str) else None
        if branch is None:
            raise ArgumentError(f"task_name must be one of {', '.join(self._shown_tasks(repr))}; got {task_name!r}")
        return branch

    def _current(self) -> tuple[str, LoRALayer]:
        """The current task and its branch; consistent, even if another thread removes the task meanwhile."""
        while True:
            name = self._current_task
            branch = self._tasks.get(name)
            if branch is not None:
                return name, branch

    def get_task_rank(self, task_name: str) -> int:
        """The rank of a task; an unknown one raises ArgumentError."""
        return self.get_task_adapter(task_name).rank

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError if a task is unknown."""
        for name in () if run.tasks is None else run.tasks.names:
            if name is not None and name not in self._tasks:
                raise ArgumentError(f"tasks must be known to {self.layer_name}, got {name!r}")

    def bound_to(self, run: Run) -> Hashable:
        """The branches of the tasks present, or of the current task; None for a task that has been removed."""
        names = (self._current_task,) if run.tasks is None else run.tasks.names
        return tuple([self._tasks.get(name) for name in names if name is not None])

    def _shown_tasks(self, form: Callable[[str], str] = str) -> list[str]:
        """The names of the tasks; if there are more than eight, the first seven and the total number."""
        tasks = list(self._tasks)
        count = len(tasks)
        names = [form(name) for name in tasks[: count if count <= 8 else 7]]
        return names if count <= 8 else [*names, f"... {count} in all"]
