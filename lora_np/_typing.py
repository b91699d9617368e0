"""Type aliases shared by the whole package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""An array of any floating dtype; complex arrays appear only in complex-step gradient checks."""

Cache: TypeAlias = Any
"""What ``apply`` passes to ``vjp``: a tuple of arrays, private to the layer that created it."""

Gradients: TypeAlias = dict[str, Array]
"""Gradient arrays by dotted parameter name."""

Part: TypeAlias = tuple[slice, ...]
"""The part of an array that a pass trains: one slice per axis."""

Parts: TypeAlias = Mapping[str, Part]
"""The trained part by dotted parameter name; arrays that are not listed are trained in full."""

# Strings, because evaluating numpy.random would import it, which takes as long as importing all of lora_np.
Generator: TypeAlias = "np.random.Generator"
"""A random number generator."""

RNG: TypeAlias = "int | np.random.Generator | None"
"""A seed, a generator, or None for unpredictable entropy."""
