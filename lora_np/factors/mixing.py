"""Rules that mix tensors element by element: those of PEFT's ``add_weighted_adapter``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._typing import Array, Generator


@dataclass(frozen=True)
class Mixing:
    """What the rules need besides tensors and weights."""

    density: float
    majority_sign: str
    random: Generator


def _linear(tensors: Array, weights: Array, _: Mixing) -> Array:
    """``Σ w_i T_i``."""
    return (weights * tensors).sum(axis=0)


def _magnitude_prune(tensors: Array, weights: Array, settings: Mixing) -> Array:
    """The weighted sum of the largest elements of each tensor."""
    return _linear(_largest(tensors, settings.density), weights, settings)


def _ties(tensors: Array, weights: Array, settings: Mixing) -> Array:
    """Trim, elect signs, and average what agrees with them (Yadav et al. 2023)."""
    return _disjoint_mean(_largest(tensors, settings.density), weights, settings)


def _dare_linear(tensors: Array, weights: Array, settings: Mixing) -> Array:
    """Drop elements at random, and rescale the others (Yu et al. 2024); the weighted sum."""
    return _linear(_dropped(tensors, settings), weights, settings)


def _dare_ties(tensors: Array, weights: Array, settings: Mixing) -> Array:
    """Drop elements at random, and rescale the others; then elect signs, and average what agrees with them."""
    return _disjoint_mean(_dropped(tensors, settings), weights, settings)


def _largest(tensors: Array, density: float) -> Array:
    """Each tensor with only the given fraction of its elements, those of the largest magnitude."""
    flat = tensors.reshape(len(tensors), -1)
    kept = np.zeros_like(flat)
    for tensor, result in zip(flat, kept, strict=True):
        count = int(density * tensor.size)
        if count:
            chosen = np.argpartition(np.abs(tensor), tensor.size - count)[tensor.size - count :]
            result[chosen] = tensor[chosen]
    return kept.reshape(tensors.shape)


def _dropped(tensors: Array, settings: Mixing) -> Array:
    """Each element with the probability `density`, divided by it, so that the mean is that of the tensor."""
    return tensors * (settings.random.random(tensors.shape) < settings.density) / settings.density


def _disjoint_mean(tensors: Array, weights: Array, settings: Mixing) -> Array:
    """For each element, the mean of the weighted values whose sign is that of the majority."""
    votes = tensors if settings.majority_sign == "total" else np.sign(tensors)
    majority = np.where(votes.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(tensors) == majority
    return (weights * tensors * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


MIXTURES: dict[str, Callable[[Array, Array, Mixing], Array]] = {
    "linear": _linear,
    "magnitude_prune": _magnitude_prune,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
}
