"""LoRA adapters of mlx-lm: a folder with adapter_config.json and adapters.safetensors."""

from __future__ import annotations

import json
import os
import re

from ..errors import FormatError
from ..factors.weights import AdapterWeights
from ._factors import factors_by_path, layer_of, magnitude, matrix

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
KEY = re.compile(r"(.+)\.(lora_a|lora_b|m)")


def load_mlx(folder: str | os.PathLike[str], *, strict: bool = True) -> AdapterWeights:
    """Load the low-rank layers of an mlx-lm adapter.

    Parameters
    ----------
    folder : path
        A folder with adapter_config.json, whose ``lora_parameters.scale`` is the factor s itself, and adapters.safetensors,
        which contains ``<path>.lora_a`` (d_in, r) and ``<path>.lora_b`` (r, d_out), and for DoRA ``<path>.m`` (d_out,).
    strict : bool, default True
        If True, raise for keys of any other form; if False, ignore them.

    Raises
    ------
    FormatError
        If a file, a factor or the scale is missing, a shape is wrong, or a key is unknown. The message names the file and
        the key.
    NotSupportedError
        If factors belong to a mixture of experts.
    """
    root = os.fspath(folder)
    scale = _scale(os.path.join(root, CONFIG))
    file = os.path.join(root, WEIGHTS)
    if not os.path.isfile(file):
        raise FormatError(f"{root}: {WEIGHTS} not found")
    parts, _ = factors_by_path(file, KEY, strict)
    layers, magnitudes = {}, {}
    for path, factors in parts.items():
        where = f"{file}: {path}"
        A, B = matrix(factors, "lora_a", where), matrix(factors, "lora_b", where)
        layers[path] = layer_of(A, B, scale * A.shape[1], where)
        if "m" in factors:
            magnitudes[path] = magnitude(factors, "m", layers[path], where)
    return AdapterWeights(layers, magnitudes)


def _scale(file: str) -> float:
    try:
        with open(file, encoding="utf-8") as text:
            return float(json.load(text)["lora_parameters"]["scale"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{file}: must be valid JSON with lora_parameters.scale: {error!r}") from error
