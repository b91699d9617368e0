"""adapter_config.json of PEFT: reading it, its patterns of ranks and alphas, and writing it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ._json import read_json

DEFAULT = 8
"""PEFT's default of r and of lora_alpha."""

OTHER_FUNCTIONS = (
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
)
"""Entries that, if set, make the adapter another function than LoRA's."""

OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of init_lora_weights that change the base's weights too."""


def read_config(file: str) -> dict[str, Any]:
    """The configuration, checked to describe an adapter whose function lora_np computes."""
    config = read_json(file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise FormatError(f"{file}: peft_type must be 'LORA', got {kind!r}")
    if not isinstance(config.get("target_modules"), str | list):
        raise FormatError(f"{file}: target_modules must be a string or a list of names")
    _check_patterns(config, file)
    for name in OTHER_FUNCTIONS:
        if config.get(name):
            raise NotSupportedError(f"{file}: with {name}, the adapter computes another function than LoRA's")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OTHER_BASES):
        raise NotSupportedError(
            f"{file}: init_lora_weights={start!r} has changed the base's weights, which are not in the folder; "
            "PEFT's save_pretrained converts the adapter with path_initial_model_for_weight_conversion"
        )
    return config


def _check_patterns(config: Mapping[str, Any], file: str) -> None:
    names = ("rank_pattern", "alpha_pattern")
    for name in names:
        if not isinstance(config.get(name) or {}, dict):
            raise FormatError(f"{file}: {name} must map patterns to numbers")
    patterns = [_anchored(key) for name in names for key in config.get(name) or {}]
    if isinstance(config["target_modules"], str):
        patterns.append(config["target_modules"])
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise FormatError(f"{file}: {pattern!r} is not a regular expression: {error}") from error


def rank_of(config: Mapping[str, Any], path: str) -> Any:
    """The rank of a layer."""
    return _by_pattern(config.get("rank_pattern"), path, config.get("r", DEFAULT))


def alpha_of(config: Mapping[str, Any], path: str) -> Any:
    """The alpha of a layer."""
    return _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", DEFAULT))


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the path, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.match(_anchored(pattern), path):
            return value
    return default


def _anchored(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def is_target(config: Mapping[str, Any], path: str) -> bool:
    """Whether target_modules names a layer."""
    targets = config["target_modules"]
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in targets)


def config_of(weights: AdapterWeights) -> dict[str, Any]:
    """A configuration that names every layer, with patterns for the ranks and alphas that are not the most common ones."""
    rslora = all(layer.scaling_rule == "rslora" for layer in weights.layers.values())
    ranks = {path: layer.rank for path, layer in weights.layers.items()}
    alphas = {
        path: layer.alpha if rslora or layer.scaling_rule != "rslora" else layer.scaling * layer.rank
        for path, layer in weights.layers.items()
    }
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "target_modules": sorted(weights.layers),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(path)}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(path)}": value for path, value in alphas.items() if value != alpha},
        "use_rslora": rslora,
        "use_dora": bool(weights.magnitudes),
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
