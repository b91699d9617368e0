"""`FixedAttributes`: setting an attribute that a class does not declare is an error."""

from __future__ import annotations

from functools import cache
from typing import Any, cast


class FixedAttributes:
    """For layers whose attributes users set: a misspelt one, which nothing would read, is refused."""

    def __setattr__(self, name: str, value: object) -> None:
        if name[0] != "_" and name not in _declared(cast(Any, type(self))):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set")
        object.__setattr__(self, name, value)


@cache
def _declared(kind: Any) -> frozenset[str]:
    """The attributes of a class, and those that it only annotates."""
    annotated = (name for base in kind.__mro__ for name in vars(base).get("__annotations__", {}))
    return frozenset(dir(kind)).union(annotated)
