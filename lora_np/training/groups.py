"""Groups of parameters with different learning rates or weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self

from .._typing import Array, Parts
from .._validation import mapping, non_negative_float
from ..errors import ArgumentError
from .optimizers import Optimizer


class Groups(NamedTuple):
    """Factors by parameter name; those of all other parameters are 1."""

    rates: Mapping[str, float]
    """Of the learning rate."""
    decays: Mapping[str, float]
    """Of the optimizer's weight decay."""

    @classmethod
    def of(
        cls,
        rates: Mapping[str, float] | None,
        decays: Mapping[str, float] | None,
        optimizer: Optimizer,
        names: Iterable[str],
    ) -> Self:
        """The groups of patterns of parameter names: the arguments `groups` and `decay` of `fit`, checked."""
        names = list(names)
        if decays is not None and not getattr(optimizer, "weight_decay", 0):
            raise ArgumentError(f"decay requires an optimizer with weight decay, such as AdamW(), got {optimizer!r}")
        return cls(_by_name("groups", rates, names), _by_name("decay", decays, names))

    def updates(
        self, optimizer: Optimizer, parameters: Mapping[str, Array], gradients: Mapping[str, Array], parts: Parts
    ) -> dict[str, Array]:
        """The updates of an optimizer that has these factors."""
        groups: dict[float, dict[str, Array]] = {}
        for name, p in parameters.items():
            groups.setdefault(self.decays.get(name, 1.0), {})[name] = p
        updates: dict[str, Array] = {}
        for factor, group in groups.items():
            with _with_decay(optimizer, factor):
                updates |= optimizer.updates_of(group, gradients, parts)
        for name in updates.keys() & self.rates.keys():
            updates[name] = updates[name] * self.rates[name]
        return updates


NO_GROUPS = Groups({}, {})


@contextmanager
def _with_decay(optimizer: Any, factor: float) -> Iterator[None]:
    """Context manager: multiply the weight decay of an optimizer, and restore it."""
    if factor == 1:
        yield
        return
    decay = optimizer.weight_decay
    optimizer.weight_decay = decay * factor
    try:
        yield
    finally:
        optimizer.weight_decay = decay


def _by_name(argument: str, groups: Mapping[str, float] | None, names: list[str]) -> dict[str, float]:
    """The factor of each parameter that a group contains: that of the first matching pattern."""
    if groups is None:
        return {}
    mapping(argument, groups)
    factors: dict[str, float] = {}
    for pattern, factor in groups.items():
        if not isinstance(pattern, str):
            raise ArgumentError(f"{argument} must map patterns of parameter names to factors, got the key {pattern!r}")
        factor = non_negative_float(f"{argument}[{pattern!r}]", factor)
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise ArgumentError(f"{argument}: the pattern {pattern!r} matches none of the trainable parameters {shown}")
        for name in matching:
            factors.setdefault(name, factor)
    return factors
