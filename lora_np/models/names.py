"""Layer names: dotted paths, and the selection of layers by name or regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from ..adapters.base import LoRAAdapterBase
from ..base import Layer
from ..errors import ArgumentError
from ..layers.dense import AffineLayer

Names: TypeAlias = str | re.Pattern[str] | Iterable[str] | None


def join(path: str, name: str) -> str:
    """The dotted path of a child."""
    return f"{path}.{name}" if path else name


def is_inside(path: str, paths: Iterable[str]) -> bool:
    """Whether a layer is at one of `paths`, or inside a layer at one of them."""
    return any(not other or path == other or path.startswith(f"{other}.") for other in paths)


def dense_paths(model: Layer, path: str = "") -> Iterator[str]:
    """The paths of the dense layers that are not inside adapters."""
    if isinstance(model, AffineLayer):
        yield path
    elif not isinstance(model, LoRAAdapterBase):
        for name, layer in model.children().items():
            yield from dense_paths(layer, join(path, name))


def matching(argument: str, names: Names, paths: list[str]) -> set[str]:
    """The paths that match names or a regular expression, as in `apply_lora`; raises ArgumentError if one matches none."""
    found: set[str] = set()
    patterns: list[str | re.Pattern[str]]
    if isinstance(names, str | re.Pattern):
        patterns = [names]
    else:
        try:
            listed = list(names)  # type: ignore[arg-type]
        except TypeError:
            listed = [names]  # type: ignore[list-item]
        if not all(isinstance(name, str) for name in listed):
            raise ArgumentError(f"{argument} must be a regular expression or a sequence of names, got {names!r}")
        patterns = [rf"(.*\.)?{re.escape(str(name))}" for name in listed]
    for pattern in patterns:
        try:
            matched = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as error:
            raise ArgumentError(f"{argument} must be a regular expression or a sequence of names: {error}") from error
        if not matched:
            raise ArgumentError(f"{argument} must match dense layers of the model, which are {paths}; got {names!r}")
        found |= matched
    return found
