"""`Listening` (C#: ForwardWithContext): how the layers inside a model learn their tasks and their ranks for a pass.

Everything that is random, or that may be refused, is settled before the pass: `apply` itself is a function of its arguments
and of the arrays.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar

from .._typing import Array, Parts
from ..errors import ArgumentError
from ..run import EVALUATION, INFERENCE, Draw, Rank, Run, Tasks, checked_rank
from .parameters import ParameterTree, prefixed


class Listener:
    """What a layer that reads the run of a pass says of it. An adapter with tasks or ranks is one."""

    listens_to: ClassVar[str]
    """The field of `Run` that it reads: ``"tasks"`` or ``"rank"``."""

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError if the run asks for a task or a rank that this layer does not have."""

    def draw(self) -> Draw | None:
        """The random choice for a training pass, if this layer needs one."""
        return None

    def bound_to(self, run: Run) -> Hashable:
        """What must still be the same at `backward` and at the step, besides the arrays."""
        return None

    def trained_parts(self, run: Run) -> Parts:
        """The part of each of its arrays that a pass trains, by name; an array that is not named is trained whole."""
        return {}


class Listening(ParameterTree):
    """Needs the children, and gives the `Run` of a pass."""

    def _listeners(self) -> dict[str, Any]:
        """Every `Listener` inside, and this layer if it is one, by dotted path, in the order of the pass."""
        found: dict[str, Any] = {}
        for name, child in self._searched().items():
            for path, listener in child._listeners().items():
                found[f"{name}.{path}" if path else name] = listener
        if isinstance(self, Listener):
            found[""] = self
        return found

    def _searched(self) -> Mapping[str, Any]:
        """The children that may hold listeners."""
        return self.children()

    def new_run(
        self,
        x: Array,
        *,
        tasks: Iterable[str | None] | None = None,
        rank: Any = None,
        training: bool = False,
        keep: bool = True,
    ) -> Run:
        """What a pass of this input knows, as `apply` takes it; see `forward`. It makes the one draw of a training pass.

        Raises
        ------
        ArgumentError
            If tasks or ranks do not fit the input, or if no layer inside has any.
        """
        if tasks is None and rank is None and not training:
            return EVALUATION if keep else INFERENCE
        return self._run(x, self._listeners(), tasks=tasks, rank=rank, training=training, keep=keep)

    def _run(
        self, x: Array, listeners: Mapping[str, Any], *, tasks: Any, rank: Any, training: bool, keep: bool = True
    ) -> Run:
        if tasks is None and rank is None:
            return Run(True, None, _drawn(listeners), keep) if training else EVALUATION if keep else INFERENCE
        drawn = _drawn(listeners) if rank is None and training else self._rank(rank, x, listeners)
        run = Run(training, None if tasks is None else self._tasks_of(tasks, x, listeners), drawn, keep)
        for listener in listeners.values():
            listener.check_run(run)
        return run

    def _tasks_of(self, tasks: Iterable[str | None], x: Array, listeners: Mapping[str, Any]) -> Tasks:
        if x.ndim < 2:
            raise ArgumentError(f"input must have shape (rows, ..., {x.shape[-1]}) to have tasks by row, got {x.shape}")
        grouped = Tasks.of(tasks, len(x))
        if not _listen_to("tasks", listeners) and any(name is not None for name in grouped.names):
            raise ArgumentError(f"tasks must be None for every row: no layer of {self.layer_name} has tasks")
        return grouped

    def _rank(self, rank: Any, x: Array, listeners: Mapping[str, Any]) -> Rank | None:
        if rank is not None and not _listen_to("rank", listeners):
            raise ArgumentError(f"rank must be None: no layer of {self.layer_name} has ranks to choose from")
        return checked_rank(rank, len(x) if x.ndim > 1 else None)


def listeners(layer: Listening) -> dict[str, Any]:
    """Every `Listener` in a layer, by dotted path, in the order of the pass."""
    return layer._listeners()


def trained_parts(listeners: Mapping[str, Any], run: Run) -> Parts:
    """The trained part of each array that a pass does not train as a whole, by dotted name."""
    parts: dict[str, Any] = {}
    for path, listener in listeners.items():
        own = listener.trained_parts(run)
        parts |= prefixed(path, own) if path else own
    return parts


def _listen_to(field: str, listeners: Mapping[str, Any]) -> bool:
    return any(listener.listens_to == field for listener in listeners.values())


def _drawn(listeners: Mapping[str, Any]) -> Draw | None:
    """The one draw of a training pass, by the first layer that needs one."""
    for listener in listeners.values():
        draw: Draw | None = listener.draw()
        if draw is not None:
            return draw
    return None
