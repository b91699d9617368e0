"""adapter_config.json of PEFT: reading it, its names of layers, patterns of ranks and alphas, and writing it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.dropout import dropout_at
from ..layers.low_rank import LowRankLayer
from ._json import read_json
from ._patterns import parsed

DEFAULT = 8
"""PEFT's default of r and of lora_alpha."""

HEAD = "lm_head.weight"
"""The weight of the output head, which many models tie to the embedding."""

LONGEST_NUMBER = 10
"""Digits of the number of a block."""

MEANING = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"),
    *("fan_in_fan_out", "trainable_token_indices"),
)
"""The entries without which the weights cannot be understood."""

READABLE = ("LORA", "ADALORA", "VERA")
"""The values of peft_type that lora_np reads."""

OTHER_FUNCTIONS = (
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _mapping(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("an integer", _is_integer),
    "lora_alpha": ("a number of at least 0", _is_number),
    "use_rslora use_dora lora_bias fan_in_fan_out": ("true or false", lambda value: isinstance(value, bool)),
    "rank_pattern": ("a mapping from patterns to numbers", _mapping(_is_integer)),
    "alpha_pattern": ("a mapping from patterns to numbers", _mapping(_is_number)),
    "target_modules exclude_modules layers_pattern": (
        "a string or a list of names",
        lambda value: _is_text(value) or _all(_is_text)(value),
    ),
    "target_parameters modules_to_save": ("a list of names", _all(_is_text)),
    "layers_to_transform": ("a number or a list of numbers", lambda v: _is_integer(v) or _all(_is_integer)(v)),
    "trainable_token_indices": (
        "a list of numbers, or a mapping from names to such lists",
        lambda value: _all(_is_integer)(value) or _mapping(_all(_is_integer))(value),
    ),
    "base_model_name_or_path task_type": ("a text", _is_text),
    "lora_dropout vera_dropout": ("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1),
}
"""What the entries that lora_np reads must be, in words and as a test."""


def read_config(file: str) -> dict[str, Any]:
    """The configuration, checked to describe an adapter whose function lora_np computes."""
    config = read_json(file)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in READABLE:
        raise FormatError(f"{file}: peft_type must be one of {', '.join(READABLE)}, got {kind!r}")
    if kind == "ADALORA":  # its masks of components, which it has applied to the factors
        _check_masks(config.pop("rank_pattern", None), file)
    check_entries(config, file)
    if config.get("target_modules") is None and not config.get("target_parameters"):
        raise FormatError(f"{file}: target_modules must be a string or a list of names")
    for name in OTHER_FUNCTIONS:
        if config.get(name):
            raise NotSupportedError(f"{file}: with {name}, the adapter computes another function than LoRA's")
    return config


def changed_base(config: Mapping[str, Any]) -> str | None:
    """The value of init_lora_weights if that initialisation has changed the base's weights."""
    start = config.get("init_lora_weights")
    return start if isinstance(start, str) and start.lower().startswith(OTHER_BASES) else None


def check_base(config: Mapping[str, Any], file: str) -> None:
    """Raise if the adapter belongs to weights other than those of its base model."""
    start = changed_base(config)
    if start:
        raise NotSupportedError(
            f"{file}: init_lora_weights={start!r} has changed the base's weights, which are not in the folder; "
            "PEFT's save_pretrained converts the adapter with path_initial_model_for_weight_conversion; "
            "base_is_residual=True means that the base has the changed weights"
        )


def _check_masks(masks: Any, file: str) -> None:
    if masks is not None and not _mapping(_all(lambda value: isinstance(value, bool)))(masks):
        raise FormatError(f"{file}: rank_pattern must be a mapping from names to lists of true and false, got {masks!r}")


def check_entries(config: Mapping[str, Any], file: str) -> None:
    """Raise FormatError for an entry of a wrong type, or for a pattern that lora_np does not accept."""
    _check_types(config, file)
    _check_patterns(config, file)


def _check_types(config: Mapping[str, Any], file: str) -> None:
    """Raise FormatError for a value of another type, which Python might take for true; null means the default."""
    for names, (words, is_right) in TYPES.items():
        for name in names.split():
            value = config.get(name)
            if value is not None and not is_right(value):
                raise FormatError(f"{file}: {name} must be {words}, got {value!r}")
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise FormatError(f"{file}: bias must be 'none', 'all' or 'lora_only', got {config['bias']!r}")


def _check_patterns(config: Mapping[str, Any], file: str) -> None:
    patterns = [(name, key) for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or {}]
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), str):
            patterns.append((name, config[name]))
    patterns += [("layers_pattern", pattern) for pattern in _listed(config.get("layers_pattern"))]
    for name, pattern in patterns:
        try:
            parsed(pattern)
        except ValueError as error:
            raise FormatError(f"{file}: the pattern {pattern!r} of {name} is not supported: {error}") from error


def rank_of(config: Mapping[str, Any], path: str) -> Any:
    """The rank of a layer."""
    return _by_pattern(config.get("rank_pattern"), path, config.get("r"))


def alpha_of(config: Mapping[str, Any], path: str) -> Any:
    """The alpha of a layer."""
    return _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha"))


def dropout_of(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The dropout of a layer, as arguments."""
    return dropout_at(path, config.get("lora_dropout") or config.get("vera_dropout") or 0.0)


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the path, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if parsed(pattern).matches_end(path):
            return value
    return DEFAULT if default is None else default


# ---------------------------------------------------------------- names


def is_target(config: Mapping[str, Any], path: str) -> bool:
    """Whether the configuration names a layer, by the rules of PEFT."""
    if _names(config.get("exclude_modules"), path):
        return False
    targets = config.get("target_modules") or []
    if targets == "all-linear" or _names(config.get("target_parameters"), f"{path}.weight"):
        return True
    if not _names(targets, path):
        return False
    indices = config.get("layers_to_transform")
    if isinstance(targets, str) or path in targets or indices is None or indices == []:
        return True
    return _layer_index(config, path) in _listed(indices)


def target_parameters(config: Mapping[str, Any], path: str) -> list[str]:
    """The names of the parameters of a module that target_parameters names, such as the weights of all experts."""
    names = [name.rpartition(".") for name in config.get("target_parameters") or ()]
    found = [f"{path}.{name}" for module, _, name in names if module and _names([module], path) and name != "weight"]
    return list(dict.fromkeys(found))


def _names(targets: str | Iterable[str] | None, path: str) -> bool:
    """Whether a pattern matches the whole path, or a listed name is the end of the path."""
    if isinstance(targets, str):
        return parsed(targets).matches(path)
    return any(path == name or path.endswith(f".{name}") for name in targets or ())


def _layer_index(config: Mapping[str, Any], path: str) -> int | None:
    """The number of the block of a layer: the first after a name that layers_pattern matches, by default any name."""
    parts = path.split(".")
    patterns = [parsed(pattern) for pattern in _listed(config.get("layers_pattern"))]
    for i in range(1, len(parts) - 1):
        before = ".".join(parts[:i])
        found = any(pattern.matches_end(before) for pattern in patterns) if patterns else i > 1
        if found and parts[i].isdecimal() and len(parts[i]) < LONGEST_NUMBER:
            return int(parts[i])
    return None


def is_saved_whole(config: Mapping[str, Any], path: str) -> bool:
    """Whether modules_to_save names a layer, or a module that it is inside of."""
    return any(f".{name}." in f".{path}." for name in config.get("modules_to_save") or ())


def token_indices(config: Mapping[str, Any], path: str) -> list[int] | None:
    """The trainable tokens of an embedding."""
    indices = config.get("trainable_token_indices")
    if isinstance(indices, dict):
        found = [rows for name, rows in indices.items() if _names([name], path)]
        return found[0] if found else None
    return indices


def _listed(value: Any) -> list[Any]:
    """A list of values from a list, a single value, or None."""
    return value if isinstance(value, list) else [] if value is None or value == "" else [value]


# ---------------------------------------------------------------- writing


def digest(config: Mapping[str, Any]) -> str:
    """A digest of the entries that give the weights their meaning."""
    entries = {name: config[name] for name in MEANING if config.get(name) is not None}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


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
