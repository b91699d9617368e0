"""AdaLoRA adapters of PEFT as plain factors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import FormatError
from ..factors.weights import AdapterWeights
from ._factors import AdapterFile, factors_by_path, layer_of, matrix
from ._peft_names import dropout_of

KEY = re.compile(r"base_model\.model\.(.+)\.(lora_A|lora_B|lora_E)")


def read_adalora(stored: AdapterFile, config: Mapping[str, Any]) -> AdapterWeights:
    """``ΔW = s B diag(E) A`` (Zhang et al. 2023), with E in A; in PEFT, s = alpha / (init_r + 1e-5)."""
    scaling = _scaling(config, stored.label)
    layers = {}
    for path, factors in factors_by_path(stored, KEY).items():
        where = f"{stored.label}: {path}"
        A, B, E = (matrix(factors, kind, where) for kind in ("lora_A", "lora_B", "lora_E"))
        if E.shape != (len(A), 1):
            raise FormatError(f"{where}.lora_E must have shape ({len(A)}, 1), got {E.shape}")
        if not len(A):  # the budget has left no component
            A, B, E = np.zeros((1, A.shape[1])), np.zeros((len(B), 1)), np.zeros((1, 1))
        layers[path] = layer_of((A * E).T, B.T, scaling * len(A), where, **dropout_of(config, path))
    return AdapterWeights(layers, config=config, dropped=stored.dropped)


def _scaling(config: Mapping[str, Any], label: str) -> float:
    rank, alpha = config.get("init_r", 12), config.get("lora_alpha", 8)
    for name, value in (("init_r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise FormatError(f"{label}: {name} of the configuration must be a number of at least 0, got {value!r}")
    return (alpha or rank) / (rank + 1e-5)
