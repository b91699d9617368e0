"""Whole layers in one npz file."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from .. import _archive
from ..base import Layer
from ..base.serializable import CONFIG, TYPE, restore
from ..errors import ArgumentError, FormatError
from ..functions.activations import Activation
from ..functions.regularization import Regularization


def save_layer(layer: Layer, file: str | os.PathLike[str] | BinaryIO) -> None:
    """Save a layer, with everything inside it: the same as ``layer.serialize(file)``.

    Parameters
    ----------
    layer : Layer
        A model or a single layer; frozen arrays are saved too.
    file : path or binary stream
        A path is replaced only when the new file is complete.
    """
    layer.serialize(file)


def load_layer(file: str | os.PathLike[str] | BinaryIO) -> Layer:
    """Build the layer that a file holds.

    Parameters
    ----------
    file : path or binary stream
        As `save_layer` wrote it. A class of your own must have been imported.

    Returns
    -------
    Layer
        With equal arrays, structure and settings, in training mode; random generators are new.

    Raises
    ------
    FormatError
        The file is damaged, or names a class that is not known here.
    """
    header, arrays = _archive.read(file)
    try:
        layer = _decode(header.get("layer"), _known_classes())
    except (ArgumentError, TypeError, KeyError, ValueError, AttributeError, RecursionError, StopIteration) as error:
        raise FormatError(f"the file's description of the layer is damaged: {error}") from error
    if not isinstance(layer, Layer):
        raise FormatError("the file does not describe a layer")
    restore(layer, header, arrays)
    return layer


def _known_classes() -> dict[str, Any]:
    classes: dict[str, Any] = {"Activation": Activation, "Regularization": Regularization}
    waiting = [Layer]
    while waiting:
        for subclass in waiting.pop().__subclasses__():
            classes.setdefault(subclass.__name__, subclass)
            waiting.append(subclass)
    return classes


def _decode(value: Any, classes: dict[str, Any]) -> Any:
    """The inverse of `lora_np.base.serializable.encode`."""
    if isinstance(value, list):
        return [_decode(item, classes) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {TYPE, CONFIG}:
        return {name: _decode(item, classes) for name, item in value.items()}
    if value[TYPE] not in classes:
        raise FormatError(f"unknown class {value[TYPE]!r}; import the module that defines it first")
    return classes[value[TYPE]].from_config(_decode(value[CONFIG], classes))
