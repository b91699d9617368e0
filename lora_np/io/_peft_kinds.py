"""VeRA and AdaLoRA in PEFT folders: what they compute as plain factors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from ._factors import AdapterFile, factors_by_path, layer_of, matrix
from .merge import checkpoint_files
from .safetensors import SafetensorsFile

ADALORA_KEY = re.compile(r"base_model\.model\.(.+)\.(lora_A|lora_B|lora_E)")
VERA_KEY = re.compile(r"base_model\.model\.(.+)\.(vera_lambda_b|vera_lambda_d)")
PROJECTION_KEY = re.compile(r"(base_model)\.(vera_A|vera_B)")

# ---------------------------------------------------------------- AdaLoRA


def read_adalora(stored: AdapterFile, config: Mapping[str, Any]) -> AdapterWeights:
    """``ΔW = s B diag(E) A`` (Zhang et al. 2023), with E in A; in PEFT, s = alpha / (init_r + 1e-5)."""
    scaling = _scaling(config, stored.label)
    layers = {}
    for path, factors in factors_by_path(stored, ADALORA_KEY).items():
        where = f"{stored.label}: {path}"
        A, B, E = (matrix(factors, kind, where) for kind in ("lora_A", "lora_B", "lora_E"))
        if E.shape != (len(A), 1):
            raise FormatError(f"{where}.lora_E must have shape ({len(A)}, 1), got {E.shape}")
        if not len(A):  # the budget has left no component
            A, B, E = np.zeros((1, A.shape[1])), np.zeros((len(B), 1)), np.zeros((1, 1))
        layers[path] = layer_of((A * E).T, B.T, scaling * len(A), where)
    return AdapterWeights(layers, config=config, dropped=stored.dropped)


def _scaling(config: Mapping[str, Any], label: str) -> float:
    rank, alpha = config.get("init_r", 12), config.get("lora_alpha", 8)
    for name, value in (("init_r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise FormatError(f"{label}: {name} of the configuration must be a number of at least 0, got {value!r}")
    return (alpha or rank) / (rank + 1e-5)


# ---------------------------------------------------------------- VeRA


class VeRA(NamedTuple):
    """The tensors of a VeRA adapter (Kopiczko et al. 2024)."""

    A: Array
    """The projection that all layers share, (r, at least d_in)."""
    B: Array
    """(at least d_out, r)."""
    vectors: Mapping[str, tuple[Array, Array]]
    """d (r,) and b (d_out,) of each layer."""
    dropped: tuple[str, ...]


def read_vera(stored: AdapterFile) -> VeRA:
    """The tensors of a VeRA adapter, validated."""
    shared = stored.take(PROJECTION_KEY).get("base_model", {})
    if shared.keys() != {"vera_A", "vera_B"}:
        raise NotSupportedError(
            f"{stored.label}: contains no projections vera_A and vera_B, which PEFT would draw with torch; "
            "save the adapter with save_projection=True"
        )
    A, B = (matrix(shared, name, f"{stored.label}: base_model") for name in ("vera_A", "vera_B"))
    if B.shape[1] != len(A):
        raise FormatError(f"{stored.label}: vera_A and vera_B must be (r, in) and (out, r), got {A.shape} and {B.shape}")
    vectors = {}
    for path, found in factors_by_path(stored, VERA_KEY).items():
        where = f"{stored.label}: {path}"
        for kind in ("vera_lambda_d", "vera_lambda_b"):
            if kind not in found:
                raise FormatError(f"{where}.{kind} is missing")
        d, b = found["vera_lambda_d"], found["vera_lambda_b"]
        if d.shape != (len(A),) or b.ndim != 1 or not 0 < len(b) <= len(B):
            raise FormatError(
                f"{where}: d must have shape ({len(A)},) and b at most ({len(B)},), got {d.shape} and {b.shape}"
            )
        vectors[path] = d, b
    return VeRA(A, B, vectors, stored.dropped)


def vera_weights(vera: VeRA, config: Mapping[str, Any]) -> AdapterWeights:
    """``ΔW = diag(b) B diag(d) A`` as factors; without a base, the inputs of all layers are those of the projection."""
    layers = {
        path: LoRALayer.from_factors((d[:, np.newaxis] * vera.A).T, (b[:, np.newaxis] * vera.B[: len(b)]).T)
        for path, (d, b) in vera.vectors.items()
    }
    return AdapterWeights(layers, config=config, dropped=vera.dropped)


def with_base_sizes(weights: AdapterWeights, base: str | os.PathLike[str]) -> AdapterWeights:
    """The layers of a VeRA adapter with the input sizes that they have in a base."""
    transposed = bool(weights.config.get("fan_in_fan_out"))
    layers = dict(weights.layers)
    for file in checkpoint_files(base).values():
        with SafetensorsFile(file) as tensors:
            for path, layer in weights.layers.items():
                if f"{path}.weight" in tensors and len(shape := tensors.info(f"{path}.weight").shape) == 2:
                    A = layer.matrix_a[: shape[0 if transposed else 1]]
                    layers[path] = LoRALayer.from_factors(A, layer.matrix_b, layer.alpha)
    return replace(weights, layers=layers)
