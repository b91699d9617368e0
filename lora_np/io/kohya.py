"""LoRA files of kohya's sd-scripts: one safetensors file with lora_down, lora_up and alpha for each module."""

from __future__ import annotations

import os
import re

import numpy as np

from .._typing import Array
from ..adapter_weights import AdapterWeights
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..layers.lora import LoRALayer
from .safetensors import SafetensorsFile

KEY = re.compile(r"(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")


def load_kohya(file: str | os.PathLike[str], *, strict: bool = True) -> AdapterWeights:
    """The low-rank layers of a kohya file, by module name as it stands there (with underscores for dots).

    Parameters
    ----------
    file : path
        ``<module>.lora_down.weight`` (r, in), ``<module>.lora_up.weight`` (out, r), and ``<module>.alpha``, a scalar, the rank
        where it is missing.
    strict : bool, default True
        Whether a key of another form is an error; otherwise it is left out.

    Raises
    ------
    FormatError
        A missing factor, a wrong shape, an unknown key; the message names the file and the key.
    NotSupportedError
        A factor of a convolution.
    """
    label = os.fspath(file)
    parts: dict[str, dict[str, Array]] = {}
    with SafetensorsFile(file) as tensors:
        for key, tensor in tensors.items():
            match = KEY.fullmatch(key)
            if match:
                kept = np.array(tensor, np.float64 if tensor.dtype == np.float64 else np.float32)
                parts.setdefault(match[1], {})[match[2]] = kept
            elif strict:
                raise FormatError(f"{label}: the key {key!r} is no LoRA factor; strict=False leaves such keys out")
    if not parts:
        raise FormatError(f"{label}: it holds no LoRA factors")
    return AdapterWeights({path: _layer(factors, f"{label}: {path}") for path, factors in parts.items()})


def _layer(factors: dict[str, Array], where: str) -> LoRALayer:
    for kind in ("lora_down.weight", "lora_up.weight"):
        if kind not in factors:
            raise FormatError(f"{where}.{kind} is missing")
        if factors[kind].ndim != 2:
            raise NotSupportedError(f"{where}.{kind} must be a matrix, got shape {factors[kind].shape}")
    alpha = factors.get("alpha")
    if alpha is not None and (alpha.size != 1 or alpha.item() < 0):
        raise FormatError(f"{where}.alpha must be one number of at least 0, got {alpha}")
    try:
        A, B = factors["lora_down.weight"].T, factors["lora_up.weight"].T
        return LoRALayer.from_factors(A, B, -1.0 if alpha is None else alpha.item())
    except ArgumentError as error:
        raise FormatError(f"{where}: {error}") from error
