"""What a layer remembers of a pass until the step, and what that is bound to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array, Cache, Parts
from ..errors import InvalidOperationError
from ..run import Run
from .listening import trained_parts


class Pass(NamedTuple):
    """What `Layer.forward` remembers."""

    cache: Cache
    output_shape: tuple[int, ...]
    run: Run
    parts: Parts
    """The trained part of each array that the pass did not train as a whole."""
    bonds: tuple[tuple[Any, Hashable], ...]
    """The layers that read the run, each with what it must still be bound to at `backward` and at the step."""

    @classmethod
    def of(cls, cache: Cache, y: Array, run: Run, listeners: Mapping[str, Any]) -> Pass:
        """The memory of a pass that is done."""
        parts = trained_parts(listeners, run)
        return cls(cache, y.shape, run, parts, tuple([(each, each.bound_to(run)) for each in listeners.values()]))

    def check(self, name: str, what: str) -> None:
        """Raise InvalidOperationError if a layer has another task, or another branch for it, than in the pass."""
        for listener, bound_to in self.bonds:
            if listener.bound_to(self.run) != bound_to:
                raise InvalidOperationError(
                    f"{name}: the task has changed since the forward pass, so {what} would mix tasks; "
                    "select the task before forward, and keep it until the step is done"
                )


class Pending(NamedTuple):
    """What a step needs: the gradients of a pass, and what is known of it."""

    gradients: Mapping[str, Array]
    parts: Parts
    run: Run


def pending(layer: Any) -> Pending:
    """The gradients of a layer for a step; InvalidOperationError if there are none, or if a task has changed since."""
    step: Pending = layer._pending_step()
    return step


def unaliased(result: Array, argument: Array) -> Array:
    """The result, or a copy of it if it shares memory with an argument, which the caller may write to."""
    return result.copy() if np.may_share_memory(result, argument) else result
