"""Layers and models in npz files."""

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
    """Save a layer or model to an npz file; the same as ``layer.serialize(file)``.

    Parameters
    ----------
    layer : Layer
        The layer, saved with all layers inside it; frozen arrays are included.
    file : path or binary stream
        An existing file is replaced only once the new one is complete.
    """
    layer.serialize(file)


def load_layer(file: str | os.PathLike[str] | BinaryIO) -> Layer:
    """Load a layer or model from an npz file.

    Parameters
    ----------
    file : path or binary stream
        A file written by `save_layer`. User-defined layer classes must be imported before the call.

    Returns
    -------
    Layer
        A layer with equal arrays, structure and settings, in training mode, with new random generators.

    Raises
    ------
    FormatError
        If the file is damaged or names an unknown class.
    """
    header, arrays = _archive.read(file)
    try:
        layer = _decode(header.get("layer"), _known_classes())
    except (ArgumentError, TypeError, KeyError, ValueError, AttributeError, RecursionError, StopIteration) as error:
        raise FormatError(f"the description of the layer in the file is damaged: {error}") from error
    if not isinstance(layer, Layer):
        raise FormatError("the file does not describe a layer")
    restore(layer, header, arrays)
    return layer


def _known_classes() -> dict[str, Any]:
    classes: dict[str, Any] = {"Activation": Activation, "Regularization": Regularization}
    pending = [Layer]
    while pending:
        for subclass in pending.pop().__subclasses__():
            classes.setdefault(subclass.__name__, subclass)
            pending.append(subclass)
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
