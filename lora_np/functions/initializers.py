"""Weight initializers: functions ``(shape, dtype, rng) -> array``, with shape (inputs, outputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .._typing import Array, Generator
from .._validation import function, real_array, same_shape

Initializer: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any], Generator], Array]
"""The type of a layer's ``initializer=``."""

PIECE = 2**16
"""The number of samples to draw at a time."""


def initial(initializer: Initializer, shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """The result of an initializer, which must have the given shape."""
    function("initializer", initializer)
    array = real_array("initializer's result", initializer(shape, dtype, rng), dtype)
    same_shape("initializer's result", array, shape)
    return array


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """Zeros; no random numbers are drawn."""
    return np.zeros(shape, dtype)


def normal(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator, *, std: float) -> Array:
    """Independent samples from N(0, std²)."""
    return _filled(shape, dtype, lambda count: std * rng.standard_normal(count))


def uniform(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator, *, limit: float) -> Array:
    """Independent samples from U(-limit, limit)."""
    return _filled(shape, dtype, lambda count: rng.uniform(-limit, limit, count))


def _filled(shape: tuple[int, ...], dtype: np.dtype[Any], draw: Callable[[int], Array]) -> Array:
    """An array of samples, which are drawn in float64 whatever the dtype, so that a seed gives the same ones in both.

    They are drawn a piece at a time: in float32, all of them at once would need twice as much memory as the array.
    """
    array = np.empty(shape, dtype)
    flat = array.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        piece[...] = draw(piece.size)
    return array


def glorot_uniform(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """U(-l, l) with l = √(6 / (inputs + outputs)), for tanh-like activations (Glorot and Bengio 2010, eq. 16)."""
    return uniform(shape, dtype, rng, limit=float(np.sqrt(6 / sum(shape))))


def glorot_normal(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """N(0, 2 / (inputs + outputs)), for tanh-like activations (Glorot and Bengio 2010, eq. 12)."""
    return normal(shape, dtype, rng, std=float(np.sqrt(2 / sum(shape))))


def he_uniform(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """U(-l, l) with l = √(6 / inputs), for relu-like activations: the variance of `he_normal` (He et al. 2015, eq. 10)."""
    return uniform(shape, dtype, rng, limit=float(np.sqrt(6 / shape[0])))


def he_normal(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """N(0, 2 / inputs), for relu-like activations (He et al. 2015, eq. 10)."""
    return normal(shape, dtype, rng, std=float(np.sqrt(2 / shape[0])))


INITIALIZERS = (zeros, normal, uniform, glorot_uniform, glorot_normal, he_uniform, he_normal)
"""All initializers of the package. Each returns a new array, which the caller may keep."""
