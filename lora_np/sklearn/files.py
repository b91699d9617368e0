"""Fitted estimators in npz files: the file of a layer, whose header also describes the estimator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, BinaryIO, TypeVar

import numpy as np
from sklearn.base import BaseEstimator

from .. import _archive
from ..base import Layer
from ..base import serializable as serialization
from ..errors import FormatError, NotSupportedError
from ..functions.activations import Activation
from ..io.npz import load_layer
from ..models.adapting import without_adapters
from . import names, networks

Estimator = TypeVar("Estimator", bound=BaseEstimator)

ESTIMATOR = "estimator"
"""The header entry that describes the estimator."""

OPTIMIZERS = {kind.__name__: kind for kind in names.OPTIMIZERS.values()}


def save(estimator: BaseEstimator, file: str | os.PathLike[str] | BinaryIO) -> None:
    """See `LoRAEstimator.save`."""
    parameters = estimator.get_params(deep=False)
    base = parameters.pop("base")
    # If a head was added, the base is the part before it.
    path = "" if base is None or base.output_size == estimator.model_.output_size else networks.BASE
    write(estimator, file, parameters, base=None if base is None else path)


def write(
    estimator: BaseEstimator, file: str | os.PathLike[str] | BinaryIO, parameters: dict[str, Any], **more: Any
) -> None:
    """Write the network of an estimator, its attributes, the given parameters, and more entries of the description."""
    model = estimator.model_
    if isinstance(parameters["random_state"], np.random.RandomState):
        parameters = parameters | {"random_state": None}
    header = serialization.header(model)
    header[ESTIMATOR] = {
        "type": type(estimator).__name__,
        **more,
        "parameters": {name: _encoded(name, value) for name, value in parameters.items()},
        "attributes": {name: _encoded(name, value) for name, value in attributes(estimator).items() if name != "model_"},
    }
    _archive.write(file, header, model.named_parameters(frozen=True))


def load(
    kind: type[Estimator],
    file: str | os.PathLike[str] | BinaryIO,
    begin: Callable[[Estimator], None],
    layers_in: Callable[[Layer, Mapping[str, Any]], dict[str, Any]] | None = None,
) -> Estimator:
    """See `LoRAEstimator.load`.

    Parameters
    ----------
    kind : class of estimator
    file : path or binary stream
    begin : callable
        Checks the parameters of the estimator, and prepares it for training.
    layers_in : callable, optional
        Returns the parameters that are layers, given the network and the description; by default, the parameter `base`.
    """
    header, _ = _archive.read(file)
    said = header.get(ESTIMATOR)
    if not isinstance(said, dict):
        raise FormatError(f"the file must contain a {kind.__name__}, got only a layer; use lora_np.load_layer")
    if said.get("type") != kind.__name__:
        raise FormatError(f"the file must contain a {kind.__name__}, got a {said.get('type')}")
    model = load_layer(file)
    try:
        parameters = {name: _decoded(value) for name, value in said["parameters"].items()}
        learned = {name: _decoded(value) for name, value in said["attributes"].items()}
        layers = (layers_in or _base_in)(model, said)
        estimator = _built(kind, parameters | layers, learned | {"model_": model})
        begin(estimator)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the file's description of the estimator is damaged: {error!r}") from error
    return estimator


def _base_in(model: Layer, said: Mapping[str, Any]) -> dict[str, Any]:
    return {"base": None if said["base"] is None else without_adapters(model.walk()[said["base"]]).clone()}


def attributes(estimator: BaseEstimator) -> dict[str, Any]:
    """The fitted attributes; by scikit-learn's convention, their names end in an underscore."""
    return {name: value for name, value in vars(estimator).items() if name.endswith("_") and not name.startswith("_")}


def twin(estimator: BaseEstimator, kind: type[Estimator], model: Layer, **learned: Any) -> Estimator:
    """A single-task estimator that is fitted with another network, which is also its base.

    The other parameters and attributes are those of the given estimator, without those about tasks.
    """
    parameters = {name: value for name, value in estimator.get_params(deep=False).items() if name != "base"}
    kept = {name: value for name, value in attributes(estimator).items() if name not in ("tasks_", "task_classes_")}
    return _built(kind, parameters | {"base": model}, kept | {"model_": model} | learned)


def _built(kind: type[Estimator], parameters: dict[str, Any], learned: dict[str, Any]) -> Estimator:
    estimator = kind(**parameters)
    for name, value in learned.items():
        setattr(estimator, name, value)
    return estimator


# ---------------------------------------------------------------- values as JSON

# Like the keys of layers, these contain a dot; names of parameters do not.
ARRAY, MAPPING, OPTIMIZER = "lora_np.array", "lora_np.mapping", "lora_np.optimizer"


def _encoded(name: str, value: Any) -> Any:
    """A parameter or an attribute as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _encoded(name, value.item())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Activation):
        return serialization.encode(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUO":
        return {ARRAY: [_encoded(name, item) for item in value.tolist()], "dtype": value.dtype.str}
    if isinstance(value, list | tuple):
        return [_encoded(name, item) for item in value]
    if isinstance(value, dict):
        return {MAPPING: [[_encoded(name, key), _encoded(name, item)] for key, item in value.items()]}
    function, settings = (value.func, value.keywords) if isinstance(value, partial) and not value.args else (value, {})
    if isinstance(function, type) and function in OPTIMIZERS.values():
        return {OPTIMIZER: function.__name__, "settings": _encoded(name, settings)}
    raise NotSupportedError(f"{name} cannot be saved without pickle: {value!r}")


def _decoded(value: Any) -> Any:
    """The inverse of `_encoded`, except that lists become tuples."""
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    if ARRAY in value:
        return np.array(value[ARRAY], dtype=value["dtype"])
    if MAPPING in value:
        return {key: _decoded(item) for key, item in value[MAPPING]}
    if OPTIMIZER in value:
        kind, settings = OPTIMIZERS[value[OPTIMIZER]], _decoded(value["settings"])
        return partial(kind, **settings) if settings else kind
    return Activation.from_config(value[serialization.CONFIG])
