"""Formatting of text and numbers for output."""

import math
import re
from typing import Any

OPTIONS = {
    "untie=True": "--untie",
    "; drop=": "; --drop ",
    "; alpha= ": "; --alpha ",
    "; component= ": "; --component ",
    "base_is_residual=True": "--base-is-residual",
}
"""Arguments of functions that messages recommend, and the options of the command line that set them."""


def printable(text: str) -> str:
    """Escape nonprintable characters: names in a file may contain terminal control sequences."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def as_options(text: str) -> str:
    """A message with the arguments of functions that it recommends as options of the command line."""
    for name, option in OPTIONS.items():
        text = text.replace(name, option)
    return text


def number(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


def share(value: float) -> str:
    """A fraction as a percentage; 100 % only if it is exactly 1, and 0 % only if it is exactly 0."""
    text = f"{100 * value:.2f} %"
    if text == "0.00 %" and value > 0:
        return "< 0.01 %"
    return "> 99.99 %" if text == "100.00 %" and value < 1 else text


def counted(count: int, noun: str) -> str:
    """A count and its noun, in the plural unless the count is 1."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def plain(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that orders numbers in names by value: ``layers.2`` before ``layers.10``."""
    return [(len(part.lstrip("0")) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
