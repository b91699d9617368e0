"""The state that a layer keeps from `forward` until the step."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array, Cache, Parts
from ..errors import InvalidOperationError
from ..run import EVALUATION, Run
from .listening import trained_parts


class Pass(NamedTuple):
    """The state that `Layer.forward` stores."""

    cache: Cache
    output_shape: tuple[int, ...]
    run: Run
    parts: Parts
    """The trained part of each array that the pass does not train in full."""
    bonds: tuple[tuple[Any, Hashable], ...]
    """The layers that read the run, each with the value of `Listener.bound_to` at the time of the pass."""

    @classmethod
    def of(cls, cache: Cache, y: Array, run: Run, listeners: Mapping[str, Any]) -> Pass:
        """The state of a completed pass."""
        if not listeners:
            return cls(cache, y.shape, run, {}, ())
        parts = trained_parts(listeners, run)
        return cls(cache, y.shape, run, parts, tuple([(each, each.bound_to(run)) for each in listeners.values()]))

    def check(self, name: str, what: str) -> None:
        """Raise InvalidOperationError if the task of a layer, or the branch of that task, has changed since the pass."""
        for listener, bound_to in self.bonds:
            if listener.bound_to(self.run) != bound_to:
                raise InvalidOperationError(
                    f"{name}: the task has changed since the forward pass, so {what} would mix tasks; "
                    "select the task before forward, and do not change it until after the step"
                )


class Pending(NamedTuple):
    """The gradients of a pass, with what a step needs to know about the pass."""

    gradients: Mapping[str, Array]
    parts: Parts
    run: Run


def pending(layer: Any) -> Pending:
    """The pending gradients of a layer; raises InvalidOperationError if there are none, or if a task has changed since."""
    gradients, done = layer._pending_pass()
    return Pending(gradients, {}, EVALUATION) if done is None else Pending(gradients, done.parts, done.run)


def forget(layer: Any) -> None:
    """Discard the pass and the gradients of a layer, which a step has consumed; layers inside it keep theirs."""
    layer._forget()


def unaliased(result: Array, argument: Array) -> Array:
    """The result, copied if it may share memory with an argument, to which the caller may write."""
    if result is not argument and result.base is None and argument.base is None:
        return result  # both own their memory
    return result.copy() if np.may_share_memory(result, argument) else result
