"""What a file says of a layer besides its arrays: the structure as nested configs, and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, FormatError

if TYPE_CHECKING:
    from .base import Layer


# Keys with a dot, which no layer's name has.
TYPE, CONFIG = "lora_np.type", "lora_np.config"


def header(layer: Layer) -> dict[str, Any]:
    """The JSON header of a saved layer."""
    settings = {
        path: {name: getattr(inner, name) for name in inner.settings}
        for path, inner in layer.walk().items()
        if inner.settings
    }
    return {"format": "lora_np", "version": 1, "layer": encode(layer), "settings": settings}


def encode(value: Any) -> Any:
    """A config value as JSON: objects with a `config` become their type's name and their own config."""
    if hasattr(value, "config"):
        return {TYPE: type(value).__name__, CONFIG: encode(value.config())}
    if isinstance(value, Mapping):
        return {name: encode(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, np.dtype):
        return value.name
    return value


def check_structure(layer: Layer, header: Mapping[str, Any]) -> None:
    """Refuse a file that holds another structure than this layer's."""
    difference = _difference("", header.get("layer"), encode(layer))
    if difference:
        raise FormatError(
            f"the file holds another layer than {layer.layer_name}: {difference}; lora_np.load_layer builds it"
        )


def _difference(path: str, theirs: Any, ours: Any) -> str | None:
    """The first place where two JSON values differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            word = name.removeprefix("lora_np.")
            inner = _difference(f"{path}.{word}" if path else word, theirs.get(name), ours.get(name))
            if inner:
                return inner
        return (
            None if list(theirs) == list(ours) else f"{path} has the order {list(theirs)} in the file and {list(ours)} here"
        )
    return None if theirs == ours else f"{path or 'layer'} is {theirs!r} in the file and {ours!r} here"


def restore(layer: Layer, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a file's arrays and settings into a layer of its structure: all of them or none."""
    layers = layer.walk()
    settings = header.get("settings")
    expected = {path: set(inner.settings) for path, inner in layers.items() if inner.settings}
    given = settings if isinstance(settings, dict) else {}
    if {path: set(names) if isinstance(names, dict) else None for path, names in given.items()} != expected:
        raise FormatError(f"the file's settings do not fit {layer.layer_name}: it needs {expected}, got {settings}")
    kept = {path: {name: getattr(layers[path], name) for name in names} for path, names in expected.items()}
    try:
        _set(layers, given)
        result = layer.load_weights(arrays, strict=True)
    except ArgumentError as error:
        _set(layers, kept)
        raise FormatError(f"the file's settings do not fit {layer.layer_name}: {error}") from error
    if not result.success:
        _set(layers, kept)
        raise FormatError(f"the file's arrays do not fit {layer.layer_name}: {result.error_message}")
    layer.reset_state()


def _set(layers: Mapping[str, Layer], settings: Mapping[str, Mapping[str, Any]]) -> None:
    for path, values in settings.items():
        for name, value in values.items():
            setattr(layers[path], name, value)
