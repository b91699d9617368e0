"""The same model in many processes: each loads the frozen arrays once, and tasks carry only what changes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, final

from ..base import Layer
from ..errors import ArgumentError
from ..io.npz import load_layer
from ..training.moment import Moment, fingerprint
from ._cache import Recent

Source: TypeAlias = str | os.PathLike[str] | Callable[[], Layer]
"""Where a worker gets the model from: a file of `lora_np.save_layer`, or a picklable function without arguments."""


@dataclass(frozen=True)
class Given:
    """The default source: the model itself, which is sent to other processes with every task."""

    model: Layer

    def __call__(self) -> Layer:
        """The model."""
        return self.model


@final
class Replicas:
    """Copies of one model that share its frozen arrays: one for each thread that is using the model.

    Parameters
    ----------
    source : path, or callable
        Where to get the model from.
    expected : str
        Its `fingerprint`.

    Raises
    ------
    ArgumentError
        If the source provides anything but the expected model.
    """

    def __init__(self, source: Source, expected: str) -> None:
        model = load_layer(source) if isinstance(source, str | os.PathLike) else source()
        if not isinstance(model, Layer):
            raise ArgumentError(f"replica must provide a layer, got {model!r}")
        if fingerprint(model) != expected:
            raise ArgumentError(
                "replica must provide the model that is trained, got one whose structure or frozen arrays differ "
                "(is a random seed missing?)"
            )
        self._model = model
        self._idle: list[Layer] = []

    @contextmanager
    def at(self, moment: Moment) -> Iterator[Layer]:
        """Context manager: a replica at this moment, in training mode, for one thread."""
        try:
            replica = self._idle.pop()  # thread-safe, as is append
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


# Two, so that a prediction between two steps does not evict the model that is trained.
_models: Recent[Replicas] = Recent(2)


def of(source: Source, expected: str) -> Replicas:
    """The replicas of a model in this process; the model is loaded on first use."""
    return _models.get(expected, lambda: Replicas(source, expected))


def forget(expected: str) -> None:
    """Drop the replicas of a model in this process."""
    _models.drop(expected)
