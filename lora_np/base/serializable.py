"""`Serializable` (C#: Serialize, Deserialize): a layer in a file, as arrays, nested configs and settings; no pickle."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self

import numpy as np

from .. import _archive
from .._typing import Array
from ..errors import ArgumentError, FormatError, NotSupportedError
from .parameters import ParameterTree, new_name

# Keys with a dot, which no layer's name has.
TYPE, CONFIG = "lora_np.type", "lora_np.config"


class Serializable(ParameterTree, ABC):
    """Needs the arrays and, to build a layer from its file, `config`; gives files and copies."""

    settings: ClassVar[tuple[str, ...]] = ()
    """Attributes, other than arrays, that may change after construction and belong in a file."""

    if TYPE_CHECKING:
        load_weights: Any

    @abstractmethod
    def reset_state(self) -> None:
        """Drop what `forward` and `backward` remember."""

    def config(self) -> dict[str, Any]:
        """The arguments with which `from_config` builds a layer of the same structure; the values may be layers."""
        raise NotSupportedError(f"{type(self).__name__} cannot be saved: it has no config() that says how to rebuild it")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new layer of this structure."""
        return cls(**config)

    def clone(self) -> Self:
        """A deep copy without pending gradients; it and every layer inside it have names of their own."""
        twin = copy.deepcopy(self)
        for layer in twin.walk().values():
            layer.layer_name = new_name(layer)
        return twin

    def serialize(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write every array (a frozen base too), the structure and the settings to an npz file.

        Parameters
        ----------
        file : path or binary stream
            A path is replaced only when the new file is complete.

        Raises
        ------
        NotSupportedError
            A layer inside cannot be saved; nothing is written.
        """
        _archive.write(file, header(self), self.named_parameters(frozen=True))

    def deserialize(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Read arrays and settings of a layer of the same structure; `lora_np.load_layer` builds the layer itself.

        Raises
        ------
        FormatError
            The file is damaged, or it holds another structure: the message names the first difference. Nothing is
            changed.
        """
        header, arrays = _archive.read(file)
        _check_structure(self, header)
        restore(self, header, arrays)


def header(layer: Serializable) -> dict[str, Any]:
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


def _check_structure(layer: Serializable, header: Mapping[str, Any]) -> None:
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


def restore(layer: Serializable, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
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


def _set(layers: Mapping[str, Serializable], settings: Mapping[str, Mapping[str, Any]]) -> None:
    for path, values in settings.items():
        for name, value in values.items():
            setattr(layers[path], name, value)
