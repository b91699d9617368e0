r"""Patterns of module names in a configuration: a part of regular expressions, matched in bounded time.

A pattern is parsed, never run by `re`, which needs exponential time for some. It may have names, ``.``, ``\d``, ``[...]``,
``|``, groups, ``^``, ``$`` and ``\b``; ``*``, ``+`` and ``{m,n}`` after single characters, ``?`` after groups too. That is
what PEFT writes, and more.

A set of positions in a name is an integer with a bit for each position. Each part of a pattern maps the positions where it
may start to those where it may end, so a match takes a few integer operations for each character of the pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, final

LONGEST_PATTERN = 2000
LONGEST_NAME = 1000
DEEPEST_GROUP = 20
MOST_REPEATS = 100

LITERAL = re.compile(r"(?:\w|\\[^\w\n])+(?![*+?{])")
"""Characters that stand for themselves, and of which the last is not repeated."""

CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
}


class Name(NamedTuple):
    """A name to be matched, and the positions of the characters that pass the tests that have been asked for."""

    text: str
    found: dict[Callable[[str], bool], int]

    def where(self, test: Callable[[str], bool]) -> int:
        """The positions of the characters that pass a test."""
        if test not in self.found:
            self.found[test] = sum(1 << i for i, char in enumerate(self.text) if test(char))
        return self.found[test]


Part = Callable[[Name, int], int]
"""Maps the positions where a part of a pattern may start to those where it may end."""


@final
class Pattern:
    """A parsed pattern.

    Raises
    ------
    ValueError
        If the pattern has a construct that is not supported; the message names it.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST_PATTERN:
            raise ValueError(f"patterns have at most {LONGEST_PATTERN} characters, got {len(text)}")
        self._part = _Parser(text).parsed()

    def matches(self, name: str) -> bool:
        """Whether the whole name matches, as in `re.fullmatch`."""
        return self._reaches_end(name, 1)

    def matches_end(self, name: str) -> bool:
        """Whether the name, or a part that follows a dot, matches: PEFT's rule for the keys of rank_pattern."""
        return self._reaches_end(name, 1 | sum(2 << i for i, char in enumerate(name) if char == "."))

    def _reaches_end(self, name: str, starts: int) -> bool:
        if len(name) > LONGEST_NAME:
            return False
        return bool(self._part(Name(name, {}), starts) >> len(name) & 1)


@lru_cache(maxsize=4096)
def parsed(text: str) -> Pattern:
    """The pattern, parsed once."""
    return Pattern(text)


class _Parser:
    """A recursive-descent parser: a pattern is alternatives of sequences of repeated atoms."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def parsed(self) -> Part:
        part = self.alternatives()
        if self.at < len(self.text):
            raise ValueError(f"unbalanced parenthesis at position {self.at}")
        return part

    def taken(self, text: str) -> bool:
        """Whether the rest of the pattern starts with a text, which is then consumed."""
        found = self.text.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def next(self) -> str:
        if self.at == len(self.text):
            raise ValueError("the pattern ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self) -> Part:
        parts = [self.sequence()]
        while self.taken("|"):
            parts.append(self.sequence())
        return _either(parts) if len(parts) > 1 else parts[0]

    def sequence(self) -> Part:
        parts: list[Part] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            literal = LITERAL.match(self.text, self.at)
            if literal:
                self.at = literal.end()
                parts.append(_text(re.sub(r"\\(.)", r"\1", literal[0])))
            else:
                parts.append(self.repeated())
        return _in_turn(parts)

    def repeated(self) -> Part:
        start = self.at
        atom = self.atom()
        counts = re.compile(r"([*+?]|\{(\d{1,3})(,(\d{0,3}))?\})\??").match(self.text, self.at)
        if not counts:
            return atom if not isinstance(atom, _Char) else atom.once
        self.at = counts.end()
        if self.text[self.at : self.at + 1] in ("*", "+", "?", "{") or self.text[start:].startswith(("^", "$", "\\b")):
            raise ValueError(f"repetition of a repetition or of a position, at position {start}")
        if counts[1][0] == "?":
            once = atom.once if isinstance(atom, _Char) else atom
            return lambda name, starts: starts | once(name, starts)
        if not isinstance(atom, _Char):
            raise ValueError(f"repetition of {self.text[start : self.at]!r}, which is not a single character")
        least, most = self.bounds(counts)
        return lambda name, starts: atom.repeated(name, starts, least, most)

    @staticmethod
    def bounds(counts: re.Match[str]) -> tuple[int, int | None]:
        """The smallest and the largest number of repetitions."""
        if counts[1][0] in "*+":
            return int(counts[1][0] == "+"), None
        least = int(counts[2])
        most = None if counts[3] == "," else int(counts[4] or least)
        if max(least, most or 0) > MOST_REPEATS or (most is not None and most < least):
            raise ValueError(f"repetition {counts[0]!r}; the largest number is {MOST_REPEATS}")
        return least, most

    def atom(self) -> Part | _Char:
        char = self.next()
        if char == "(":
            return self.group()
        if char == "[":
            return self.character_class()
        if char == "\\":
            return self.escaped()
        if char == "^":
            return lambda name, starts: starts & 1
        if char == "$":
            return lambda name, starts: starts & 1 << len(name.text)
        if char in "*+?{":
            raise ValueError(f"nothing to repeat at position {self.at - 1}")
        return _Char(_is_no_newline if char == "." else _equal_to(char))

    def group(self) -> Part:
        if not self.taken("?:") and self.taken("?"):
            raise ValueError(f"the group '(?{self.text[self.at : self.at + 1]}'")
        self.depth += 1
        if self.depth > DEEPEST_GROUP:
            raise ValueError(f"more than {DEEPEST_GROUP} nested groups")
        part = self.alternatives()
        if not self.taken(")"):
            raise ValueError("missing )")
        self.depth -= 1
        return part

    def escaped(self) -> Part | _Char:
        char = self.next()
        if char == "b":
            return _at_word_boundary
        if char in CLASSES:
            return _Char(CLASSES[char])
        if char.isalnum():
            raise ValueError(f"the escape '\\{char}'")
        return _Char(_equal_to(char))

    def character_class(self) -> _Char:
        negated = self.taken("^")
        tests: list[Callable[[str], bool]] = []
        while not tests or not self.taken("]"):  # a bracket in the first place is literal
            low = self.next()
            if low == "\\" and (letter := self.next()) in CLASSES:
                tests.append(CLASSES[letter])
                continue
            low = letter if low == "\\" else low
            high = low
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.next()
                high = self.next()
            tests.append(_between(low, high))
        return _Char(lambda char: any(test(char) for test in tests) != negated)


class _Char(NamedTuple):
    """A single character that passes a test."""

    test: Callable[[str], bool]

    def once(self, name: Name, starts: int) -> int:
        return (starts & name.where(self.test)) << 1

    def repeated(self, name: Name, starts: int, least: int, most: int | None) -> int:
        where = name.where(self.test)
        for _ in range(least):
            starts = (starts & where) << 1
        if most is None:  # adding a start to a run of ones carries to the end of the run
            return (((starts & where) + where) ^ where) | starts
        for _ in range(most - least):
            starts |= (starts & where) << 1
        return starts


def _is_no_newline(char: str) -> bool:
    return char != "\n"


@lru_cache(maxsize=256)
def _equal_to(char: str) -> Callable[[str], bool]:
    return lambda found: found == char


def _between(low: str, high: str) -> Callable[[str], bool]:
    return lambda char: low <= char <= high


def _text(text: str) -> Part:
    def ends(name: Name, starts: int) -> int:
        found, at = 0, name.text.find(text)
        while at >= 0:
            found |= (starts >> at & 1) << at + len(text)
            at = name.text.find(text, at + 1)
        return found

    return ends


def _either(parts: list[Part]) -> Part:
    def ends(name: Name, starts: int) -> int:
        found = 0
        for part in parts:
            found |= part(name, starts)
        return found

    return ends


def _in_turn(parts: list[Part]) -> Part:
    def ends(name: Name, starts: int) -> int:
        for part in parts:
            if not starts:
                break
            starts = part(name, starts)
        return starts

    return ends


def _at_word_boundary(name: Name, starts: int) -> int:
    words = name.where(CLASSES["w"])
    return starts & (words ^ words << 1)
