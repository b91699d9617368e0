"""Replacing arrays of a layer, without changing the layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from .._typing import Array
from .._validation import same_shape
from ..base import Layer, new_name
from ..errors import ArgumentError
from ..layers.dense import AffineLayer

Model = TypeVar("Model", bound=Layer)


def with_arrays(layer: Model, arrays: Mapping[str, Array]) -> Model:
    """A copy of a layer with new arrays, which are the ones that train; all else is shared.

    Parameters
    ----------
    layer : Layer
    arrays : mapping of str to array
        By the names of the layer's own arrays. A dense layer without a bias may get one.

    Raises
    ------
    ArgumentError
        If the layer has no array of a name, or one of another shape.
    """
    if layer.children():
        raise ArgumentError(f"{layer.layer_name} must not have layers inside for its arrays {list(arrays)} to be replaced")
    twin = copy.copy(layer)
    twin.layer_name = new_name(twin)
    twin.reset_state()
    if "bias" in arrays and isinstance(twin, AffineLayer) and twin.bias is None:
        twin.parameter_names = (*twin.parameter_names, "bias")
        twin.bias = np.zeros(twin.output_size, twin.dtype)
    for name, array in arrays.items():
        if name not in twin.parameter_names:
            raise ArgumentError(f"arrays must name arrays of {layer.layer_name}, {twin.parameter_names}; got {name!r}")
        same_shape(name, array, getattr(twin, name).shape)
        setattr(twin, name, np.array(array, twin.dtype, order="C"))
    twin.frozen = frozenset(twin.parameter_names) - set(arrays)
    return twin
