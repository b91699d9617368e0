"""Descriptions of a layer: what `repr`, `get_diagnostics` and `estimate_activation_memory` say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .base import Layer


def describe(layer: Layer) -> dict[str, str]:
    """The documented diagnostics: strings by dotted name."""
    return {
        "layer.type": type(layer).__name__,
        "layer.name": layer.layer_name,
        "layer.input_shape": str(layer.get_input_shape()),
        "layer.output_shape": str(layer.get_output_shape()),
        "layer.dtype": str(layer.dtype),
        "layer.parameter_count": str(layer.parameter_count),
        "layer.supports_training": str(layer.supports_training),
        "layer.is_training": str(layer.is_training),
        "layer.activation": ", ".join(layer.get_activation_types()) or "none",
    } | layer.details()


def summary(layer: Layer) -> str:
    """One line for a layer: type, sizes, what sets it apart, parameters; a further line for each child of a stack."""
    trainable = layer.parameter_count
    total = sum(array.size for array in layer.named_parameters(frozen=True).values())
    size = f"{trainable:,} parameters" if trainable == total else f"{trainable:,} of {total:,} parameters train"
    words = [f"{layer.input_size} -> {layer.output_size}"]
    words += [f"{name.rpartition('.')[2]}={value}" for name, value in layer.details().items()]
    return f"{type(layer).__name__}({', '.join([*words, size])})"


def memory(layer: Layer) -> dict[str, int]:
    """Bytes of the trainable arrays, of the frozen ones, and of packed copies."""
    trainable = sum(array.nbytes for array in layer.named_parameters().values())
    everything = sum(array.nbytes for array in layer.named_parameters(frozen=True).values())
    packed = sum(inner.packed_bytes for inner in layer.walk().values())
    return {"trainable": trainable, "frozen": everything - trainable, "packed": packed}


def activation_memory(layer: Layer) -> int:
    """Bytes that one more row makes `apply` keep: the input, the cache and the output, each array once."""
    return _kept_bytes(layer, rows=2) - _kept_bytes(layer, rows=1)


def _kept_bytes(layer: Layer, rows: int) -> int:
    x = np.zeros((rows, layer.input_size), layer.dtype)
    arrays: dict[int, int] = {}
    _collect((x, layer.apply(x)), arrays)
    return sum(arrays.values())


def _collect(value: Any, arrays: dict[int, int]) -> None:
    if isinstance(value, np.ndarray):
        address = value.__array_interface__["data"][0]  # views of one array count once
        arrays[address] = max(value.nbytes, arrays.get(address, 0))
    elif isinstance(value, tuple | list):
        for item in value:
            _collect(item, arrays)
    elif isinstance(value, Mapping):
        _collect(list(value.values()), arrays)
