"""A foreign program: one JSON case per line to its standard input, one JSON result per line from its standard output."""

import json
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from .._validation import finite_float
from ..errors import ArgumentError, ArgumentOutOfRangeError
from .vectors import Case

SHOWN = 80
"""How many characters of a wrong line a message quotes."""


@dataclass(frozen=True)
class Answers:
    """What a program said."""

    results: dict[str, dict[str, Any]]
    """By the name of the case: ``arrays`` by name, or the reason to ``skip`` it."""
    problems: list[str]
    """What else went wrong: a crash, a time that ran out, lines that are no results."""


def ask(command: str, cases: Iterable[Case], *, timeout: float = 60.0) -> Answers:
    """Give a program every case without what is expected, and read its results.

    Parameters
    ----------
    command : str
        The program and its arguments, quoted as for a POSIX shell; no shell runs it.
    cases : iterable of Case
    timeout : float, default 60
        Seconds for all cases together; then the program is stopped, and what it said before counts.

    Returns
    -------
    Answers

    Raises
    ------
    ArgumentError
        The command is no text, is empty or has an open quotation mark; there is no such program; no time is given.
    """
    if finite_float("timeout", timeout) <= 0:
        raise ArgumentOutOfRangeError(f"timeout must be greater than 0, got {timeout}")
    if not isinstance(command, str):
        raise ArgumentError(f"command must be a program and its arguments in one string, got {command!r}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ArgumentError(f"command must be a program and its arguments, got {command!r}: {error}") from None
    if not words:
        raise ArgumentError("command must name a program, got an empty one")
    given = [{key: case[key] for key in ("name", "kind", "settings", "arrays")} for case in cases]
    lines = "".join(json.dumps(case) + "\n" for case in given)
    # Files in place of pipes: neither side waits for the other, whatever the program writes or leaves unread.
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(lines.encode())
        stdin.seek(0)
        problem = _run(words, timeout, stdin, stdout, stderr)
        problems = [] if problem is None else [problem + _last_line(stderr)]
        return _read(_text(stdout), {case["name"] for case in given}, problems)


def _run(words: list[str], timeout: float, stdin: BinaryIO, stdout: BinaryIO, stderr: BinaryIO) -> str | None:
    """Run the program to its end; what went wrong, if anything did."""
    try:
        process = subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
    except OSError as error:
        raise ArgumentError(f"command must name a program that runs, got {words[0]!r}: {error.strerror}") from None
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"the program had not ended after {timeout:g} s and was stopped"
    finally:
        _end(process)
    return f"the program ended with exit code {code}" if code else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the program, where it still runs, and the programs that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(stderr: BinaryIO) -> str:
    lines = _text(stderr).split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its last words: {said[:SHOWN]}" if said else ""


def _read(text: str, names: set[str], problems: list[str]) -> Answers:
    answers = Answers({}, problems)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            result, fault = _result(line, names, answers.results)
            if fault:
                problems.append(f"line {number} of the program's output {fault}: {line.strip()[:SHOWN]}")
            else:
                answers.results[result["name"]] = result
    return answers


def _result(line: str, names: set[str], seen: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The result that a line holds, and what is wrong with it."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "is not JSON"
    if not isinstance(result, dict) or not isinstance(result.get("name"), str):
        return {}, "is not an object with a name"
    if result["name"] not in names:
        return {}, "names no case"
    if result["name"] in seen:
        return {}, "is a second result of its case"
    if not isinstance(result.get("arrays"), dict) and not isinstance(result.get("skip"), str):
        return {}, 'has neither an object "arrays" nor a string "skip"'
    return result, ""
