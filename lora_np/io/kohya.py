"""LoRA files of kohya's sd-scripts: one safetensors file with lora_down, lora_up and alpha for each module."""

from __future__ import annotations

import os
import re

from ..errors import FormatError
from ..factors.weights import AdapterWeights
from ._factors import factors_by_path, layer_of, matrix

KEY = re.compile(r"(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")


def load_kohya(file: str | os.PathLike[str], *, strict: bool = True) -> AdapterWeights:
    """The low-rank layers of a kohya file, by module name as it stands there (with underscores for dots).

    Parameters
    ----------
    file : path
        ``<module>.lora_down.weight`` (r, in), ``<module>.lora_up.weight`` (out, r), and ``<module>.alpha``, a scalar, which
        is the rank where it is missing.
    strict : bool, default True
        Whether a key of another form is an error; otherwise it is left out.

    Raises
    ------
    FormatError
        A missing factor, a wrong shape, an unknown key; the message names the file and the key.
    NotSupportedError
        A factor of a convolution.
    """
    parts, _ = factors_by_path(file, KEY, strict)
    layers = {}
    for path, factors in parts.items():
        where = f"{os.fspath(file)}: {path}"
        A, B = matrix(factors, "lora_down.weight", where).T, matrix(factors, "lora_up.weight", where).T
        if "alpha" in factors and factors["alpha"].size != 1:
            raise FormatError(f"{where}.alpha must be one number, got shape {factors['alpha'].shape}")
        alpha = factors["alpha"].item() if "alpha" in factors else A.shape[1]
        layers[path] = layer_of(A, B, alpha, where)
    return AdapterWeights(layers)
