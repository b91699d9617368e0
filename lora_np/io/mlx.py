"""LoRA adapters of mlx-lm: a folder with adapter_config.json and adapters.safetensors."""

from __future__ import annotations

import json
import os
import re

import numpy as np

from .._typing import Array
from ..adapter_weights import AdapterWeights
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..layers.lora import LoRALayer
from .safetensors import SafetensorsFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
KEY = re.compile(r"(.+)\.(lora_a|lora_b|m)")


def load_mlx(folder: str | os.PathLike[str], *, strict: bool = True) -> AdapterWeights:
    """The low-rank layers of an mlx-lm adapter.

    Parameters
    ----------
    folder : path
        With adapter_config.json, whose ``lora_parameters.scale`` is the factor s itself, and adapters.safetensors, which holds
        ``<path>.lora_a`` (in, r) and ``<path>.lora_b`` (r, out), and for DoRA ``<path>.m`` (out,).
    strict : bool, default True
        Whether a key of another form is an error; otherwise it is left out.

    Raises
    ------
    FormatError
        A missing file, factor or scale, a wrong shape, an unknown key; the message names the file and the key.
    NotSupportedError
        Factors of a mixture of experts.
    """
    root = os.fspath(folder)
    scale = _scale(os.path.join(root, CONFIG))
    label = os.path.join(root, WEIGHTS)
    if not os.path.isfile(label):
        raise FormatError(f"{root}: there is no {WEIGHTS} in it")
    parts: dict[str, dict[str, Array]] = {}
    with SafetensorsFile(label) as tensors:
        for key, tensor in tensors.items():
            match = KEY.fullmatch(key)
            if match:
                kept = np.array(tensor, np.float64 if tensor.dtype == np.float64 else np.float32)
                parts.setdefault(match[1], {})[match[2]] = kept
            elif strict:
                raise FormatError(f"{label}: the key {key!r} is no LoRA factor; strict=False leaves such keys out")
    if not parts:
        raise FormatError(f"{label}: it holds no LoRA factors")
    layers = {path: _layer(factors, scale, f"{label}: {path}") for path, factors in parts.items()}
    magnitudes = {path: factors["m"] for path, factors in parts.items() if "m" in factors}
    for path, magnitude in magnitudes.items():
        if magnitude.shape != (layers[path].output_size,):
            raise FormatError(f"{label}: {path}.m must have shape ({layers[path].output_size},), got {magnitude.shape}")
    return AdapterWeights(layers, magnitudes)


def _scale(file: str) -> float:
    try:
        with open(file, encoding="utf-8") as text:
            scale = json.load(text)["lora_parameters"]["scale"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{file}: it must be JSON that holds lora_parameters.scale: {error!r}") from error
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale >= 0:
        raise FormatError(f"{file}: lora_parameters.scale must be a number of at least 0, got {scale!r}")
    return float(scale)


def _layer(factors: dict[str, Array], scale: float, where: str) -> LoRALayer:
    for kind in ("lora_a", "lora_b"):
        if kind not in factors:
            raise FormatError(f"{where}.{kind} is missing")
        if factors[kind].ndim != 2:
            raise NotSupportedError(f"{where}.{kind} must be a matrix, got shape {factors[kind].shape}")
    A, B = factors["lora_a"], factors["lora_b"]
    try:
        return LoRALayer.from_factors(A, B, scale * A.shape[1])
    except ArgumentError as error:
        raise FormatError(f"{where}: {error}") from error
