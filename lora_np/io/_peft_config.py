"""adapter_config.json of PEFT: reading it, checking it, and a digest of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import FormatError, NotSupportedError
from ._json import read_json
from ._patterns import parsed
from ._peft_names import listed

MEANING = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"),
    *("fan_in_fan_out", "trainable_token_indices", "target_parameters"),
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
    patterns += [("layers_pattern", pattern) for pattern in listed(config.get("layers_pattern"))]
    for name, pattern in patterns:
        try:
            parsed(pattern)
        except ValueError as error:
            raise FormatError(f"{file}: the pattern {pattern!r} of {name} is not supported: {error}") from error


def digest(config: Mapping[str, Any]) -> str:
    """A digest of the entries that give the weights their meaning."""
    entries = {name: config[name] for name in MEANING if config.get(name) is not None}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
