"""Clipping of gradients by their global norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .._typing import Array, Gradients


def clipped(gradients: Mapping[str, Array], clip_norm: float) -> Gradients:
    """The gradients, scaled down together if their norm exceeds `clip_norm` (Pascanu et al. 2013, algorithm 1).

    ``g ← g min(1, c / ‖g‖)``, with ‖g‖ the Euclidean norm over all elements of all arrays.
    """
    norm = math.hypot(*map(_norm, gradients.values()))
    return {name: g * (clip_norm / norm) for name, g in gradients.items()} if norm > clip_norm else dict(gradients)


def _norm(array: Array) -> float:
    """The Euclidean norm, relative to the largest element, so that no square overflows."""
    largest = float(np.abs(array).max(initial=0))
    return largest * math.sqrt(np.square(array / largest).sum(dtype=float)) if largest else 0.0
