"""Standard output that accepts any text and tolerates a closed pipe."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def any_text() -> Iterator[None]:
    """Context manager: escape characters that standard output cannot encode, and flush it at the end."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)  # also flushes, while a write error can still be reported


def discard_output() -> None:
    """Redirect standard output to the null device, so that flushing it at exit does not fail on the closed pipe again."""
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())
