"""LoRA files of kohya's sd-scripts: a safetensors file with lora_down, lora_up and alpha for each module."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ..errors import FormatError
from ..factors.weights import AdapterWeights
from ._factors import AdapterFile, factors_by_path, layer_of, matrix

KEY = re.compile(r"(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")


def load_kohya(file: str | os.PathLike[str], *, drop: Iterable[str] = ()) -> AdapterWeights:
    """Load the low-rank layers of a kohya file, keyed by the module names of the file (underscores instead of dots).

    Parameters
    ----------
    file : path
        A file with ``<module>.lora_down.weight`` (r, d_in), ``<module>.lora_up.weight`` (d_out, r) and, optionally,
        ``<module>.alpha``, a scalar that defaults to the rank.
    drop : iterable of str, optional
        Shell patterns of names of tensors to leave out, which `AdapterWeights.dropped` then lists. Any other tensor that is
        not understood is an error.

    Raises
    ------
    FormatError
        If a factor is missing, a shape is wrong, or a key is unknown. The message names the file and the key.
    NotSupportedError
        If a factor belongs to a convolution.
    """
    stored, layers = AdapterFile(file, drop), {}
    for path, factors in factors_by_path(stored, KEY).items():
        where = f"{os.fspath(file)}: {path}"
        A, B = matrix(factors, "lora_down.weight", where).T, matrix(factors, "lora_up.weight", where).T
        if "alpha" in factors and factors["alpha"].size != 1:
            raise FormatError(f"{where}.alpha must be one number, got shape {factors['alpha'].shape}")
        alpha = factors["alpha"].item() if "alpha" in factors else A.shape[1]
        layers[path] = layer_of(A, B, alpha, where)
    return AdapterWeights(layers, dropped=stored.dropped)
