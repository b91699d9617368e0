"""`Composite`: a layer made of named layers, which says how data flow through them, forward and backward."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeAlias

from .._typing import Array, Cache, Gradients
from .._validation import mapping
from ..base import Layer, prefixed, require_same_sizes
from ..errors import ArgumentError
from ..run import Run


class Call(Protocol):
    """``call(name, x)``: the output of a child, in this run or in another one."""

    def __call__(self, name: str, x: Array, run: Run = ...) -> Array: ...  # noqa: D102


Back: TypeAlias = Callable[[str, Array], Array]
"""``back(name, dy)``: the gradient of a child's input; those of its parameters are collected."""


class CompositeCache(NamedTuple):
    """The cache for `Composite.vjp`."""

    own: Cache
    children: dict[str, Cache]


class Composite(Layer):
    """A layer that implements the pair `flow` / `flow_vjp` in terms of its children.

    Parameters
    ----------
    layers : mapping of layers by name
        Names may contain dots, so that paths can be those of a checkpoint.
    input_size, output_size : int
    dtype : {float64, float32}
    frozen : names, optional
        Children that do not train; gradients flow through them.

    Notes
    -----
    `apply` and `vjp` follow: they keep the caches of the children and collect the gradients of their parameters by name.
    Once those of every child that trains are there, the backward flow ends, unless the gradient of the input is needed.
    """

    gives_input_gradient: ClassVar[bool] = True
    """False for inputs without a gradient, such as token ids: nothing is cached below the lowest child that trains."""

    def __init__(
        self, layers: Mapping[str, Layer], input_size: int, output_size: int, dtype: Any, frozen: Iterable[str] = ()
    ) -> None:
        super().__init__(input_size, output_size, dtype)
        self._layers = dict(layers)
        self.frozen = frozenset(frozen)

    @abstractmethod
    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """The output, and what `flow_vjp` needs besides the caches of the children. It calls each child at most once."""

    @abstractmethod
    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """The gradient of the input: `flow` in reverse, with `back` for each child."""

    def apply(self, x: Array, run: Run) -> tuple[Array, CompositeCache]:
        """The `flow` through the children."""
        caches: dict[str, Cache] = {}
        forgotten = () if self.gives_input_gradient or not run.keep else self._below_training()

        def call(name: str, x: Array, run: Run = run) -> Array:
            y, cache = self._layers[name].apply(x, run._replace(keep=False) if name in forgotten else run)
            if run.keep and name not in forgotten:
                caches[name] = cache
            return y

        y, own = self.flow(x, run, call)
        return y, CompositeCache(own, caches)

    def vjp(
        self, dy: Array, cache: CompositeCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The `flow_vjp` through the children, down to the lowest that is needed."""
        inputs = inputs and self.gives_input_gradient
        gradients: Gradients = {}
        remaining = {name for name in self._layers if parameters and self._trains(name)}

        def back(name: str, dy: Array) -> Array:
            trains = name in remaining
            remaining.discard(name)
            if not (trains or inputs or remaining):
                raise _Finished
            dx, own = self._layers[name].vjp(dy, cache.children[name], parameters=trains, inputs=inputs or bool(remaining))
            gradients.update(prefixed(name, own))
            if not (inputs or remaining):
                raise _Finished
            return dx  # type: ignore[return-value]  # None for an input without a gradient, which nobody uses

        try:
            return self.flow_vjp(dy, cache.own, back), gradients
        except _Finished:
            return None, gradients

    def _trains(self, name: str) -> bool:
        return name not in self.frozen and self._layers[name].supports_training

    def _below_training(self) -> frozenset[str]:
        """The children before the first that trains."""
        names = list(self._layers)
        lowest = next((i for i, name in enumerate(names) if self._trains(name)), len(names))
        return frozenset(names[:lowest])

    def children(self) -> Mapping[str, Layer]:
        """The layers by name: a live, read-only view."""
        return MappingProxyType(self._layers)

    def with_children(self, changed: Mapping[str, Layer]) -> Self:
        """A copy with other layers of the same sizes under the given names; all else is shared."""
        self._check_changed(changed)
        for name, layer in changed.items():
            require_same_sizes(name, layer, self._layers[name])
        twin = copy.copy(self)
        twin._layers = self._layers | dict(changed)
        return twin

    def _check_changed(self, changed: Mapping[str, Layer]) -> None:
        mapping("changed", changed)
        self._require_known("changed", changed)

    def _require_known(self, argument: str, names: Iterable[str]) -> None:
        for name in names:
            if not isinstance(name, str) or name not in self._layers:
                raise ArgumentError(f"{argument} must name layers among {', '.join(self._layers)}, got {name!r}")

    def estimate_flops(self) -> int:
        """The sum over the layers."""
        return sum(layer.estimate_flops() for layer in self._layers.values())


class _Finished(Exception):  # noqa: N818
    """Every gradient that is needed has been collected."""
