"""`Disposable` (C#: IDisposable): layers can be closed, and used in a ``with`` statement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Disposable(ABC):
    """Mixin that makes a layer a context manager; requires `reset_state`."""

    @abstractmethod
    def reset_state(self) -> None:
        """Discard the state that `forward` and `backward` store."""

    def close(self) -> None:
        """Call `reset_state`. Repeated calls are allowed, and the layer can still be used afterwards."""
        self.reset_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
