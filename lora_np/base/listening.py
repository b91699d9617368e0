"""`Listening` (C#: ForwardWithContext): how a pass comes to know its tasks and its ranks.

A layer that reads them says so in `listens_to`. Everything that is random, or may be refused, is settled before the pass:
`apply` itself is a function of its arguments and the arrays.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .._typing import Array
from ..errors import ArgumentError, InvalidOperationError
from ..run import EVALUATION, INFERENCE, Draw, Rank, Run, Tasks, checked_rank
from .parameters import ParameterTree


class Bond(NamedTuple):
    """What a pass is bound to besides its arrays: it must be the same at `backward` and at the step."""

    listener: Listening
    bound_to: Hashable


class Listening(ParameterTree):
    """Needs the layers inside, and gives the `Run` of a pass."""

    listens_to: ClassVar[str] = ""
    """The field of `Run` that the layer itself reads: ``"tasks"``, ``"rank"``, or none."""

    def listeners(self) -> tuple[Any, ...]:
        """The layers that read what a pass knows: this one and those inside, in the order of the pass."""
        found: tuple[Any, ...] = ()
        for child in self.children().values():
            found += child.listeners()
        return (*found, self) if self.listens_to else found

    def new_run(
        self,
        x: Array,
        *,
        tasks: Iterable[str | None] | None = None,
        rank: Any = None,
        training: bool = False,
        keep: bool = True,
    ) -> Run:
        """What a pass of this input knows, as `apply` takes it. In training without a rank, this draws one for all layers.

        Raises
        ------
        ArgumentError
            Tasks or ranks that do not fit, or no layer inside has any.
        """
        if tasks is None and rank is None:
            return Run(True, None, self._drawn(), keep) if training else EVALUATION if keep else INFERENCE
        listeners, rows = self.listeners(), len(x) if x.ndim > 1 else None
        run = Run(
            training,
            None if tasks is None else self._grouped(tasks, x, listeners),
            self._drawn() if rank is None and training else self._ranks(rank, rows, listeners),
            keep,
        )
        for listener in listeners:
            listener.check_run(run)
        return run

    def _drawn(self) -> Draw | None:
        """The one draw of a training pass, from the first layer that needs one."""
        for listener in self.listeners():
            draw: Draw | None = listener.draw()
            if draw is not None:
                return draw
        return None

    def _grouped(self, tasks: Iterable[str | None], x: Array, listeners: tuple[Any, ...]) -> Tasks:
        if x.ndim < 2:
            raise ArgumentError(f"input must have shape (rows, ..., {x.shape[-1]}), got {x.shape}: each row has a task")
        grouped = Tasks.of(tasks, len(x))
        if not any(each.listens_to == "tasks" for each in listeners) and any(name is not None for name in grouped.names):
            raise ArgumentError(f"tasks must be None for every row: no layer of {self.layer_name} has tasks")
        return grouped

    def _ranks(self, rank: Any, rows: int | None, listeners: tuple[Any, ...]) -> Rank | None:
        if rank is not None and not any(each.listens_to == "rank" for each in listeners):
            raise ArgumentError(f"rank must be None: no layer of {self.layer_name} has ranks to choose from")
        return checked_rank(rank, rows)

    # ---------------------------------------------------------------- what a listener says

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError where the layer itself cannot do what this asks of it."""

    def draw(self) -> Draw | None:
        """The random choice for a training pass, if this layer itself needs one."""
        return None

    def bound_to(self, run: Run) -> Hashable:
        """What of the layer itself a pass is bound to besides its arrays."""
        return None

    # ---------------------------------------------------------------- what holds until the step

    def _bonds(self, run: Run) -> tuple[Bond, ...]:
        return tuple([Bond(each, each.bound_to(run)) for each in self.listeners() if each.listens_to == "tasks"])

    def _check_bonds(self, what: str, run: Run, bonds: tuple[Bond, ...]) -> None:
        for listener, bound_to in bonds:
            if listener.bound_to(run) != bound_to:
                raise InvalidOperationError(
                    f"{self.layer_name}: the task has changed since the forward pass, so {what} would mix tasks; "
                    "select the task before forward, and keep it until the step is done"
                )

    if TYPE_CHECKING:

        def children(self) -> Any: ...  # noqa: D102
