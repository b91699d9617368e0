"""`TaskRouting` (C#: ForwardWithContext): mixed batches, in which each row has a task of its own, through a whole model.

A layer without tasks ignores them. `MultiLoRAAdapter` sends each row through its own task's branch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._typing import Array, Cache, Routing, Tasks
from ..errors import ArgumentError, InvalidOperationError
from .parameters import ParameterTree


class Route(NamedTuple):
    """The way of one pass through a model's task branches. It must still be the same at `backward` and at the step."""

    tasks: Tasks | None
    """Each task of a mixed batch once; None where every layer takes its current task."""
    branches: Routing


class TaskRouting(ParameterTree):
    """Needs `apply`, and gives the passes of mixed batches."""

    if TYPE_CHECKING:  # what `Layer` has
        apply: Any
        is_training: Any
        _checked_input: Any
        _remembered: Any

    def apply_routed(self, x: Array, tasks: Tasks, *, training: bool = False) -> tuple[Array, Cache]:
        """`apply` with a task for each row. Its cache goes to the same `vjp`."""
        result: tuple[Array, Cache] = self.apply(x, training=training)
        return result

    def routing(self, tasks: Tasks | None = None) -> Routing:
        """The task branches that a pass goes through; in the place of one that does not exist, its name."""
        branches: Routing = ()
        for child in self.children().values():
            branches += child.routing(tasks)
        return branches

    def forward_routed(self, input: Any, tasks: Iterable[str | None]) -> Array:
        """`forward` of a mixed batch: each row goes through the branch of its own task, at every `MultiLoRAAdapter`.

        Parameters
        ----------
        input : array, shape (rows, ..., input_size)
        tasks : sequence of str or None, length rows
            The task of each entry of the first axis; None is the base alone. The current task plays no part.

        Returns
        -------
        array, shape (rows, ..., output_size)
            In the order of `input`. The `backward` that follows gives every task present its own gradients.

        Raises
        ------
        ArgumentError
            Another length, an unknown task, or no layer inside has tasks; nothing is changed.
        """
        x = self._checked_rows(input, copy=True)
        tasks = self.check_tasks(tasks, len(x))
        result: Array = self._remembered(x, self.apply_routed(x, tasks, training=self.is_training), self._route(tasks))
        return result

    def predict_routed(self, input: Any, tasks: Iterable[str | None]) -> Array:
        """`predict` of a mixed batch; see `forward_routed`."""
        x = self._checked_rows(input)
        tasks = self.check_tasks(tasks, len(x))
        return unaliased(self._output(x, tasks), x)

    def check_tasks(self, tasks: Iterable[str | None], rows: int) -> Tasks:
        """The tasks of a mixed batch as `apply_routed` takes them; an ArgumentError where they do not fit."""
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise ArgumentError(f"tasks must be a sequence with a name or None for each row, got {tasks!r}")
        names = tuple(tasks)
        try:
            present = _present(names)
        except TypeError:  # one of them is not hashable, let alone a name
            present = names
        for name in present:
            if not (name is None or isinstance(name, str)):
                raise ArgumentError(f"tasks must hold names or None, got {name!r}")
        if len(names) != rows:
            raise ArgumentError(f"tasks must have one entry for each of {rows} rows of input, got {len(names)}")
        branches = self.routing(present)
        unknown = [name for name in branches if isinstance(name, str)]
        if unknown:
            raise ArgumentError(f"tasks must be known to {self.layer_name}, got {unknown[0]!r}")
        if not branches and any(name is not None for name in present):
            raise ArgumentError(f"tasks must be None for every row: no layer of {self.layer_name} has tasks")
        return names

    def _output(self, x: Array, tasks: Tasks | None = None) -> Array:
        """The output for inference, without a cache."""
        y, _ = self.apply(x) if tasks is None else self.apply_routed(x, tasks)
        result: Array = y
        return result

    def _route(self, tasks: Tasks | None = None) -> Route:
        present = None if tasks is None else _present(tasks)
        return Route(present, self.routing(present))

    def _check_route(self, what: str, route: Route) -> None:
        if route.branches != self.routing(route.tasks):
            raise InvalidOperationError(
                f"{self.layer_name}: the task has changed since the forward pass, so {what} would mix tasks; "
                "select the task before forward, and keep it until the step is done"
            )

    def _checked_rows(self, input: Any, *, copy: bool = False) -> Array:
        x: Array = self._checked_input(input, copy=copy)
        if x.ndim < 2:
            raise ArgumentError(f"input must have shape (rows, ..., {x.shape[-1]}), got {x.shape}")
        return x


def unaliased(result: Array, argument: Array) -> Array:
    """The result, or a copy where it shares memory with an argument that somebody else may write to."""
    return result.copy() if np.may_share_memory(result, argument) else result


def _present(tasks: Tasks) -> Tasks:
    """Each task once, in order: where a mixed batch goes does not depend on the number of its rows."""
    return tuple(dict.fromkeys(tasks))
