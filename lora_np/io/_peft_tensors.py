"""The tensors of a PEFT file as AdapterWeights, and AdapterWeights as the tensors of a PEFT file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.settings import DyLoRASettings
from ..factors.weights import AdapterWeights, Rows
from ..layers.lora import LoRALayer
from ._convolutions import Kernel, as_stored, stored_magnitude
from ._factors import PREFIX, AdapterFile, layer_of, magnitude, pair
from ._json import parsed_json
from ._peft_experts import check_experts, expert_tensors, experts_of
from ._peft_names import alpha_of, dropout_of, is_saved_whole, is_target, rank_of, token_indices

A, B, BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
MAGNITUDE = "lora_magnitude_vector"
TOKENS = "token_adapter.trainable_tokens_delta"
BASE = "base_layer"
"""The name of the adapted layer inside PEFT's layer."""

FACTOR = re.compile(
    rf"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|{EMBEDDING_A}|{EMBEDDING_B}|{MAGNITUDE})"
)
ROWS = re.compile(rf"base_model\.model\.(.+)\.({re.escape(TOKENS)})")
WHOLE = re.compile(r"base_model\.model\.(.*?)((?:\.base_layer)?\.?[^.]+)")
NOT_WHOLE = re.compile(r"(^|\.)(lora_|vera_|hada_|lokr_|ia3_|oft_|modules_to_save\.|original_module\.|token_adapter\.)")
"""Names that PEFT gives to tensors of adapters, never to those of a base."""


# ---------------------------------------------------------------- reading


def weights_of(stored: AdapterFile, config: Mapping[str, Any], config_name: str) -> AdapterWeights:
    """The content of a file, of which every tensor must have a meaning under the configuration."""
    parts, settings = stored.take(FACTOR), _settings(stored.metadata, stored.label)
    if not parts:
        stored.check_all_taken()
        raise FormatError(f"{stored.label}: contains no LoRA factors")
    layers, magnitudes, biases, kernels = {}, {}, {}, {}
    experts = experts_of(parts, config, f"{stored.label}: {PREFIX}")
    for path, factors in parts.items():
        where = f"{stored.label}: {PREFIX}{path}"
        if not is_target(config, path):
            raise FormatError(f"{where}: target_modules of {config_name} does not name it")
        layers[path], kernel = layer, _ = _layer(factors, path, config, settings.get(path), where)
        if kernel:
            kernels[path] = kernel
        for kind, entry in ((MAGNITUDE, "use_dora"), (BIAS, "lora_bias")):
            if bool(config.get(entry)) != (kind in factors):
                raise FormatError(f"{where}.{kind} must be there if and only if {entry} is true")
        if MAGNITUDE in factors:
            magnitudes[path] = magnitude(factors, MAGNITUDE, layer, where)
        if BIAS in factors:
            biases[path] = magnitude(factors, BIAS, layer, where)
    rows = _rows(stored, config)
    return AdapterWeights(
        layers | {f"{name}.{number}": layer for name, found in experts.items() for number, layer in enumerate(found)},
        magnitudes,
        {path: settings[path] for path in layers if path in settings},
        config,
        whole=_whole(stored, config, layers),
        rows=rows,
        biases=biases,
        embeddings=frozenset(path for path, factors in parts.items() if EMBEDDING_A in factors),
        dropped=stored.dropped,
        kernels=kernels,
        experts={name: len(found) for name, found in experts.items()},
    )


def _layer(
    factors: Mapping[str, Array], path: str, config: Mapping[str, Any], settings: DyLoRASettings | None, where: str
) -> tuple[LoRALayer, Kernel]:
    kinds = (EMBEDDING_A, EMBEDDING_B) if EMBEDDING_A in factors or EMBEDDING_B in factors else (A, B)
    if kinds[0] == EMBEDDING_A and BIAS in factors:
        raise NotSupportedError(f"{where}.{BIAS} is not supported for an embedding")
    matrix_a, matrix_b, kernel = pair(factors, *kinds, where)
    rank = rank_of(config, path)
    if rank != matrix_a.shape[1]:
        raise FormatError(
            f"{where}.{kinds[0]} must have the rank {rank!r} of the configuration, got {factors[kinds[0]].shape}"
        )
    dropout = dropout_of(config, path)
    if settings is None:
        scaling = "rslora" if config.get("use_rslora") else "max"
        return layer_of(matrix_a, matrix_b, alpha_of(config, path), where, scaling=scaling, **dropout), kernel
    layer = layer_of(matrix_a, matrix_b, settings.alpha, where, scaling=settings.scaling, **dropout)
    try:
        settings.check_branch(layer)
    except ArgumentError as error:
        raise FormatError(f"{where}: invalid DyLoRA settings: {error}") from error
    return layer, kernel


def _settings(metadata: Mapping[str, str], file: str) -> dict[str, DyLoRASettings]:
    """The settings of whole DyLoRA adapters, which `save_peft` keeps in the metadata of the file."""
    try:
        nested = dict(parsed_json(metadata.get("lora_np", "{}")).get("nested", {}).items())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{file}: its lora_np metadata is damaged: {error}") from error
    settings = {}
    for path, values in nested.items():
        try:
            settings[path] = DyLoRASettings.from_json(values)
        except ArgumentError as error:
            raise FormatError(f"{file}: {PREFIX}{path}: invalid DyLoRA settings: {error}") from error
    return settings


def _rows(stored: AdapterFile, config: Mapping[str, Any]) -> dict[str, Rows]:
    """The embeddings of trainable tokens: PEFT calls them a delta, but they replace rows."""
    rows = {}
    for path, kinds in stored.take(ROWS).items():
        where, values = f"{stored.label}: {PREFIX}{path}.{TOKENS}", kinds[TOKENS]
        indices = token_indices(config, path)
        if indices is None or values.ndim != 2 or len(indices) != len(values):
            raise FormatError(
                f"{where} must have a row for each of trainable_token_indices, got shape {values.shape} for {indices}"
            )
        try:
            rows[f"{path}.weight"] = Rows.of(indices, values)
        except ArgumentError as error:
            raise FormatError(f"{where}: {error}") from error
    return rows


def _whole(stored: AdapterFile, config: Mapping[str, Any], layers: Mapping[str, LoRALayer]) -> dict[str, Array]:
    """The tensors that replace those of the base, by their names there."""
    whole: dict[str, Array] = {}
    for path, kinds in stored.take_stored(WHOLE, unless=NOT_WHOLE).items():
        for kind, tensor in kinds.items():
            name = kind.removeprefix(f".{BASE}")
            key, in_base = path + name, name != kind
            old_bias = name == ".bias" and config.get("bias", "none") in ("all", "lora_only")  # PEFT before 0.8
            if ((path in layers) != in_base and not (path in layers and old_bias)) or key in whole:
                raise stored.unexpected(f"{PREFIX}{path}{kind}")
            whole[key] = tensor
    stored.check_all_taken()
    return whole


def may_be_new(config: Mapping[str, Any], key: str) -> bool:
    """Whether a whole tensor may be one that the base lacks: a head in modules_to_save, or of an adapter without a file."""
    return not config or is_saved_whole(config, key.rpartition(".")[0])


# ---------------------------------------------------------------- writing


def tensors_of(weights: AdapterWeights) -> dict[str, Array]:
    """The tensors of a PEFT file."""
    tensors: dict[str, Array] = {}
    tensors |= expert_tensors(weights)
    for path, layer in weights.layers.items():
        if path.rpartition(".")[0] in weights.experts:
            continue
        first, second = (EMBEDDING_A, EMBEDDING_B) if path in weights.embeddings else (A, B)
        kernel = weights.kernels.get(path, ())
        tensors[f"{PREFIX}{path}.{first}"], tensors[f"{PREFIX}{path}.{second}"] = as_stored(layer, kernel)
        if path in weights.magnitudes:
            tensors[f"{PREFIX}{path}.{MAGNITUDE}"] = stored_magnitude(weights.magnitudes[path], kernel)
        if weights.biases:  # PEFT: on all layers or on none
            tensors[f"{PREFIX}{path}.{BIAS}"] = weights.biases.get(path, np.zeros(layer.output_size, layer.dtype))
    for key, tensor in weights.whole.items():
        path, _, name = key.rpartition(".")
        tensors[f"{PREFIX}{path}.{BASE}.{name}" if path in weights.layers else f"{PREFIX}{key}"] = tensor
    for key, rows in weights.rows.items():
        tensors[f"{PREFIX}{key.removesuffix('.weight')}.{TOKENS}"] = rows.values
    return tensors


def check_writable(weights: AdapterWeights) -> None:
    """Raise an error that names what a PEFT folder cannot hold."""
    if not weights.layers:
        raise ArgumentError("adapters must contain at least one layer, got none")
    if "" in weights.layers:
        raise ArgumentError("PEFT needs a path for each layer: put the adapter into a Sequential with a name")
    if weights.magnitudes and len(weights.magnitudes) < len(weights.layers):
        raise NotSupportedError("a PEFT adapter is DoRA on all of its layers or on none")
    if weights.embeddings and weights.biases:
        raise NotSupportedError(f"{min(weights.embeddings)}: an embedding cannot have a lora_bias")
    check_experts(weights)
    for path in weights.by_input:
        raise NotSupportedError(f"{path}: PEFT has DoRA magnitudes of outputs, not of inputs")
    for key in weights.rows:
        if not key.endswith(".weight") or key.removesuffix(".weight") in weights.layers:
            raise NotSupportedError(f"{key}: PEFT replaces rows only of a weight without a low-rank change")
    for key in weights.whole:
        if NOT_WHOLE.search(key):
            raise NotSupportedError(f"{key}: PEFT takes a tensor of this name for a part of an adapter")
