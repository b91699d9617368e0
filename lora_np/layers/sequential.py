"""`Sequential`: layers applied one after another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from .._typing import Array, Cache
from .._validation import sequence
from ..base import Layer, become
from ..errors import ArgumentError
from ..run import Run
from .composite import Back, Call, Composite


@final
class Sequential(Composite):
    """``y = f_n(… f_2(f_1(x)))``.

    Parameters
    ----------
    layers : sequence of layers, or mapping of layers by name
        At least one layer, and no layer twice. The output size of each must equal the input size of the next, and all must
        have the same dtype. Layers of a sequence are named "0", "1" and so on; names must not contain a dot.
    frozen : sequence of str, optional
        The names of layers that do not train; input gradients still flow through them.

    Raises
    ------
    ArgumentError
        If an argument violates the constraints above.

    Notes
    -----
    By the chain rule, the dy of each layer is the input gradient that the `vjp` of the next layer returns.

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
        if isinstance(layers, Mapping):
            named = dict(layers)
        else:
            named = {str(i): layer for i, layer in enumerate(sequence("layers", layers, "layers, or a mapping"))}
        frozen = sequence("frozen", frozen, "names")
        _check(named)
        *_, last = named.values()
        first = next(iter(named.values()))
        super().__init__(named, first.input_size, last.output_size, first.dtype)
        self.freeze(*frozen)

    def freeze(self, *names: str) -> None:
        """Freeze the layers with these names, and unfreeze all others."""
        self._require_known("frozen", names)
        for name in self.frozen.difference(names):
            self._layers[name].unpack()
        self.frozen = frozenset(names)
        self.reset_state()

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """Each layer's output is the input of the next."""
        for name in self._layers:
            x = call(name, x)
        return x, None

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """Each layer's input gradient is the output gradient of the one before."""
        for name in reversed(self._layers):
            dy = back(name, dy)
        return dy

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """Check the input as the first layer does."""
        return self.layers[0].check_input(input, copy=copy, name=name)

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return (*self.layers[0]._output_shape(x)[:-1], self.output_size)

    def _example(self, rows: int) -> Array:
        return self.layers[0]._example(rows)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        return tuple(self._layers.values())

    def with_children(self, changed: Mapping[str, Layer]) -> Self:
        """A Sequential in which the named layers are replaced."""
        self._check_changed(changed)
        return type(self)(self._layers | dict(changed), frozen=sorted(self.frozen))

    def replace(self, changed: Mapping[str, Layer]) -> None:
        """Replace the named layers in place, either all or none; the input and output sizes of the model must not change.

        Raises
        ------
        ArgumentError
            If a name is unknown, or if a layer does not fit; nothing is changed.
        """
        twin = self.with_children(changed)
        if (twin.input_size, twin.output_size) != (self.input_size, self.output_size):
            raise ArgumentError(
                f"changed must keep the sizes {self.input_size} -> {self.output_size}, "
                f"got {twin.input_size} -> {twin.output_size}"
            )
        if twin.dtype != self.dtype:
            raise ArgumentError(f"changed must keep the dtype {self.dtype}, got {twin.dtype}")
        become(self, twin)

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, name: str | int) -> Layer:
        return self.layers[name] if isinstance(name, int) else self._layers[name]

    def __repr__(self) -> str:
        lines = [f"  {name}: {layer!r}".replace("\n", "\n  ") for name, layer in self._layers.items()]
        return "\n".join([super().__repr__(), *lines])

    def config(self) -> dict[str, Any]:
        """The layers and the names of the frozen ones."""
        return {"layers": self._layers, "frozen": sorted(self.frozen)}


def _check(layers: Mapping[str, Layer]) -> None:
    if not layers:
        raise ArgumentError("layers must contain at least one layer, got none")
    for name, layer in layers.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ArgumentError(f"layers must have names without a dot, got {name!r}")
        if not isinstance(layer, Layer):
            raise ArgumentError(f"layers must contain only layers, got {layer!r} as {name!r}")
    if len({id(layer) for layer in layers.values()}) < len(layers):
        raise ArgumentError("layers must be distinct objects, but a layer occurs twice")
    ordered = list(layers.items())
    for (name, layer), (next_name, following) in itertools.pairwise(ordered):
        if layer.output_size != following.input_size:
            raise ArgumentError(
                f"layers must have matching sizes, but the output_size of {name!r} is {layer.output_size} and "
                f"the input_size of {next_name!r} is {following.input_size}"
            )
        if layer.dtype != following.dtype:
            raise ArgumentError(
                f"layers must have the same dtype, got {layer.dtype} for {name!r} and {following.dtype} for {next_name!r}"
            )
