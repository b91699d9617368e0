"""`TrainingMode`: switches a layer, and all layers inside it, between training and evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from .._validation import flag
from .parameters import ParameterTree


class TrainingMode(ParameterTree):
    """Mixin that holds the mode; requires the children."""

    _is_training = True

    @property
    def is_training(self) -> bool:
        """Whether `forward` runs in training mode; setting it applies to all layers inside."""
        return self._is_training

    @is_training.setter
    def is_training(self, is_training: bool) -> None:
        mode = flag("is_training", is_training)
        for layer in self.walk().values():
            layer._is_training = mode

    def set_training_mode(self, is_training: bool) -> None:
        """Set `is_training`."""
        self.is_training = is_training

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; returns the layer."""
        self.is_training = mode
        return self

    def eval(self) -> Self:
        """Switch to evaluation mode; returns the layer."""
        return self.train(False)


@contextmanager
def training_mode(layer: TrainingMode, is_training: bool) -> Iterator[None]:
    """Context manager: run a block in the given mode, then restore each layer's mode, even if the block raises."""
    kept = [(inner, inner._is_training) for inner in layer.walk().values()]
    layer.is_training = is_training
    try:
        yield
    finally:
        for inner, mode in kept:
            inner._is_training = mode
