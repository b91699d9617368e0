"""Initial values of weights: functions ``(shape, dtype, rng) -> array``, the shape being (inputs, outputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .._typing import Array, Generator

Initializer: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any], Generator], Array]
"""What a layer's ``initializer=`` takes."""


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """All zero; draws no random number."""
    return np.zeros(shape, dtype)


def normal(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator, *, std: float) -> Array:
    """Independent N(0, std²)."""
    return (std * rng.standard_normal(shape)).astype(dtype, copy=False)


def uniform(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator, *, limit: float) -> Array:
    """Independent U(-limit, limit)."""
    return rng.uniform(-limit, limit, shape).astype(dtype, copy=False)


def glorot_uniform(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """U(-l, l) with l = √(6 / (inputs + outputs)): Glorot and Bengio 2010, eq. 16. For tanh-like activations."""
    return uniform(shape, dtype, rng, limit=float(np.sqrt(6 / sum(shape))))


def glorot_normal(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """N(0, 2 / (inputs + outputs)): Glorot and Bengio 2010, eq. 12."""
    return normal(shape, dtype, rng, std=float(np.sqrt(2 / sum(shape))))


def he_uniform(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """U(-l, l) with l = √(6 / inputs): He et al. 2015, eq. 10, as a uniform distribution. For relu-like activations."""
    return uniform(shape, dtype, rng, limit=float(np.sqrt(6 / shape[0])))


def he_normal(shape: tuple[int, ...], dtype: np.dtype[Any], rng: Generator) -> Array:
    """N(0, 2 / inputs): He et al. 2015, eq. 10. For relu-like activations."""
    return normal(shape, dtype, rng, std=float(np.sqrt(2 / shape[0])))
