"""Code shared by the adapter formats: the tensors of a file, grouped by layer, and their validation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..layers.lora import LoRALayer
from .safetensors import SafetensorsFile


def factors_by_path(
    file: str | os.PathLike[str], pattern: re.Pattern[str], strict: bool
) -> tuple[dict[str, dict[str, Array]], dict[str, str]]:
    """Read the tensors of a file, by layer path and kind (the two groups of `pattern`), and its metadata.

    Float64 tensors stay float64; all others become float32. If `strict`, raise for keys that do not match the pattern;
    otherwise, ignore them.
    """
    label = os.fspath(file)
    parts: dict[str, dict[str, Array]] = {}
    with SafetensorsFile(file) as tensors:
        for key, tensor in tensors.items():
            match = pattern.fullmatch(key)
            if match:
                dtype = np.float64 if tensor.dtype == np.float64 else np.float32
                parts.setdefault(match[1], {})[match[2]] = np.array(tensor, dtype)
            elif strict:
                raise FormatError(f"{label}: unexpected key {key!r}: not a LoRA factor; strict=False ignores such keys")
        metadata = tensors.metadata
    if not parts:
        raise FormatError(f"{label}: contains no LoRA factors")
    return parts, metadata


def layer_of(A: Array, B: Array, alpha: object, where: str, *, scaling: str = "max") -> LoRALayer:
    """A layer with the given factors, in the layout of lora_np; errors name the place in the file."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha >= 0:
        raise FormatError(f"{where}: alpha must be a number of at least 0, got {alpha!r}")
    try:
        return LoRALayer.from_factors(A, B, alpha, scaling=scaling)
    except ArgumentError as error:
        raise FormatError(f"{where}: {error}") from error


def matrix(factors: Mapping[str, Array], kind: str, where: str) -> Array:
    """A factor, checked to be present and a matrix."""
    if kind not in factors:
        raise FormatError(f"{where}.{kind} is missing")
    if factors[kind].ndim != 2:
        raise NotSupportedError(f"{where}.{kind} must be a matrix, got shape {factors[kind].shape}")
    return factors[kind]


def magnitude(factors: Mapping[str, Array], kind: str, layer: LoRALayer, where: str) -> Array:
    """A DoRA magnitude, checked to fit the layer."""
    if factors[kind].shape != (layer.output_size,):
        raise FormatError(f"{where}.{kind} must have shape ({layer.output_size},), got {factors[kind].shape}")
    return factors[kind]
