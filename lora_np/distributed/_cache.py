"""What a worker process keeps between tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar, final

Value = TypeVar("Value")


class _Slot(NamedTuple, Generic[Value]):
    lock: threading.Lock
    content: list[Value]
    """Empty, or the value."""


@final
class Recent(Generic[Value]):
    """The values that were asked for last; each is built once, also where several threads ask.

    Parameters
    ----------
    size : int, optional
        How many to keep; all of them if left out.
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot[Value]] = {}

    def get(self, key: Hashable, build: Callable[[], Value]) -> Value:
        """The value of a key, built if it is not there; an error of `build` keeps nothing."""
        with self._lock:
            slot = self._slots.pop(key, None) or _Slot(threading.Lock(), [])
            self._slots[key] = slot  # the last of the dict is the most recent
            if self._size is not None and len(self._slots) > self._size:
                del self._slots[next(iter(self._slots))]
        with slot.lock:  # values of other keys may be built at the same time
            if not slot.content:
                slot.content.append(build())
            return slot.content[0]

    def drop(self, key: Hashable) -> None:
        """Forget a key, if it is there."""
        with self._lock:
            self._slots.pop(key, None)
