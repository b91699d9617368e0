"""Standard output that any text can be written to, and that may be closed at the other end."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def any_text() -> Iterator[None]:
    """Standard output with escapes for the letters that its encoding does not have; flushed at the end."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)  # which also flushes, while an error can still be told


def discard_output() -> None:
    """Send what is left to nowhere, so that the interpreter does not stumble over the closed pipe once more as it ends."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
