"""`FixedAttributes`: setting an attribute that the class does not declare is an error."""

from __future__ import annotations

from functools import cache
from typing import Any, cast


class FixedAttributes:
    """Mixin for layers whose attributes users set: a misspelt name raises instead of creating an unused attribute."""

    def __setattr__(self, name: str, value: object) -> None:
        if name[0] != "_" and name not in _declared(cast(Any, type(self))):
            raise AttributeError(f"{type(self).__name__} has no settable attribute {name!r}")
        object.__setattr__(self, name, value)


@cache
def _declared(kind: Any) -> frozenset[str]:
    """The attributes that a class defines or annotates."""
    annotated = (name for base in kind.__mro__ for name in vars(base).get("__annotations__", {}))
    return frozenset(dir(kind)).union(annotated)
