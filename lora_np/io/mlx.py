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
    """The low-rank layers of an mlx-lm adapter.

    Parameters
    ----------
    folder : path
        With adapter_config.json, whose ``lora_parameters.scale`` is the factor s itself, and adapters.safetensors, which
        holds ``<path>.lora_a`` (in, r) and ``<path>.lora_b`` (r, out), and for DoRA ``<path>.m`` (out,).
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
    file = os.path.join(root, WEIGHTS)
    if not os.path.isfile(file):
        raise FormatError(f"{root}: there is no {WEIGHTS} in it")
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
        raise FormatError(f"{file}: it must be JSON that holds lora_parameters.scale: {error!r}") from error
