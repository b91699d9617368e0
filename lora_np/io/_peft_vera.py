"""VeRA adapters of PEFT: vectors for each layer, and one pair of random projections that all layers share.

The projections are (r, largest d_in) and (largest d_out, r); each layer uses a slice of the sizes it has. A file does not
tell these sizes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from ..adapters.base import LoRAAdapterBase
from ..adapters.vera import VeRAAdapter
from ..base import Layer
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.weights import AdapterWeights, trained_tensors
from ..layers.dense import AffineLayer
from ..layers.dropout import dropout_at
from ..layers.lora import LoRALayer
from ..models.adapting import Factory, apply_adapters
from ..models.finding import find
from ._checkpoint import checkpoint_files
from ._factors import PREFIX, AdapterFile, factors_by_path, matrix
from ._peft_names import dropout_of
from ._peft_new_config import common_dropout
from .safetensors import SafetensorsFile

KEY = re.compile(r"base_model\.model\.(.+)\.(vera_lambda_b|vera_lambda_d)")
PROJECTION_KEY = re.compile(r"(base_model)\.(vera_A|vera_B)")

# ---------------------------------------------------------------- reading


class VeRA(NamedTuple):
    """The tensors of a VeRA adapter (Kopiczko et al. 2024)."""

    A: Array
    """The projection that all layers share, (r, at least d_in)."""
    B: Array
    """(at least d_out, r)."""
    vectors: Mapping[str, tuple[Array, Array]]
    """d (r,) and b (d_out,) of each layer."""
    dropped: tuple[str, ...]
    dropout: float = 0.0


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
    for path, found in factors_by_path(stored, KEY).items():
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
        path: LoRALayer.from_factors(
            (d[:, np.newaxis] * vera.A).T, (b[:, np.newaxis] * vera.B[: len(b)]).T, **dropout_of(config, path)
        )
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
                    layers[path] = LoRALayer.from_factors(A, layer.matrix_b, layer.alpha, **layer.dropout_choices)
    return replace(weights, layers=layers)


# ---------------------------------------------------------------- models


def apply_vera(model: Layer, vera: VeRA) -> Layer:
    """A model with VeRAAdapter layers; see `apply_peft`. Raises ArgumentError if it does not fit."""
    return apply_adapters(model, {path: _factory(vera, path) for path in vera.vectors})


def _factory(vera: VeRA, path: str) -> Factory:
    d, b = vera.vectors[path]

    def build(linear: AffineLayer) -> LoRAAdapterBase:
        if linear.output_size != len(b) or linear.input_size > vera.A.shape[1]:
            raise ArgumentError(
                f"{path}: the adapter is for {len(b)} outputs and at most {vera.A.shape[1]} inputs, "
                f"the layer is {linear.input_size} -> {linear.output_size}"
            )
        adapter = VeRAAdapter(linear, len(d), **dropout_at(path, vera.dropout))
        branch = adapter.lora_layer
        branch.vector_d, branch.vector_b = d.astype(linear.dtype), b.astype(linear.dtype)
        branch.projection_a = vera.A[:, : linear.input_size].T.astype(linear.dtype)
        branch.projection_b = vera.B[: len(b)].T.astype(linear.dtype)
        return adapter

    return build


def vera_of(model: Layer) -> VeRA | None:
    """The VeRA adapter of a model, or None if the model has adapters of other kinds only.

    Raises
    ------
    NotSupportedError
        If it cannot be one of PEFT: the layers do not share their projections, or other arrays train too.
    ArgumentError
        If the model is an adapter itself, without a path.
    """
    adapters = find(model, LoRAAdapterBase)
    branches = {path: adapter.lora_layer for path, adapter in adapters.items() if isinstance(adapter, VeRAAdapter)}
    if not branches:
        return None
    others = [*(path for path in adapters if path not in branches), *trained_tensors(model)]
    if others:
        raise NotSupportedError(f"a VeRA adapter of PEFT holds VeRA layers alone, and {others[0]!r} trains too")
    if "" in branches:
        raise ArgumentError("PEFT needs a path for each layer: put the adapter into a Sequential with a name")
    widest = max(branches, key=lambda path: branches[path].input_size)
    longest = max(branches, key=lambda path: branches[path].output_size)
    A, B = branches[widest].projection_a.T, branches[longest].projection_b.T
    for path, branch in branches.items():
        for name, shared, other in (("A", A[:, : branch.input_size], widest), ("B", B[: branch.output_size], longest)):
            if not np.array_equal(getattr(branch, f"projection_{name.lower()}").T, shared):
                raise NotSupportedError(
                    f"the VeRA layers of PEFT share projections, but {name} of {path!r} is not part of that of {other!r}"
                )
    vectors = {path: (branch.vector_d, branch.scaling * branch.vector_b) for path, branch in branches.items()}
    return VeRA(A, B, vectors, (), common_dropout(branches))


def vera_tensors(vera: VeRA) -> dict[str, Array]:
    """The tensors of a PEFT file."""
    tensors = {"base_model.vera_A": vera.A, "base_model.vera_B": vera.B}
    for path, (d, b) in vera.vectors.items():
        tensors |= {f"{PREFIX}{path}.vera_lambda_d": d, f"{PREFIX}{path}.vera_lambda_b": b}
    return tensors


def vera_config(vera: VeRA) -> dict[str, Any]:
    """The entries of adapter_config.json."""
    return {
        "peft_type": "VERA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "target_modules": sorted(vera.vectors),
        "r": len(vera.A),
        "save_projection": True,
        "projection_prng_key": 0,
        "vera_dropout": vera.dropout,
        "d_initial": 0.1,
        "fan_in_fan_out": False,
        "bias": "none",
    }
