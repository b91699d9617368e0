"""Layers one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, final

from .._typing import Array, Cache, Gradients, Parts
from .._validation import not_none
from ..base import Layer, prefixed
from ..errors import ArgumentError
from ..run import Run


@final
class Sequential(Layer):
    """``y = f_n(… f_2(f_1(x)))``.

    Parameters
    ----------
    layers : sequence of layers, or mapping of layers by name
        At least one; each must take what the one before gives, in the same dtype. Layers of a sequence are named "0", "1"
        and so on. A name has no dot in it, and a layer occurs once.
    frozen : names
        Layers that do not train; gradients flow through them.

    Raises
    ------
    ArgumentError
        A rule above is broken.

    Notes
    -----
    The chain rule: the `vjp` of each layer, from the last to the first, takes the input gradient of the next as its dy.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import DenseLayer, Sequential, relu
    >>> model = Sequential([DenseLayer(4, 8, relu, rng=0), DenseLayer(8, 2, rng=1)])
    >>> model.forward(np.ones((5, 4))).shape
    (5, 2)
    >>> list(model.named_parameters())
    ['0.weight', '0.bias', '1.weight', '1.bias']
    """

    def __init__(self, layers: Sequence[Layer] | Mapping[str, Layer], *, frozen: Sequence[str] = ()) -> None:
        not_none("layers", layers)
        if isinstance(layers, Layer) or not isinstance(layers, Iterable):
            raise ArgumentError(f"layers must be a sequence or a mapping of layers, got {layers!r}")
        named = dict(layers) if isinstance(layers, Mapping) else {str(i): layer for i, layer in enumerate(layers)}
        _check(named)
        self._layers = named
        *_, last = named.values()
        first = next(iter(named.values()))
        super().__init__(first.input_size, last.output_size, first.dtype)
        self.freeze(*frozen)

    def freeze(self, *names: str) -> None:
        """Make these the layers that do not train, instead of any earlier ones."""
        for name in names:
            if name not in self._layers:
                raise ArgumentError(f"frozen must name layers among {', '.join(self._layers)}, got {name!r}")
        for name in self.frozen_children.difference(names):
            self._layers[name].unpack()
        self.frozen_children = frozenset(names)
        self.reset_state()

    def apply(self, x: Array, run: Run) -> tuple[Array, Cache]:
        """Each layer's output is the next one's input."""
        caches = []
        for layer in self._layers.values():
            x, cache = layer.apply(x, run)
            caches.append(cache if run.keep else None)
            del cache  # where nothing is kept, its arrays are gone before the next layer makes its own
        return x, caches

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """Each layer's input gradient is the previous one's output gradient, down to the last that is wanted."""
        gradients: Gradients = {}
        dx: Array | None = dy
        names, layers = list(self._layers), self.layers
        trained = [
            parameters and name not in self.frozen_children and layer.supports_training
            for name, layer in self._layers.items()
        ]
        lowest = 0 if inputs else (*trained, True).index(True)  # nothing is wanted of the layers below
        for i in reversed(range(lowest, len(layers))):
            assert dx is not None
            dx, own = layers[i].vjp(dx, cache[i], parameters=trained[i], inputs=inputs or i > lowest)
            gradients |= prefixed(names[i], own)
        return (dx if inputs else None), gradients

    def active_parts(self, cache: Cache) -> Parts:
        """The parts of every layer that trains."""
        parts: dict[str, Any] = {}
        for (name, layer), own in zip(self._layers.items(), cache, strict=True):
            if name not in self.frozen_children:
                parts |= prefixed(name, layer.active_parts(own))
        return parts

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        return tuple(self._layers.values())

    def children(self) -> Mapping[str, Layer]:
        """The layers by name: a live view that cannot be written to."""
        return MappingProxyType(self._layers)

    def with_children(self, changed: Mapping[str, Layer]) -> Self:
        """A stack with other layers in the places of these names."""
        return type(self)(self._layers | dict(changed), frozen=sorted(self.frozen_children))

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, name: str | int) -> Layer:
        return self.layers[name] if isinstance(name, int) else self._layers[name]

    def __repr__(self) -> str:
        lines = [f"  {name}: {layer!r}".replace("\n", "\n  ") for name, layer in self._layers.items()]
        return "\n".join([super().__repr__(), *lines])

    def estimate_flops(self) -> int:
        """The sum over the layers."""
        return sum(layer.estimate_flops() for layer in self._layers.values())

    def config(self) -> dict[str, Any]:
        """The layers and the names of the frozen ones."""
        return {"layers": self._layers, "frozen": sorted(self.frozen_children)}


def _check(layers: Mapping[str, Layer]) -> None:
    if not layers:
        raise ArgumentError("layers must hold at least one layer, got none")
    for name, layer in layers.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ArgumentError(f"layers must have names without a dot, got {name!r}")
        if not isinstance(layer, Layer):
            raise ArgumentError(f"layers must hold layers, got {layer!r} as {name!r}")
    if len({id(layer) for layer in layers.values()}) < len(layers):
        raise ArgumentError("layers must be different objects: a layer occurs twice")
    ordered = list(layers.items())
    for (name, layer), (next_name, following) in itertools.pairwise(ordered):
        if layer.output_size != following.input_size:
            raise ArgumentError(
                f"layers must fit: {name!r} gives {layer.output_size} values, {next_name!r} takes {following.input_size}"
            )
        if layer.dtype != following.dtype:
            raise ArgumentError(f"layers must have one dtype: {name!r} has {layer.dtype}, {next_name!r} {following.dtype}")
