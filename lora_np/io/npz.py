"""Layers and models in npz files."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Any, BinaryIO

from .. import _archive, adapters, layers, models
from .._validation import allocation_limit, instance
from ..base import Layer
from ..base.serializable import CONFIG, TYPE, name_of, restore
from ..errors import FormatError
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
    instance("layer", layer, Layer, "a layer")
    layer.serialize(file)


def load_layer(file: str | os.PathLike[str] | BinaryIO) -> Layer:
    """Load a layer or model from an npz file.

    Parameters
    ----------
    file : path or binary stream
        A file written by `save_layer`. User-defined layer classes must be imported before the call: nothing is imported
        because a file names it.

    Returns
    -------
    Layer
        A layer with equal arrays, structure and settings, in training mode, with new random generators.

    Raises
    ------
    FormatError
        If the file is damaged, names an unknown class, or describes layers with more elements than its arrays have.
    """
    header, arrays = _archive.read(file)
    try:
        with allocation_limit(sum(array.size for array in arrays.values())):
            layer = _decode(header.get("layer"), _Classes())
    except Exception as error:  # the constructors of layers, some of them the user's, get any values
        raise FormatError(f"the description of the layer in the file is damaged: {error}") from error
    if not isinstance(layer, Layer):
        raise FormatError("the file does not describe a layer")
    restore(layer, header, arrays)
    return layer


class _Classes:
    """The classes that files may name: those of this package by their names, then the user's."""

    def __init__(self) -> None:
        self.ours: dict[str, Any] = {"Activation": Activation, "Regularization": Regularization}
        self.users: list[Any] = []
        for package in (layers, adapters, models):  # a new process may not have imported them yet
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        for kind in _subclasses(Layer):
            if "." in name_of(kind):
                self.users.append(kind)
            else:
                self.ours[kind.__name__] = kind

    def named(self, name: Any) -> Any:
        """The class of a name. A user's class is found by its module and name or, if it has moved, by its name alone."""
        if name in self.ours:
            return self.ours[name]
        found = [kind for kind in self.users if name_of(kind) == name] or [
            kind for kind in self.users if f".{name}".endswith((f".{kind.__qualname__}", f".{kind.__name__}"))
        ]
        found = [kind for kind in found if _is_current(kind)] or found  # a notebook may have run a definition again
        if len(found) > 1:
            raise FormatError(f"{len(found)} classes are named {name!r}: {', '.join(sorted(map(name_of, found)))}")
        if not found:
            raise FormatError(f"unknown class {name!r}; import the module that defines it first")
        return found[0]


def _subclasses(kind: Any) -> set[Any]:
    found = set(kind.__subclasses__())
    return found.union(*map(_subclasses, found))


def _is_current(kind: type) -> bool:
    """Whether a class is the one that its module has under its name."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _decode(value: Any, classes: _Classes) -> Any:
    """The inverse of `lora_np.base.serializable.encode`."""
    if isinstance(value, list):
        return [_decode(item, classes) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {TYPE, CONFIG}:
        return {name: _decode(item, classes) for name, item in value.items()}
    return classes.named(value[TYPE]).from_config(_decode(value[CONFIG], classes))
