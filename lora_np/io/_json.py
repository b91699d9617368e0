"""Reading a JSON file."""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import FormatError


def read_json(file: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises
    ------
    FormatError
        If it is not valid JSON, if an object has the same key twice, of which only one value could count, or if a text is
        not valid Unicode. The message names the file.
    """
    try:
        with open(file, encoding="utf-8") as text:
            return parsed_json(text.read())
    except (ValueError, RecursionError, MemoryError) as error:
        raise FormatError(f"{os.fspath(file)}: invalid JSON: {error}") from error


def parsed_json(text: str) -> Any:
    """The value of a JSON text; see `read_json`. Raises ValueError or RecursionError if it is damaged."""
    value = json.loads(text, object_pairs_hook=_without_doubles)
    json.dumps(value, ensure_ascii=False).encode()  # lone surrogates, which could be neither printed nor written
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return value
