"""`TrainingMode`: whether passes train, as one state of a layer and all layers inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from .parameters import ParameterTree


class TrainingMode(ParameterTree):
    """Needs the layers inside."""

    _is_training = True

    @property
    def is_training(self) -> bool:
        """Whether `forward` runs in training mode; setting it reaches every child."""
        return self._is_training

    @is_training.setter
    def is_training(self, is_training: bool) -> None:
        for layer in self.walk().values():
            layer._is_training = bool(is_training)

    def set_training_mode(self, is_training: bool) -> None:
        """Set `is_training`, here and in every child."""
        self.is_training = is_training

    def train(self, mode: bool = True) -> Self:
        """Training mode; returns the layer."""
        self.is_training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode; returns the layer."""
        return self.train(False)

    @contextmanager
    def training_mode(self, is_training: bool) -> Iterator[None]:
        """A block in this mode; after it, or after an error in it, every layer inside is in its own mode again."""
        kept = [(layer, layer._is_training) for layer in self.walk().values()]
        self.is_training = is_training
        try:
            yield
        finally:
            for layer, mode in kept:
                layer._is_training = mode
