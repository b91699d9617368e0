"""`Serializable` (C#: Serialize, Deserialize): layers in files, as arrays, nested configs and settings, without pickle."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from .. import _archive
from .._typing import Array
from ..errors import ArgumentError, FormatError, InvalidOperationError, NotSupportedError
from .parameters import ParameterTree, new_name

# The dot keeps these keys apart from the names of layers, which contain none.
TYPE, CONFIG = "lora_np.type", "lora_np.config"


class Serializable(ParameterTree, ABC):
    """Mixin that saves, loads and clones layers; requires the arrays, and `config` to rebuild a layer from its file."""

    settings: tuple[str, ...] = ()
    """Attributes, other than arrays, that may change after construction and are saved in files."""

    if TYPE_CHECKING:
        load_weights: Any

    @abstractmethod
    def reset_state(self) -> None:
        """Discard the state that `forward` and `backward` store."""

    def config(self) -> dict[str, Any]:
        """The arguments with which `from_config` builds a layer of the same structure; the values may be layers."""
        raise NotSupportedError(f"{type(self).__name__} cannot be saved: it does not implement config()")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new layer with the given config."""
        return cls(**config)

    def clone(self) -> Self:
        """A deep copy without pending gradients, in which every layer gets a new name."""
        twin = copy.deepcopy(self)
        for layer in twin.walk().values():
            layer.layer_name = new_name(layer)
        return twin

    def serialize(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write all arrays (those of a frozen base too), the structure and the settings to an npz file.

        Parameters
        ----------
        file : path or binary stream
            An existing file is replaced only once the new one is complete.

        Raises
        ------
        NotSupportedError
            If a layer inside cannot be saved; nothing is written.
        InvalidOperationError
            If another thread adds, removes or replaces tasks meanwhile; nothing is written.
        """
        description, arrays = header(self), self.named_parameters(frozen=True)
        if description != header(self) or arrays.keys() != self.named_parameters(frozen=True).keys():
            raise InvalidOperationError(
                f"{self.layer_name} was changed by another thread while it was saved; save it again"
            )
        _archive.write(file, description, arrays)

    def deserialize(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Load arrays and settings from a layer of the same structure; `lora_np.load_layer` also builds the layer.

        Raises
        ------
        FormatError
            If the file is damaged, or if its structure differs, in which case the message names the first difference.
            Nothing is changed.
        """
        header, arrays = _archive.read(file)
        _check_structure(self, header)
        restore(self, header, arrays)


def header(layer: Serializable) -> dict[str, Any]:
    """The JSON header of a saved layer."""
    return {"format": "lora_np", "version": 1, "layer": encode(layer), "settings": settings_of(layer.walk())}


def settings_of(layers: Mapping[str, Serializable]) -> dict[str, dict[str, Any]]:
    """The settings of each layer that has some, by path."""
    return {path: {name: getattr(each, name) for name in each.settings} for path, each in layers.items() if each.settings}


def set_settings(layers: Mapping[str, Serializable], settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the settings of layers, given by path."""
    for path, values in settings.items():
        for name, value in values.items():
            setattr(layers[path], name, value)


def encode(value: Any) -> Any:
    """A config value as JSON: objects with a `config` become their type's name and their own config."""
    if hasattr(value, "config"):
        return {TYPE: name_of(type(value)), CONFIG: encode(value.config())}
    if isinstance(value, Mapping):
        return {name: encode(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, np.dtype):
        return value.name
    return value


def name_of(kind: type) -> str:
    """The name of a class in files; classes from outside this package have their module in front of it."""
    inside = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return kind.__name__ if inside else f"{kind.__module__}.{kind.__qualname__}"


def _check_structure(layer: Serializable, header: Mapping[str, Any]) -> None:
    """Raise FormatError if the structure in a file differs from that of the layer."""
    difference = _difference("", header.get("layer"), encode(layer))
    if difference:
        raise FormatError(
            f"the file does not match {layer.layer_name}: {difference}; use lora_np.load_layer to build the saved layer"
        )


def _difference(path: str, theirs: Any, ours: Any) -> str | None:
    """The first place where two JSON values differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            word = name.removeprefix("lora_np.")
            inner = _difference(f"{path}.{word}" if path else word, theirs.get(name), ours.get(name))
            if inner:
                return inner
        ordered = list(theirs) == list(ours)
        return None if ordered else f"{path or 'layer'} is ordered {list(theirs)} in the file and {list(ours)} here"
    return None if theirs == ours else f"{path or 'layer'} is {theirs!r} in the file and {ours!r} here"


def restore(layer: Serializable, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Set the arrays and settings of a layer from a file of the same structure, either all or none."""
    layers = layer.walk()
    kept, settings = settings_of(layers), header.get("settings")
    expected = {path: set(names) for path, names in kept.items()}
    given = settings if isinstance(settings, dict) else {}
    if {path: set(names) if isinstance(names, dict) else None for path, names in given.items()} != expected:
        raise FormatError(f"the file's settings do not match {layer.layer_name}: expected {expected}, got {settings}")
    try:
        set_settings(layers, given)
        result = layer.load_weights(arrays, strict=True)
    except ArgumentError as error:
        set_settings(layers, kept)
        raise FormatError(f"the file's settings do not match {layer.layer_name}: {error}") from error
    if not result.success:
        set_settings(layers, kept)
        raise FormatError(f"the file's arrays do not match {layer.layer_name}: {result.error_message}")
    layer.reset_state()
