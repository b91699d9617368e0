"""Selecting elements of an array by a condition, without a branch for each element."""

from __future__ import annotations

import numpy as np

from .._typing import Array

WORDS = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}
"""The integers as wide as each dtype."""


def zero_where(condition: Array, x: Array) -> Array:
    """0 if the condition holds, else x: ``np.where(condition, 0, x)``, as fast as a multiplication.

    Unlike a product with 0, it makes no NaN of an infinite element.

    Parameters
    ----------
    condition : array of bool
    x : array of the same shape, or a number
    """
    x = np.asarray(x)
    if x.dtype not in WORDS:
        return np.where(condition, 0, x)
    bits = condition.astype(WORDS[x.dtype])
    bits -= 1  # all bits are 0 if the condition holds, else 1
    bits &= x.view(bits.dtype)
    return bits.view(x.dtype)
