"""Activations and their derivatives in float32, in one pass over memory; activations.py has the formulas.

A large array is processed in pieces that stay in a core's cache, and each operation on a piece writes to a buffer in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .._typing import Array

GELU_C = 0.7978845608028654  # √(2/π)
GELU_D = 0.044715
INVERSE_SQRT_2PI = 0.3989422804014327

PIECE = 2**15
"""The number of elements of a piece: an operation on three arrays then touches 384 KiB."""

Piece: TypeAlias = Callable[[Array, Array, Array | None, Array, Array], None]
"""``piece(z, y, slope, c, t)`` writes f(z) to y and, unless it is None, f'(z) to slope; c and t are buffers.

c is z between limits beyond which f(z) is 0 or z to float32 precision: no power overflows.
"""

# P in Φ(z) = (1 + tanh(z P(z²))) / 2 for |z| <= 6, in descending powers of z²: the minimax fit, which is within 3e-8 of Φ.
PHI = (1.756170216e-9, -1.322633225e-7, 3.964744225e-6, -5.530619278e-5, -3.259497747e-5, 3.633308458e-2, 7.978849415e-1)

HIGHEST, *OTHERS = (np.array(coefficient, np.float32) for coefficient in PHI)  # NumPy adds arrays faster than numbers


def gelu_exact_piece(z: Array, y: Array, slope: Array | None, c: Array, t: Array) -> None:
    """``p = Φ(z)``, ``y = z p``, ``slope = p + z exp(-z²/2) / √(2π)``."""
    np.clip(z, -6, 6, out=c)
    np.multiply(c, c, out=t)
    p = np.multiply(t, HIGHEST, out=y)
    for coefficient in OTHERS[:-1]:
        p += coefficient
        p *= t
    p += OTHERS[-1]
    p *= c
    np.tanh(p, out=p)
    p += 1
    p *= 0.5
    if slope is not None:
        t *= -0.5
        np.exp(t, out=t)
        t *= INVERSE_SQRT_2PI
        t *= c
        np.add(p, t, out=slope)
    _multiply(p, z, c)


def gelu_piece(z: Array, y: Array, slope: Array | None, c: Array, t: Array) -> None:
    """``u = C (z + D z³)``, ``p = σ(2u) = (1 + tanh u) / 2``, ``y = z p``, ``slope = p + z 2u' p (1 - p)``."""
    np.clip(z, -10, 10, out=c)
    np.multiply(c, c, out=t)
    np.multiply(t, -2 * GELU_C * GELU_D, out=y)
    y += -2 * GELU_C
    y *= c
    p = _sigmoid(y, slope)
    if slope is not None:
        t *= 6 * GELU_C * GELU_D
        t += 2 * GELU_C
        t *= c
        _add_product(slope, p, t)
    _multiply(p, z, c)


def swish_piece(z: Array, y: Array, slope: Array | None, c: Array, t: Array) -> None:
    """``p = σ(z)``, ``y = z p``, ``slope = p + z p (1 - p)``."""
    np.clip(z, -87, 87, out=c)
    np.negative(c, out=y)
    p = _sigmoid(y, slope)
    if slope is not None:
        _add_product(slope, p, c)
    _multiply(p, z, c)


def _sigmoid(minus: Array, e: Array | None) -> Array:
    """``p = σ(x) = 1 / (1 + exp(-x))``, in place of -x; ``exp(-x)`` in e."""
    e = np.exp(minus, out=minus if e is None else e)
    np.add(e, 1, out=minus)
    return np.reciprocal(minus, out=minus)


def _add_product(e: Array, p: Array, t: Array) -> None:
    """``p + t p (1 - p)``, in place of ``e = (1 - p) / p``, with which ``1 - p`` is precise where p is almost 1."""
    e *= p
    e *= p
    e *= t
    e += p


def _multiply(p: Array, z: Array, c: Array) -> None:
    """``p *= z``, but with c where z is below the limit: ``-∞ · 0`` is not a number."""
    np.maximum(z, c, out=c)
    p *= c


def value_and_slope(piece: Piece, z: Array, *, slope: bool, overwrite: bool) -> tuple[Array, Array | None]:
    """f(z), and f'(z) or None, of a float32 array of any shape; the last of them in the memory of z if that is allowed."""
    z_all = z.reshape(-1)
    last = z_all if overwrite else np.empty_like(z_all)
    y_all, slope_all = (np.empty_like(z_all), last) if slope else (last, None)
    c, t = np.empty((2, min(PIECE, z.size)), z.dtype)
    for start in range(0, z.size, PIECE):
        part = slice(start, start + PIECE)
        z_part = z_all[part].copy() if overwrite else z_all[part]
        n = z_part.size
        piece(z_part, y_all[part], None if slope_all is None else slope_all[part], c[:n], t[:n])
    return y_all.reshape(z.shape), None if slope_all is None else slope_all.reshape(z.shape)
