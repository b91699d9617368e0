"""Words and numbers as the verbs print them."""

import math
import re
from typing import Any


def printable(text: str) -> str:
    """The text with escapes for what cannot be seen: a name in a file may hold what a terminal takes for a command."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def number(value: float) -> str:
    """A number of any size, in few letters."""
    return f"{value:.4g}"


def share(value: float) -> str:
    """A share of a whole, in percent; 100 only for all of it."""
    text = f"{100 * value:.2f} %"
    return "> 99.99 %" if text == "100.00 %" and value < 1 else text


def counted(count: int, noun: str) -> str:
    """A count and its noun, in the plural where it is one."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def plain(value: Any) -> Any:
    """The value for JSON, which has no NaN and no infinity: null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by that puts ``layers.2`` before ``layers.10``."""
    return [(len(part.lstrip("0")) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
