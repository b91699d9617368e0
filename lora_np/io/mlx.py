"""LoRA adapters of mlx-lm: a folder with adapter_config.json and adapters.safetensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

from ..errors import FormatError
from ..factors.weights import AdapterWeights
from ._factors import AdapterFile, factors_by_path, layer_of, magnitude, matrix

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
KEY = re.compile(r"(.+)\.(lora_a|lora_b|m)")


def load_mlx(folder: str | os.PathLike[str], *, drop: Iterable[str] = ()) -> AdapterWeights:
    """Load the low-rank layers of an mlx-lm adapter.

    Parameters
    ----------
    folder : path
        A folder with adapter_config.json, whose ``lora_parameters.scale`` is the factor s itself, and adapters.safetensors,
        which contains ``<path>.lora_a`` (d_in, r) and ``<path>.lora_b`` (r, d_out), and for DoRA ``<path>.m`` (d_out,).
    drop : iterable of str, optional
        Shell patterns of names of tensors to leave out, which `AdapterWeights.dropped` then lists. Any other tensor that is
        not understood is an error.

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
    stored, layers, magnitudes = AdapterFile(file, drop), {}, {}
    for path, factors in factors_by_path(stored, KEY).items():
        where = f"{file}: {path}"
        A, B = matrix(factors, "lora_a", where), matrix(factors, "lora_b", where)
        layers[path] = layer_of(A, B, scale * A.shape[1], where)
        if "m" in factors:
            magnitudes[path] = magnitude(factors, "m", layers[path], where)
    return AdapterWeights(layers, magnitudes, dropped=stored.dropped)


def _scale(file: str) -> float:
    try:
        with open(file, encoding="utf-8") as text:
            return float(json.load(text)["lora_parameters"]["scale"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{file}: must be valid JSON with lora_parameters.scale: {error!r}") from error
