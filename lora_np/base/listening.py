"""`Listening` (C#: ForwardWithContext): gives the layers of a model their tasks and ranks for a pass.

Random draws and checks happen before the pass, so that `apply` depends only on its arguments and on the layer's arrays.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar

from .._typing import Array, Parts
from ..errors import ArgumentError
from ..run import EVALUATION, INFERENCE, TRAINING, Draw, Rank, Run, Tasks, checked_rank
from .parameters import ParameterTree, prefixed


class Listener:
    """The interface of layers that read the `Run` of a pass: adapters with tasks or ranks, and layers with dropout."""

    listens_to: ClassVar[str]
    """The field of `Run` that the layer reads: ``"tasks"``, ``"rank"`` or ``"seed"``."""

    @property
    def is_listening(self) -> bool:
        """Whether the layer reads the run."""
        return True

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError if the run requests a task or a rank that this layer does not have."""

    def draw(self) -> Draw | None:
        """The random choice for a training pass; None if this layer does not need one."""
        return None

    def draw_seed(self) -> tuple[int, ...] | None:
        """The random seed for a training pass; None if this layer does not need one."""
        return None

    def bound_to(self, run: Run) -> Hashable:
        """A value that must not change between the pass and the step."""
        return None

    def trained_parts(self, run: Run) -> Parts:
        """The part of each array that a pass trains, by name; arrays that are not listed are trained in full."""
        return {}


class Listening(ParameterTree):
    """Mixin that makes the `Run` of a pass; requires the children."""

    def _listeners(self) -> dict[str, Any]:
        """Every `Listener` inside, and this layer if it is one, by dotted path, in the order of execution."""
        found: dict[str, Any] = {}
        for name, child in self._listening_children().items():
            for path, listener in child._listeners().items():
                found[f"{name}.{path}" if path else name] = listener
        if isinstance(self, Listener) and self.is_listening:
            found[""] = self
        return found

    def _listening_children(self) -> Mapping[str, Any]:
        """The children in which to look for listeners."""
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
        """The `Run` with which to `apply` this layer to an input; a training pass's ranks and seed are drawn here.

        `tasks` and `rank` are as in `forward`.

        Raises
        ------
        ArgumentError
            If tasks or ranks do not match the input or the layer.
        """
        if tasks is None and rank is None and not training:
            return EVALUATION if keep else INFERENCE
        return self._run(x, self._listeners(), tasks, rank, training, keep)

    def _run(self, x: Array, listeners: Mapping[str, Any], tasks: Any, rank: Any, training: bool, keep: bool = True) -> Run:
        if tasks is None and rank is None:
            drawn, seed = (_drawn(listeners), _seed(listeners)) if training else (None, None)
            if drawn or seed or not keep:
                return Run(training, None, drawn, keep, seed=seed)
            return TRAINING if training else EVALUATION
        ranks = None if rank is None else self._rank(rank, x, listeners)
        run = Run(training, None if tasks is None else self._tasks_of(tasks, x, listeners), ranks, keep)
        for listener in listeners.values():
            listener.check_run(run)
        # Last, because a call that is refused must not advance a generator.
        if training:
            run = run._replace(rank=_drawn(listeners) if rank is None else ranks, seed=_seed(listeners))
        return run

    def _tasks_of(self, tasks: Iterable[str | None], x: Array, listeners: Mapping[str, Any]) -> Tasks:
        if x.ndim < 2:
            raise ArgumentError(f"input must have shape (rows, ..., {x.shape[-1]}) if tasks are given, got {x.shape}")
        grouped = Tasks.of(tasks, len(x))
        if not _listen_to("tasks", listeners) and any(name is not None for name in grouped.names):
            raise ArgumentError(f"tasks must be None for every row: no layer in {self.layer_name} has tasks")
        return grouped

    def _rank(self, rank: Any, x: Array, listeners: Mapping[str, Any]) -> Rank | None:
        if not _listen_to("rank", listeners):
            raise ArgumentError(f"rank must be None: no layer in {self.layer_name} has ranks to choose from")
        return checked_rank(rank, len(x) if x.ndim > 1 else None)


def listeners(layer: Listening) -> dict[str, Any]:
    """Every `Listener` in a layer, by dotted path, in the order of execution."""
    return layer._listeners()


def draw_seed(layer: Listening) -> tuple[int, ...] | None:
    """The seed that a training pass of a layer would draw, which it then no longer draws; None without dropout."""
    return _seed(layer._listeners())


def trained_parts(listeners: Mapping[str, Any], run: Run) -> Parts:
    """The trained part of each array that a pass does not train in full, by dotted name."""
    parts: dict[str, Any] = {}
    for path, listener in listeners.items():
        own = listener.trained_parts(run)
        parts |= prefixed(path, own) if path else own
    return parts


def _listen_to(field: str, listeners: Mapping[str, Any]) -> bool:
    return any(listener.listens_to == field for listener in listeners.values())


def _drawn(listeners: Mapping[str, Any]) -> Draw | None:
    """The single draw of a training pass, made by the first layer that needs one."""
    for listener in listeners.values():
        draw: Draw | None = listener.draw()
        if draw is not None:
            return draw
    return None


def _seed(listeners: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The single seed of a training pass, drawn by the first layer that needs one."""
    for listener in listeners.values():
        seed: tuple[int, ...] | None = listener.draw_seed()
        if seed is not None:
            return seed
    return None
