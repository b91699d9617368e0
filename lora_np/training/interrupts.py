"""`Interrupts`: Ctrl-C ends a training between two steps, so that each step is taken as a whole or not at all."""

from __future__ import annotations

import contextlib
import signal
from typing import Any, Self, final


@final
class Interrupts:
    """Context manager: SIGINT (Ctrl-C) waits until the next call of `check`; a second one is handled at once.

    Parameters, optimizer, generators and history then belong to the same step. Python delivers signals to the main thread
    only; in other threads, and if the program ignores SIGINT, the context manager has no effect.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._waiting: tuple[Any, ...] | None = None

    def __enter__(self) -> Self:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, self._receive)
                self._handler = handler
        return self

    def _receive(self, *arguments: Any) -> None:
        if self._waiting is not None and self._handler is not None:
            self._handler(*arguments)
        self._waiting = arguments

    def check(self) -> None:
        """Handle the signal that has arrived, if any: by default, raise KeyboardInterrupt."""
        if self._waiting is not None:
            arguments, self._waiting = self._waiting, None
            self._handler(*arguments)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        if kind is None:
            self.check()
