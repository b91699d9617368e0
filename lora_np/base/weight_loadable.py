"""`WeightLoadable` (C#: IWeightLoadable): weights by name, loaded by a plan that is checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .._typing import Array
from .._validation import real_array
from ..errors import ArgumentError
from .parameters import ParameterTree, parameter_of

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


class WeightLoadable(ParameterTree):
    """Needs the arrays, and gives what reads and replaces them by name."""

    def get_weights(self) -> Array | None:
        """A copy of the weight matrix; None where there is none."""
        return self.try_get_parameter("weight")

    def get_biases(self) -> Array | None:
        """A copy of the bias vector; None where there is none."""
        return self.try_get_parameter("bias")

    def get_parameter_names(self) -> tuple[str, ...]:
        """The names of all arrays, frozen ones included."""
        return tuple(self.named_parameters(frozen=True))

    @property
    def named_parameter_count(self) -> int:
        """The number of all arrays, frozen ones included."""
        return len(self.get_parameter_names())

    def try_get_parameter(self, name: str) -> Array | None:
        """A copy of an array; None where there is none of this name."""
        array = parameter_of(self, name, frozen=True)
        return None if array is None else array.copy()

    def get_parameter_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an array; None where there is none of this name."""
        array = parameter_of(self, name, frozen=True)
        return None if array is None else array.shape

    def set_parameter(self, name: str, value: Any) -> bool:
        """Replace one array, frozen or not, in place; False where there is none of this name.

        Raises
        ------
        ArgumentError
            Another shape, or not real numbers; nothing is changed.
        """
        if parameter_of(self, name, frozen=True) is None:
            return False
        self._assign({name: real_array(name, value, self.dtype)})
        return True

    def validate_weights(
        self, names: Iterable[str] | Mapping[str, Any], mapping: NameMapping | None = None
    ) -> WeightLoadValidation:
        """Say what `load_weights` would find.

        Parameters
        ----------
        names : names of weights, or arrays by name
            With arrays their shapes are compared too.
        mapping : callable, optional
            From a weight's name to that of a parameter here, or to None for a weight to leave out.
        """
        return _validated(self.named_parameters(frozen=True), names, mapping)

    def load_weights(
        self, weights: Mapping[str, Any], mapping: NameMapping | None = None, strict: bool = False
    ) -> WeightLoadResult:
        """Replace arrays by name, frozen ones too.

        Parameters
        ----------
        weights : arrays by name
        mapping : callable, optional
            From a weight's name to that of a parameter here, or to None for a weight to leave out.
        strict : bool
            Whether to load nothing at all unless every weight fits and every parameter gets one.
        """
        values, result = _plan(self.named_parameters(frozen=True), weights, mapping, strict)
        self._assign(values)
        return result


def _validated(
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


def _plan(
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
        found = _validated(arrays, list(weights), mapping)
        problems += [f"{name}: no such parameter" for name in found.unmatched_weights]
        problems += [f"{name}: no weight for it" for name in found.missing_parameters]
        if problems:
            values = {}
    result.loaded_parameters = list(values)
    result.success = not problems
    result.error_message = "; ".join(problems) or None
    return values, result
