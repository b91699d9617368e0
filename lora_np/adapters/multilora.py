"""MultiLoRA: one shared base, many named tasks, each with a low-rank branch of its own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self, final

from .._typing import RNG
from .._validation import generator, not_none, rank_within
from ..base import Layer
from ..errors import ArgumentError, ArgumentNullError, InvalidOperationError, NotSupportedError
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from ..run import Run
from .base import AdditiveAdapter, Selection
from .mixed import MixedBranch


@final
class MultiLoRAAdapter(AdditiveAdapter):
    """``y = base(x) + s_t (x A_t) B_t``, with t the current task, or in a mixed batch each row's own.

    Parameters
    ----------
    base_layer : Layer
        What to adapt; shared by all tasks.
    default_task_name : str
        The first task, current at first; not empty or blank.
    default_rank : int
        Its rank, in 1..min(input_size, output_size).
    alpha : float, default -1
        Its alpha; a negative one stands for its rank.
    freeze_base_layer : bool, default True
        Whether the base's parameters stay as they are.
    rng : seed or numpy.random.Generator, optional
        For the initial A of every task.

    Raises
    ------
    ArgumentNullError
        `base_layer` or `default_task_name` is None.
    ArgumentError
        Another rule above is broken.

    Notes
    -----
    A pass gives gradients to the tasks that took part in it, and to no other: an update leaves every other task's arrays
    as they are, to the bit. The flat vector holds the base, where it is not frozen, then each task in the order in which
    the tasks were added.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import DenseLayer, MultiLoRAAdapter
    >>> adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=0), "sentiment", 2, rng=1)
    >>> adapter.add_task("topics", rank=1)
    >>> adapter.current_task = "topics"
    >>> adapter.forward(np.ones((3, 4)), tasks=["topics", None, "sentiment"]).shape
    (3, 3)
    """

    merge_error = NotSupportedError
    settings = ("current_task",)
    listens_to = "tasks"

    def __init__(
        self,
        base_layer: Layer,
        default_task_name: str,
        default_rank: int,
        alpha: float = -1.0,
        freeze_base_layer: bool = True,
        *,
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        self._rng = generator(rng)
        self._tasks: dict[str, LoRALayer] = {}
        rank_within(default_rank, self.input_size, self.output_size, "default_rank")
        self._add("default_task_name", default_task_name, default_rank, alpha)
        self._current_task = default_task_name

    def select(self, run: Run) -> Selection:
        """The branch of the one task that all rows have, the current one at first; or those of all tasks present."""
        names = (self._current_task,) if run.tasks is None else run.tasks.names
        if len(names) == 1 and names[0] is not None:
            return Selection(f"tasks.{names[0]}", self._tasks[names[0]])
        assert run.tasks is not None
        return Selection("tasks", MixedBranch(run.tasks, self._tasks, self.lora_layer))

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError where there is no such task."""
        for name in () if run.tasks is None else run.tasks.names:
            if name is not None and name not in self._tasks:
                raise ArgumentError(f"tasks must be known to {self.layer_name}, got {name!r}")

    def bound_to(self, run: Run) -> Hashable:
        """The branches of the tasks present, or of the current one; None in the place of one that is gone."""
        names = (self._current_task,) if run.tasks is None else run.tasks.names
        return tuple([self._tasks.get(name) for name in names if name is not None])

    @property
    def lora_layer(self) -> LoRALayer:
        """The current task's branch."""
        return self._tasks[self._current_task]

    @property
    def task_adapters(self) -> Mapping[str, LoRALayer]:
        """The branches by task, in insertion order: a live view that cannot be written to."""
        return MappingProxyType(self._tasks)

    @property
    def number_of_tasks(self) -> int:
        """The number of tasks; also `len`."""
        return len(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task_name: object) -> bool:
        return task_name in self._tasks

    @property
    def current_task(self) -> str:
        """The task of `forward`, `predict` and merging; setting an unknown one raises ArgumentError."""
        return self._current_task

    @current_task.setter
    def current_task(self, task_name: str) -> None:
        self.get_task_adapter(task_name)
        self._current_task = task_name

    def set_current_task(self, task_name: str) -> None:
        """Set `current_task`."""
        self.current_task = task_name

    def add_task(self, task_name: str, rank: int, alpha: float = -1.0) -> None:
        """Add a task; the current one stays.

        Parameters
        ----------
        task_name : str
            Not empty or blank, and not there yet.
        rank : int
            In 1..min(input_size, output_size).
        alpha : float, default -1
            A negative one stands for this task's rank.

        Raises
        ------
        ArgumentError
            A rule above is broken; nothing is changed.
        """
        self._add("task_name", task_name, rank, alpha)

    def _add(self, argument: str, name: str, rank: int, alpha: float) -> None:
        not_none(argument, name)
        if not isinstance(name, str) or not name.strip():
            raise ArgumentError(f"{argument} must be a string that is not blank, got {name!r}")
        if name in self._tasks:
            raise ArgumentError(f"{argument} must be new, and there is a task {name!r} already")
        branch = LoRALayer(self.input_size, self.output_size, rank, alpha, dtype=self.dtype, rng=self._rng)
        branch.is_training = self.is_training
        self._tasks[name] = branch

    def replace_task(self, task_name: str, branch: LoRALayer) -> None:
        """Put another branch of the same sizes and dtype, of any rank, in the place of a task's.

        Raises
        ------
        ArgumentError
            There is no such task, or the branch does not fit; nothing is changed.
        """
        self._tasks[task_name] = self.changed(self.get_task_adapter(task_name), lambda _: branch)

    def remove_task(self, task_name: str) -> bool:
        """Remove a task and its branch; where it was the current one, the first that remains is current.

        Returns
        -------
        bool
            False where there is no such task.

        Raises
        ------
        InvalidOperationError
            It is the last one.
        """
        if not isinstance(task_name, str) or task_name not in self._tasks:
            return False
        if len(self._tasks) == 1:
            raise InvalidOperationError(f"{self.layer_name}: {task_name!r} is the last task, and one must remain")
        del self._tasks[task_name]
        if self._current_task == task_name:
            self._current_task = next(iter(self._tasks))
        return True

    def get_task_adapter(self, task_name: str) -> LoRALayer:
        """The branch of a task; an unknown one raises ArgumentError."""
        if task_name is None:
            raise ArgumentNullError("task_name must not be None")
        if not isinstance(task_name, str) or task_name not in self._tasks:
            raise ArgumentError(f"task_name must be one of {', '.join(self._shown_tasks(repr))}; got {task_name!r}")
        return self._tasks[task_name]

    def get_task_rank(self, task_name: str) -> int:
        """The rank of a task; an unknown one raises ArgumentError."""
        return self.get_task_adapter(task_name).rank

    def merge_task_to_layer(self, task_name: str) -> AffineLayer:
        """A new layer with ``W + s_t A_t B_t`` of this task, in the base's layout; base and current task are untouched.

        Raises
        ------
        ArgumentError
            There is no such task.
        NotSupportedError
            The base is not a DenseLayer or FullyConnectedLayer, or it has an activation.
        """
        branch, base = self.get_task_adapter(task_name), self.mergeable_base()
        return base.with_matrix(base.matrix + branch.merge_weights())

    def children(self) -> Mapping[str, Layer]:
        """The base layer and every task's branch: a live view that cannot be written to."""
        return _Children(self.base_layer, self._tasks)

    def compute_auxiliary_loss(self) -> Any:
        """The penalty of the base, where it trains; branches have none."""
        return 0 if self.is_base_layer_frozen else self.base_layer.compute_auxiliary_loss()

    def details(self) -> dict[str, str]:
        """The current branch's details and the tasks."""
        return super().details() | {
            "multilora.number_of_tasks": str(len(self._tasks)),
            "multilora.current_task": self._current_task,
            "multilora.tasks": ", ".join(self._shown_tasks()),
        }

    def _shown_tasks(self, form: Callable[[str], str] = str) -> list[str]:
        """The names of the tasks for people to read: of many, the first seven and how many there are."""
        count = len(self._tasks)
        names = [form(name) for name in itertools.islice(self._tasks, count if count <= 8 else 7)]
        return names if count <= 8 else [*names, f"... {count} in all"]

    def with_branches(self, change: Callable[[LoRALayer], LoRALayer]) -> Self:
        """A copy in which each task's branch is what `change` makes of it; the base layer is shared."""
        twin = copy.copy(self)
        twin._rng = copy.deepcopy(self._rng)
        twin._tasks = {name: self.changed(branch, change) for name, branch in self._tasks.items()}
        return twin

    def config(self) -> dict[str, Any]:
        """The base, each task's branch, and whether the base is frozen."""
        return {
            "base_layer": self.base_layer,
            "tasks": [[name, branch] for name, branch in self._tasks.items()],
            "freeze_base_layer": self.is_base_layer_frozen,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new adapter with these tasks."""
        tasks = dict(config["tasks"])
        adapter = cls(config["base_layer"], next(iter(tasks)), 1, freeze_base_layer=config["freeze_base_layer"])
        for name, branch in tasks.items():
            if name not in adapter:
                adapter.add_task(name, 1)
            adapter.replace_task(name, branch)
        return adapter


class _Children(Mapping[str, Layer]):
    """The base and the branches by name, looked up in the tasks themselves: making it costs the same for any number."""

    def __init__(self, base: Layer, tasks: Mapping[str, Layer]) -> None:
        self._base, self._tasks = base, tasks

    def __getitem__(self, name: str) -> Layer:
        if name == "base":
            return self._base
        kind, _, task = name.partition(".")
        if kind != "tasks":
            raise KeyError(name)
        return self._tasks[task]

    def __iter__(self) -> Iterator[str]:
        yield "base"
        for task in self._tasks:
            yield f"tasks.{task}"

    def __len__(self) -> int:
        return 1 + len(self._tasks)
