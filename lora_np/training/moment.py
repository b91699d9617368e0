"""`Moment`: what changes in a model during training; and a digest of what must not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from ..base import Layer, draw_seed
from ..base.serializable import encode, set_settings, settings_of
from ..errors import NotSupportedError


class Moment(NamedTuple):
    """What changes in a model during training."""

    parameters: Array
    """The flat vector of the trainable parameters."""
    settings: Mapping[str, Mapping[str, Any]]
    """The settings of each layer by path."""

    @classmethod
    def of(cls, model: Layer) -> Moment:
        """The current moment of a model, as a copy."""
        return cls(model.get_parameters(), settings_of(model.walk()))

    def each(self, model: Layer, count: int) -> list[Moment]:
        """A moment for each of several passes, which draw the seeds that the model draws here, one for each pass."""
        moments = []
        for _ in range(count):
            moments.append(self._replace(settings=settings_of(model.walk())))
            if draw_seed(model) is None:
                return [self] * count
        return moments

    def set(self, model: Layer) -> None:
        """Bring a model to this moment."""
        model.set_parameters(self.parameters)
        set_settings(model.walk(), self.settings)


def fingerprint(model: Layer) -> str:
    """A digest of what must be equal in every process: the structure, and each frozen array."""
    digest = hashlib.blake2b(digest_size=16)
    with suppress(NotSupportedError):  # layers without a config are compared by their arrays alone
        digest.update(json.dumps(encode(model)).encode())
    trained = model.named_parameters()
    for name, array in model.named_parameters(frozen=True).items():
        digest.update(f"{name} {array.dtype.str} {array.shape} {name in trained}\n".encode())
        if name not in trained:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
