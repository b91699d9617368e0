"""adapter_config.json for an adapter: every layer by name, with patterns for ranks and alphas."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.low_rank import LowRankLayer
from ._peft_config import changed_base
from ._peft_names import is_saved_whole

HEAD = "lm_head.weight"
"""The weight of the output head, which many models tie to the embedding."""


def common_dropout(layers: Mapping[str, LowRankLayer]) -> float:
    """The dropout of all layers, of which PEFT's configurations have one."""
    (first, layer), *others = layers.items()
    for path, other in others:
        if other.dropout != layer.dropout:
            raise NotSupportedError(
                "a PEFT adapter has one dropout for all layers, "
                f"but {first!r} has {layer.dropout} and {path!r} {other.dropout}"
            )
    return layer.dropout


def config_of(weights: AdapterWeights) -> dict[str, Any]:
    """A configuration that names every layer, with patterns for the ranks and alphas that are not the most common ones."""
    rslora = all(layer.scaling_rule == "rslora" for layer in weights.layers.values())
    layers = {_target(weights, path): layer for path, layer in weights.layers.items()}
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {
        path: layer.alpha if rslora or layer.scaling_rule != "rslora" else layer.scaling * layer.rank
        for path, layer in layers.items()
    }
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return (
        _config_of_others(weights)
        | {
            "peft_type": "LORA",
            "base_model_name_or_path": None,
            "task_type": None,
            "inference_mode": True,
            "target_modules": sorted(path for path in weights.layers if path.rpartition(".")[0] not in weights.experts),
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {f"^{re.escape(path)}": value for path, value in ranks.items() if value != rank},
            "alpha_pattern": {f"^{re.escape(path)}": value for path, value in alphas.items() if value != alpha},
            "use_rslora": rslora,
            "use_dora": bool(weights.magnitudes),
            "fan_in_fan_out": False,
            "lora_dropout": common_dropout(weights.layers),
        }
        | ({"init_lora_weights": start} if (start := changed_base(weights.config)) else {})
        | ({"target_parameters": list(weights.experts)} if weights.experts else {})
    )


def _target(weights: AdapterWeights, path: str) -> str:
    """What the configuration names for a layer: the layer, or the parameter of its expert."""
    name = path.rpartition(".")[0]
    return name if name in weights.experts else path


def _config_of_others(weights: AdapterWeights) -> dict[str, Any]:
    """The entries about what trains besides the factors."""
    names: dict[str, list[str]] = {}
    for key in weights.whole:
        path, _, name = key.rpartition(".")
        names.setdefault(path, []).append(name)
    outside = [path for path in names if path not in weights.layers]
    saved = [path for path in outside if path and names[path] != ["bias"] and not _contains(path, weights.layers)]
    theirs = weights.config.get("modules_to_save")  # they may name modules around these
    if theirs and all(is_saved_whole(weights.config, path) for path in saved):
        saved = theirs
    config: dict[str, Any] = {"bias": "none"}
    if is_tied_pair(weights.whole):
        saved, config["ensure_weight_tying"] = [path for path in saved if path != "lm_head"], True
    if any("bias" in names[path] for path in names if path in weights.layers):
        config["bias"] = "lora_only"
    if any(names[path] == ["bias"] for path in outside):
        config["bias"] = "all"
    if saved:
        config["modules_to_save"] = sorted(saved)
    if weights.biases:
        config["lora_bias"] = True
    if weights.rows:
        tokens = {key.removesuffix(".weight"): rows.indices.tolist() for key, rows in weights.rows.items()}
        config["trainable_token_indices"] = tokens
    return config


def is_tied_pair(whole: Mapping[str, Array]) -> bool:
    """Whether whole tensors have an output head that is equal to the embedding, as in a model that ties the two."""
    head = whole.get(HEAD)
    return head is not None and any(key != HEAD and np.array_equal(head, other) for key, other in whole.items())


def _contains(path: str, layers: Iterable[str]) -> bool:
    return any(layer.startswith(f"{path}.") for layer in layers)


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
