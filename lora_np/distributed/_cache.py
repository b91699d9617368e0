"""The cache in which a process keeps models and shards between tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar, final

Value = TypeVar("Value")


class _Slot(NamedTuple, Generic[Value]):
    lock: threading.Lock
    content: list[Value]
    """Empty until the value is built."""


@final
class Recent(Generic[Value]):
    """The most recently used values; each is built once, even if several threads ask for it at the same time.

    Parameters
    ----------
    size : int, optional
        How many values to keep; all of them by default.
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot[Value]] = {}

    def get(self, key: Hashable, build: Callable[[], Value]) -> Value:
        """The value of a key, built if it is missing. If `build` raises, nothing is kept."""
        with self._lock:
            slot = self._slots.pop(key, None) or _Slot(threading.Lock(), [])
            self._slots[key] = slot  # now the last key of the dict; the first one is the least recent
            if self._size is not None and len(self._slots) > self._size:
                del self._slots[next(iter(self._slots))]
        with slot.lock:  # one lock per key, so that the values of other keys can be built at the same time
            if not slot.content:
                slot.content.append(build())
            return slot.content[0]

    def drop(self, key: Hashable) -> None:
        """Forget a key, if it is present."""
        with self._lock:
            self._slots.pop(key, None)
