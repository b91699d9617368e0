"""`WeightLoadable` (C#: IWeightLoadable): loads weights by name, after checking them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .. import _validation as check
from .._typing import Array
from .._validation import real_array, text
from ..errors import ArgumentError
from .parameters import ParameterTree, parameter_of

NameMapping: TypeAlias = Callable[[str], str | None]


@dataclass
class WeightLoadValidation:
    """The result of `WeightLoadable.validate_weights`."""

    matched: list[str] = field(default_factory=list)
    """Parameters for which there is a weight."""
    unmatched_weights: list[str] = field(default_factory=list)
    """Weights whose name, after mapping, is not that of a parameter."""
    missing_parameters: list[str] = field(default_factory=list)
    """Parameters for which there is no weight."""
    shape_mismatches: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """(parameter, expected shape, actual shape)."""

    @property
    def is_valid(self) -> bool:
        """Whether every weight that matches a parameter has its shape."""
        return not self.shape_mismatches

    @property
    def is_complete(self) -> bool:
        """Whether the weights are valid and none is missing."""
        return self.is_valid and not self.missing_parameters


@dataclass
class WeightLoadResult:
    """The result of `WeightLoadable.load_weights`."""

    success: bool
    """Whether nothing failed and, if strict, everything matched."""
    loaded_parameters: list[str] = field(default_factory=list)
    failed_parameters: list[tuple[str, str]] = field(default_factory=list)
    """(parameter, reason)."""
    skipped_count: int = 0
    """The number of weights that match no parameter."""
    error_message: str | None = None
    """Why `success` is False; otherwise None."""

    @property
    def loaded_count(self) -> int:
        """The number of parameters that were loaded."""
        return len(self.loaded_parameters)

    @property
    def failed_count(self) -> int:
        """The number of parameters that could not be loaded."""
        return len(self.failed_parameters)


class WeightLoadable(ParameterTree):
    """Mixin that reads and replaces arrays by name; requires the arrays."""

    def get_weights(self) -> Array | None:
        """A copy of the weight matrix; None if there is none."""
        return self.try_get_parameter("weight")

    def get_biases(self) -> Array | None:
        """A copy of the bias vector; None if there is none."""
        return self.try_get_parameter("bias")

    def get_parameter_names(self) -> tuple[str, ...]:
        """The names of all arrays, frozen ones included."""
        return tuple(self.named_parameters(frozen=True))

    @property
    def named_parameter_count(self) -> int:
        """The number of all arrays, frozen ones included."""
        return len(self.get_parameter_names())

    def try_get_parameter(self, name: str) -> Array | None:
        """A copy of an array; None if there is none of this name."""
        text("name", name)
        array = parameter_of(self, name, frozen=True)
        return None if array is None else array.copy()

    def get_parameter_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an array; None if there is none of this name."""
        text("name", name)
        array = parameter_of(self, name, frozen=True)
        return None if array is None else array.shape

    def set_parameter(self, name: str, value: Any) -> bool:
        """Set one array, frozen or not, in place; returns False if there is none of this name.

        Raises
        ------
        ArgumentError
            If the shape differs, or if the elements are not real numbers; nothing is changed.
        """
        text("name", name)
        if parameter_of(self, name, frozen=True) is None:
            return False
        self._assign({name: real_array(name, value, self.dtype)})
        return True

    def validate_weights(
        self, names: Iterable[str] | Mapping[str, Any], mapping: NameMapping | None = None
    ) -> WeightLoadValidation:
        """Compare weights with the parameters of this layer, without loading them.

        Parameters
        ----------
        names : names of weights, or mapping of arrays by name
            If it is a mapping, shapes are compared too.
        mapping : callable, optional
            Maps the name of a weight to that of a parameter, or to None to skip the weight.
        """
        if not isinstance(names, Mapping):
            names = check.sequence("names", names, "names, or a mapping of arrays by name")
        return _validated(self.named_parameters(frozen=True), names, mapping)

    def load_weights(
        self, weights: Mapping[str, Any], mapping: NameMapping | None = None, strict: bool = False
    ) -> WeightLoadResult:
        """Set arrays, frozen or not, in place by name; weights that match no parameter are skipped.

        Parameters
        ----------
        weights : mapping of arrays by name
        mapping : callable, optional
            Maps the name of a weight to that of a parameter, or to None to skip the weight.
        strict : bool, default False
            Whether to load nothing unless every weight matches a parameter of its shape, and every parameter has a weight.
        """
        check.mapping("weights", weights)
        values, result = _plan(self.named_parameters(frozen=True), weights, mapping, strict)
        self._assign(values)
        return result


def _validated(
    arrays: Mapping[str, Array], names: Iterable[str] | Mapping[str, Any], mapping: NameMapping | None
) -> WeightLoadValidation:
    """Compare weights with the arrays of a layer."""
    found = WeightLoadValidation()
    for name in names:
        target = _target(name, mapping)
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


def _target(name: Any, mapping: NameMapping | None) -> str | None:
    """The name of the parameter to which a weight belongs, if any."""
    text("each name of a weight", name)
    if mapping is None:
        return name
    check.function("mapping", mapping)
    target = mapping(name)
    if not (target is None or isinstance(target, str)):
        raise ArgumentError(f"mapping must return a name or None, got {target!r} for {name!r}")
    return target


def _plan(
    arrays: Mapping[str, Array], weights: Mapping[str, Any], mapping: NameMapping | None, strict: bool
) -> tuple[dict[str, Array], WeightLoadResult]:
    """The values to write, which are none if `strict` and anything does not match, and the result to report."""
    values: dict[str, Array] = {}
    result = WeightLoadResult(success=True)
    for name, weight in weights.items():
        target = _target(name, mapping)
        if target is None or target not in arrays:
            result.skipped_count += 1
            continue
        try:
            value = real_array(name, weight, arrays[target].dtype, copy=True)  # it may be one of the arrays to replace
            if value.shape != arrays[target].shape:
                raise ArgumentError(f"expected shape {arrays[target].shape}, got {value.shape}")
            if target in values:
                raise ArgumentError(f"a second weight, {name!r}, maps to it")
        except ArgumentError as error:
            result.failed_parameters.append((target, str(error)))
        else:
            values[target] = value
    problems = [f"{target}: {reason}" for target, reason in result.failed_parameters]
    if strict:
        found = _validated(arrays, list(weights), mapping)
        problems += [f"{name}: no such parameter" for name in found.unmatched_weights]
        problems += [f"{name}: no weight given" for name in found.missing_parameters]
        if problems:
            values = {}
    result.loaded_parameters = list(values)
    result.success = not problems
    result.error_message = "; ".join(problems) or None
    return values, result
