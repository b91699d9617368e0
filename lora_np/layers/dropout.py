"""Dropout of a layer's input, with masks that follow from the `Run` of a pass."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._typing import RNG, Array
from .._validation import fraction, generator, integer
from ..base import Layer, Listener
from ..errors import ArgumentError, InvalidOperationError
from ..run import Run


class Mask(NamedTuple):
    """The elements of an input that a pass keeps, and their factor 1 / (1 - p)."""

    kept: Array
    """Boolean, of the shape of the input."""
    scale: float | Array
    """A number, or one for each entry along the first axis."""

    def __call__(self, x: Array) -> Array:
        """``x ⊙ M``, with M = 1 / (1 - p) where an element is kept and 0 elsewhere. It is its own adjoint."""
        dropped: Array = x * self.kept
        dropped *= self.scale
        return dropped


def drawn_mask(shape: tuple[int, ...], probability: float | Array, run: Run, key: int) -> Mask:
    """The mask of a pass in a layer: a function of the seed of the run and of the layer's key.

    Parameters
    ----------
    shape : tuple of int
        The shape of the input, (rows, ..., input_size).
    probability : float, or array
        p, in [0, 1); an array must broadcast against the shape, and its dtype becomes that of the factor.
    run : Run
    key : int
        Distinguishes the layers of a model.

    Raises
    ------
    InvalidOperationError
        If the run has no seed.
    """
    if run.seed is None:
        raise InvalidOperationError("a training pass with dropout needs a seed; `new_run` draws one")
    uniform = np.random.default_rng((*run.seed, key)).random(shape, np.float32)
    return Mask(uniform >= probability, 1 / (1 - probability))


def masked(dx: Array | None, mask: Mask | None) -> Array | None:
    """The gradient of an input, given that of the masked input."""
    return dx if dx is None or mask is None else mask(dx)


def dropout_at(path: str, probability: float) -> dict[str, Any]:
    """The arguments that give the layer at a path dropout, with masks that differ from those of layers at other paths."""
    return {"dropout": probability, "rng": zlib.crc32(path.encode())}


class InputDropout(Listener, Layer):
    """Mixin for layers that drop elements of their input in training passes (Srivastava et al. 2014), off by default.

    Each element is set to zero with probability p and divided by 1 - p otherwise ("inverted" dropout), so that its expected
    value is unchanged and inference needs no factor.
    """

    listens_to = "seed"
    _dropout = 0.0
    _state: tuple[int, int]

    def _drop(self, dropout: float, rng: RNG) -> None:
        """Set p; with dropout, a random number is drawn that distinguishes this layer's masks from those of others."""
        self._dropout = fraction("dropout", dropout)
        if self._dropout:
            self.settings = ("dropout_state",)
            self._state = int(generator(rng).integers(2**62)), 0

    @property
    def dropout(self) -> float:
        """p, the probability with which a training pass drops an element of the input."""
        return self._dropout

    @property
    def dropout_state(self) -> tuple[int, int]:
        """The key of the layer's masks, and the number of seeds that the layer has drawn; only with dropout.

        The masks of all later passes follow from it. Files keep it.
        """
        return self._state

    @dropout_state.setter
    def dropout_state(self, state: Sequence[int]) -> None:
        if not self._dropout or isinstance(state, str) or not isinstance(state, Sequence) or len(state) != 2:
            raise ArgumentError(f"dropout_state must be two integers, and requires dropout, got {state!r}")
        key, count = (integer("dropout_state", number) for number in state)
        if not 0 <= key < 2**62 or not 0 <= count < 2**62:
            raise ArgumentError(f"dropout_state must be two integers from 0 to 2**62, got {state!r}")
        self._state = key, count

    @property
    def is_listening(self) -> bool:
        """Whether there is dropout."""
        return self._dropout > 0

    def draw_seed(self) -> tuple[int, int]:
        """A new seed, from which every layer in the pass derives its mask."""
        key, count = self._state
        self._state = key, count + 1
        return self._state

    def dropped(self, x: Array, run: Run) -> tuple[Array, Mask | None]:
        """``x ⊙ M`` and the mask M of a pass; x itself and None outside training, and without dropout."""
        if not (self._dropout and run.training):
            return x, None
        mask = drawn_mask(x.shape, self._dropout, run, self._state[0])
        return mask(x), mask

    @property
    def dropout_choices(self) -> dict[str, Any]:
        """The arguments that give another layer the same dropout."""
        return {"dropout": self._dropout, "rng": self._state[0]} if self._dropout else {}

    @property
    def dropout_config(self) -> dict[str, Any]:
        """The entry of `config`; none without dropout."""
        return {"dropout": self._dropout} if self._dropout else {}
