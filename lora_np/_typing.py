"""Names for the types that every room of the package uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""An array of any floating dtype; complex ones appear in complex-step gradient checks only."""

Cache: TypeAlias = Any
"""What ``apply`` hands on to ``vjp``: a tuple of arrays, private to the layer that made it."""

Gradients: TypeAlias = dict[str, Array]
"""Gradient arrays by dotted parameter name."""

Part: TypeAlias = tuple[slice, ...]
"""The part of an array that one pass trains: a slice for each axis."""

Parts: TypeAlias = Mapping[str, Part]
"""The trained part by dotted parameter name; an array that is not named is trained whole."""

# As strings: merely naming numpy.random would load it, which takes as long as all of lora_np.
Generator: TypeAlias = "np.random.Generator"
"""A source of random numbers."""

RNG: TypeAlias = "int | np.random.Generator | None"
"""A seed, a generator, or None for fresh entropy."""
