"""`DiagnosticsProvider` (C#: IDiagnosticsProvider): a description of a layer, and estimates of its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Array
from ..run import Run
from .parameters import ParameterTree


class DiagnosticsProvider(ParameterTree, ABC):
    """Mixin that describes a layer and estimates its cost; requires the arrays, the sizes, `apply` and `estimate_flops`."""

    if TYPE_CHECKING:  # provided by `Layer`
        apply: Any
        is_training: Any

    @abstractmethod
    def estimate_flops(self) -> int:
        """The floating-point operations of a forward pass over one row; a multiply-add counts as two."""

    def _details(self) -> dict[str, str]:
        """Entries for `get_diagnostics` and `repr` that are specific to this type of layer: strings by dotted name."""
        return {}

    def get_activation_types(self) -> tuple[str, ...]:
        """The names of the activations inside, in order."""
        return tuple(name for child in self.children().values() for name in child.get_activation_types())

    @property
    def supports_training(self) -> bool:
        """Whether the layer has trainable parameters."""
        own = any(name not in self.frozen for name in self.parameter_names)
        return own or any(child.supports_training for child in self._trained_children())

    @property
    def is_initialized(self) -> bool:
        """Always True: the constructor sets the sizes and creates the weights."""
        return True

    def get_input_shape(self) -> tuple[int, ...]:
        """The shape of one input sample."""
        return (self.input_size,)

    def get_output_shape(self) -> tuple[int, ...]:
        """The shape of one output sample."""
        return (self.output_size,)

    def get_diagnostics(self) -> dict[str, str]:
        """A description of the layer and its state: strings by dotted name."""
        return {
            "layer.type": type(self).__name__,
            "layer.name": self.layer_name,
            "layer.input_shape": str(self.get_input_shape()),
            "layer.output_shape": str(self.get_output_shape()),
            "layer.dtype": str(self.dtype),
            "layer.parameter_count": str(self.parameter_count),
            "layer.supports_training": str(self.supports_training),
            "layer.is_training": str(self.is_training),
            "layer.activation": ", ".join(self.get_activation_types()) or "none",
        } | self._details()

    def __repr__(self) -> str:
        trainable = self.parameter_count
        total = self._count(frozen=True)
        size = f"{trainable:,} parameters" if trainable == total else f"{trainable:,} of {total:,} parameters train"
        words = [f"{self.input_size} -> {self.output_size}"]
        words += [f"{name.rpartition('.')[2]}={value}" for name, value in self._details().items()]
        return f"{type(self).__name__}({', '.join([*words, size])})"

    def estimate_activation_memory(self) -> int:
        """The bytes that a forward pass keeps per row: the input, the row's share of the cache, and the output."""
        return self._kept_bytes(rows=2) - self._kept_bytes(rows=1)

    def _example(self, rows: int) -> Array:
        """An input of the given number of rows."""
        return np.zeros((rows, self.input_size), self.dtype)

    def _kept_bytes(self, rows: int) -> int:
        x = self._example(rows)
        arrays: dict[int, int] = {}
        _collect((x, self.apply(x, Run())), arrays)
        return sum(arrays.values())


def _collect(value: Any, arrays: dict[int, int]) -> None:
    """Record the size of every array inside a value, by address, so that views of one array count once."""
    if isinstance(value, np.ndarray):
        address = value.__array_interface__["data"][0]
        arrays[address] = max(value.nbytes, arrays.get(address, 0))
    elif isinstance(value, tuple | list):
        for item in value:
            _collect(item, arrays)
    elif isinstance(value, Mapping):
        _collect(list(value.values()), arrays)
