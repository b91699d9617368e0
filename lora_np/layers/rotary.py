"""Rotary positions: a pure pair `apply` / `vjp` without parameters."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, final

import numpy as np

from .._typing import Array
from .._validation import finite_float, positive_int
from ..errors import ArgumentOutOfRangeError


@final
class Rotary:
    """Rotary positions: ``y = R(θ) x`` turns each head by angles proportional to the position (Su et al. 2021).

    Parameters
    ----------
    head_size : int
        d, an even number. Component j < d/2 turns together with component j + d/2, as in Llama.
    base : float, default 10000
        The angle of this pair at position p is ``θ = p base^(-2j/d)``.

    Raises
    ------
    ArgumentError
        If an argument has the wrong type.
    ArgumentOutOfRangeError
        If `head_size` is odd, or a number is not positive.
    """

    def __init__(self, head_size: int, base: float = 10000.0) -> None:
        self.head_size, self.base = positive_int("head_size", head_size), finite_float("base", base)
        if self.head_size % 2:
            raise ArgumentOutOfRangeError(f"head_size must be even, got {head_size}")
        if self.base <= 0:
            raise ArgumentOutOfRangeError(f"base must be positive, got {base}")

    def apply(self, x: Array, positions: Array) -> Array:
        """``y = R(θ) x`` in each head: x (N, heads·d) and positions (N,) -> (N, heads·d)."""
        cos, sin = self._turns(positions, x.real.dtype)
        return _rotated(x, cos, sin)

    def vjp(self, dy: Array, positions: Array) -> Array:
        """``dx = R(-θ) dy``."""
        cos, sin = self._turns(positions, dy.real.dtype)
        return _rotated(dy, cos, -sin)

    def _turns(self, positions: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Cosine and sine of the angles at each position: (N, d/2) each."""
        rows = 1 << int(positions.max(initial=0)).bit_length()  # powers of two, so that few tables are ever made
        cos, sin = _tables(self.head_size, self.base, rows, dtype)
        return cos[positions], sin[positions]


@lru_cache(maxsize=8)
def _tables(d: int, base: float, rows: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Cosine and sine of the angles at the first positions, (rows, d/2) each: shared by all layers of a model."""
    frequencies = base ** (-np.arange(0, d, 2) / d)  # (d/2,)
    angles = np.arange(rows)[:, np.newaxis] * frequencies  # (rows, d/2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    """``y₁ = x₁ cos θ - x₂ sin θ``, ``y₂ = x₂ cos θ + x₁ sin θ`` for the halves of each head."""
    N, half = cos.shape
    halves = x.reshape(N, x.shape[-1] // (2 * half), 2, half)
    x1, x2 = halves[:, :, 0], halves[:, :, 1]  # (N, heads, d/2)
    cos, sin = cos[:, np.newaxis], sin[:, np.newaxis]  # (N, 1, d/2)
    return np.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=2).reshape(x.shape)
