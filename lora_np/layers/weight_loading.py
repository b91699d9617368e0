"""Loading weights by name: a plan that is made, and judged, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .._typing import Array
from .._validation import real_array
from ..errors import ArgumentError

NameMapping: TypeAlias = Callable[[str], str | None]


@dataclass
class WeightLoadValidation:
    """What loading would find."""

    matched: list[str] = field(default_factory=list)
    """Parameters that a weight goes to."""
    unmatched_weights: list[str] = field(default_factory=list)
    """Weights whose name, after the mapping, is no parameter."""
    missing_parameters: list[str] = field(default_factory=list)
    """Parameters that no weight goes to."""
    shape_mismatches: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """(parameter, expected shape, actual shape)."""

    @property
    def is_valid(self) -> bool:
        """Whether every weight that goes to a parameter fits it."""
        return not self.shape_mismatches

    @property
    def is_complete(self) -> bool:
        """Whether, moreover, every parameter gets a weight."""
        return self.is_valid and not self.missing_parameters


@dataclass
class WeightLoadResult:
    """What loading did."""

    success: bool
    """Whether nothing failed; if strict, also whether everything matched."""
    loaded_parameters: list[str] = field(default_factory=list)
    failed_parameters: list[tuple[str, str]] = field(default_factory=list)
    """(parameter, reason)."""
    skipped_count: int = 0
    """Weights that go to no parameter here."""
    error_message: str | None = None
    """Why `success` is false."""

    @property
    def loaded_count(self) -> int:
        """The number of parameters that were replaced."""
        return len(self.loaded_parameters)

    @property
    def failed_count(self) -> int:
        """The number of parameters whose weight did not fit."""
        return len(self.failed_parameters)


def validate(
    arrays: Mapping[str, Array], names: Iterable[str] | Mapping[str, Any], mapping: NameMapping | None
) -> WeightLoadValidation:
    """Match weights with the arrays of a layer."""
    found = WeightLoadValidation()
    for name in names:
        target = mapping(name) if mapping else name
        if target is None:
            continue
        if target not in arrays:
            found.unmatched_weights.append(name)
            continue
        found.matched.append(target)
        if isinstance(names, Mapping):
            expected, actual = arrays[target].shape, real_array(name, names[name]).shape
            if expected != actual:
                found.shape_mismatches.append((target, expected, actual))
    matched = set(found.matched)
    found.missing_parameters = [name for name in arrays if name not in matched]
    return found


def plan(
    arrays: Mapping[str, Array], weights: Mapping[str, Any], mapping: NameMapping | None, strict: bool
) -> tuple[dict[str, Array], WeightLoadResult]:
    """The values to write, none of them in a strict plan that is not perfect, and the result to report."""
    values: dict[str, Array] = {}
    result = WeightLoadResult(success=True)
    for name, weight in weights.items():
        target = mapping(name) if mapping else name
        if target is None or target not in arrays:
            result.skipped_count += 1
            continue
        try:
            value = real_array(name, weight, arrays[target].dtype, copy=True)  # it may be one of the arrays to replace
            if value.shape != arrays[target].shape:
                raise ArgumentError(f"expected shape {arrays[target].shape}, got {value.shape}")
            if target in values:
                raise ArgumentError(f"a second weight, {name!r}, goes to it")
        except ArgumentError as error:
            result.failed_parameters.append((target, str(error)))
        else:
            values[target] = value
    problems = [f"{target}: {reason}" for target, reason in result.failed_parameters]
    if strict:
        found = validate(arrays, list(weights), mapping)
        problems += [f"{name}: no such parameter" for name in found.unmatched_weights]
        problems += [f"{name}: no weight for it" for name in found.missing_parameters]
        if problems:
            values = {}
    result.loaded_parameters = list(values)
    result.success = not problems
    result.error_message = "; ".join(problems) or None
    return values, result
