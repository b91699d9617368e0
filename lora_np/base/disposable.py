"""`Disposable` (C#: IDisposable): a layer that can be closed, and used in a ``with`` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Disposable(ABC):
    """Needs `reset_state`."""

    @abstractmethod
    def reset_state(self) -> None:
        """Drop what `forward` and `backward` remember."""

    def close(self) -> None:
        """Call `reset_state`. It may be called repeatedly, and the layer can still be used afterwards."""
        self.reset_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
