"""What a configuration of PEFT says about each layer, by its path: whether it is a target, its rank, alpha and dropout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..layers.dropout import dropout_at
from ._patterns import parsed

DEFAULT = 8
"""PEFT's default of r and of lora_alpha."""

LONGEST_NUMBER = 10
"""Digits of the number of a block."""


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


def is_target(config: Mapping[str, Any], path: str) -> bool:
    """Whether the configuration names a layer, by the rules of PEFT."""
    targets = config.get("target_modules") or []
    named = targets == "all-linear" or _names(config.get("target_parameters"), f"{path}.weight")
    named = named or (_names(targets, path) and _is_in_blocks(config, targets, path))
    return named and not _names(config.get("exclude_modules"), path)


def _is_in_blocks(config: Mapping[str, Any], targets: str | list[str], path: str) -> bool:
    """Whether a target is in a block that layers_to_transform allows; it restricts only a list of ends of paths."""
    indices = listed(config.get("layers_to_transform"))
    return isinstance(targets, str) or path in targets or not indices or _layer_index(config, path) in indices


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
    patterns = [parsed(pattern) for pattern in listed(config.get("layers_pattern"))]
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


def listed(value: Any) -> list[Any]:
    """A list of values from a list, a single value, or None."""
    return value if isinstance(value, list) else [] if value is None or value == "" else [value]
