"""Reading a JSON file."""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import FormatError


def read_json(file: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; raises FormatError, naming the file, if it is not valid JSON."""
    try:
        with open(file, encoding="utf-8") as text:
            return json.load(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{os.fspath(file)}: invalid JSON: {error}") from error
