"""Groups of parameters with different learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from .._validation import mapping, non_negative_float
from ..errors import ArgumentError


def rate_factors(groups: Mapping[str, float] | None, names: Iterable[str]) -> dict[str, float]:
    """The factor of the learning rate of each parameter that a group contains: that of the first matching pattern."""
    if groups is None:
        return {}
    mapping("groups", groups)
    names, factors = list(names), dict[str, float]()
    for pattern, factor in groups.items():
        if not isinstance(pattern, str):
            raise ArgumentError(f"groups must map patterns of parameter names to factors, got the key {pattern!r}")
        factor = non_negative_float(f"groups[{pattern!r}]", factor)
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise ArgumentError(f"groups: the pattern {pattern!r} matches none of the trainable parameters {shown}")
        for name in matching:
            factors.setdefault(name, factor)
    return factors
