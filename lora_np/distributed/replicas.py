"""The same model in many processes: the base is loaded once in each, what changes travels."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np

from .._typing import Array
from ..base import Layer
from ..base.serializable import encode
from ..errors import ArgumentError, NotSupportedError
from ..io.npz import load_layer
from ._cache import Recent

Source: TypeAlias = str | os.PathLike[str] | Callable[[], Layer]
"""Where a worker gets the model from: an npz file of `lora_np.save_layer`, or a picklable function without arguments."""


def fingerprint(model: Layer) -> str:
    """A digest of what must be equal in every process: the structure, and each array that does not train."""
    digest = hashlib.blake2b(digest_size=16)
    with suppress(NotSupportedError):  # of a layer without a config the arrays alone are compared
        digest.update(json.dumps(encode(model)).encode())
    trained = model.named_parameters()
    for name, array in model.named_parameters(frozen=True).items():
        digest.update(f"{name} {array.dtype.str} {array.shape} {name in trained}\n".encode())
        if name not in trained:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Given:
    """The source where there is no other: the model itself, which travels to other processes with every task."""

    model: Layer

    def __call__(self) -> Layer:
        """The model."""
        return self.model


class Moment(NamedTuple):
    """What changes in a model during training; it travels with every task."""

    parameters: Array
    """The flat vector of the trainable parameters."""
    settings: Mapping[str, Mapping[str, Any]]
    """The settings of each layer by path."""

    @classmethod
    def of(cls, model: Layer) -> Moment:
        """The present moment of a model, as a copy."""
        layers = model.walk().items()
        settings = {
            path: {name: getattr(layer, name) for name in layer.settings} for path, layer in layers if layer.settings
        }
        return cls(model.get_parameters(), settings)

    def set(self, model: Layer) -> None:
        """Bring a model to this moment."""
        layers = model.walk()
        model.set_parameters(self.parameters)
        for path, settings in self.settings.items():
            for name, value in settings.items():
                setattr(layers[path], name, value)


@final
class Replicas:
    """Copies of one model that share its frozen arrays, a copy for each thread that works on it at a time.

    Parameters
    ----------
    source : path, or callable
        Where to get the model from.
    expected : str
        Its `fingerprint`.

    Raises
    ------
    ArgumentError
        The source gives another model.
    """

    def __init__(self, source: Source, expected: str) -> None:
        model = load_layer(source) if isinstance(source, str | os.PathLike) else source()
        if not isinstance(model, Layer):
            raise ArgumentError(f"replica must give a layer, got {model!r}")
        if fingerprint(model) != expected:
            raise ArgumentError(
                "replica must give the model that is trained: its structure or an array that does not train is another "
                "one (a seed that is missing?)"
            )
        self._model = model
        self._idle: list[Layer] = []

    @contextmanager
    def at(self, moment: Moment) -> Iterator[Layer]:
        """A replica in this moment, for one thread, in training mode."""
        try:
            replica = self._idle.pop()  # atomic, as append is
        except IndexError:
            replica = self._copy()
        try:
            moment.set(replica)
            yield replica
        finally:
            replica.reset_state()
            self._idle.append(replica)

    def _copy(self) -> Layer:
        trained = self._model.named_parameters()
        frozen = {name: a for name, a in self._model.named_parameters(frozen=True).items() if name not in trained}
        return copy.deepcopy(self._model, {id(array): array for array in frozen.values()}).train()


# Two, so that an evaluation between steps does not drop the model of the training.
_models: Recent[Replicas] = Recent(2)


def of(source: Source, expected: str) -> Replicas:
    """The replicas of a model in this process; the model is loaded when it is needed for the first time."""
    return _models.get(expected, lambda: Replicas(source, expected))


def forget(expected: str) -> None:
    """Drop the replicas of a model in this process."""
    _models.drop(expected)
