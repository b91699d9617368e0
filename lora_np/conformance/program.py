"""Run a program: one JSON case per line to its standard input, one JSON result per line from its standard output."""

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
"""The number of characters of the program's output that a message quotes."""


@dataclass(frozen=True)
class Answers:
    """The output of a program."""

    results: dict[str, dict[str, Any]]
    """By case name: the ``arrays`` by name, or the reason to ``skip`` the case."""
    problems: list[str]
    """What else went wrong: a crash, a timeout, or lines that are not results."""


def ask(command: str, cases: Iterable[Case], *, timeout: float = 60.0) -> Answers:
    """Send all cases to a program, without the expected arrays, and read its results.

    Parameters
    ----------
    command : str
        The program and its arguments, quoted as for a POSIX shell; it is run without a shell.
    cases : iterable of Case
    timeout : float, default 60
        The time limit for all cases, in seconds. The program is then stopped, and its results up to that point count.

    Returns
    -------
    Answers

    Raises
    ------
    ArgumentError
        If the command is not a string, is empty or has an unclosed quotation mark, if there is no such program, or if the
        timeout is not positive.
    """
    if finite_float("timeout", timeout) <= 0:
        raise ArgumentOutOfRangeError(f"timeout must be greater than 0, got {timeout}")
    if not isinstance(command, str):
        raise ArgumentError(f"command must be a string with a program and its arguments, got {command!r}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ArgumentError(f"command must be quoted as for a POSIX shell, got {command!r}: {error}") from None
    if not words:
        raise ArgumentError(f"command must name a program, got {command!r}")
    questions = [{key: case[key] for key in ("name", "kind", "settings", "arrays")} for case in cases]
    lines = "".join(json.dumps(case) + "\n" for case in questions)
    # With files instead of pipes no side blocks the other, whatever the program writes or leaves unread.
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(lines.encode())
        stdin.seek(0)
        problem = _run(words, timeout, stdin, stdout, stderr)
        problems = [] if problem is None else [problem + _last_line(stderr)]
        return _read(_text(stdout), {case["name"] for case in questions}, problems)


def _run(words: list[str], timeout: float, stdin: BinaryIO, stdout: BinaryIO, stderr: BinaryIO) -> str | None:
    """Run the program until it exits or times out, and return what went wrong, if anything."""
    try:
        process = subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)
    except OSError as error:
        raise ArgumentError(f"command must name an executable program, got {words[0]!r}: {error.strerror}") from None
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"the program did not exit within {timeout:g} s and was stopped"
    finally:
        _end(process)
    return f"the program exited with code {code}" if code else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """If the program still runs, stop it and the programs that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(stderr: BinaryIO) -> str:
    lines = _text(stderr).split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; last error output: {last[:SHOWN]}" if last else ""


def _read(text: str, names: set[str], problems: list[str]) -> Answers:
    answers = Answers({}, problems)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            result, fault = _result(line, names, answers.results)
            if fault:
                problems.append(f"output line {number} {fault}: {line.strip()[:SHOWN]}")
            else:
                answers.results[result["name"]] = result
    return answers


def _result(line: str, names: set[str], seen: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The result in a line, and what is wrong with the line (empty if nothing is)."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "is not JSON"
    if not isinstance(result, dict) or not isinstance(result.get("name"), str):
        return {}, "is not an object with a name"
    if result["name"] not in names:
        return {}, "does not name a case"
    if result["name"] in seen:
        return {}, "repeats the result of a case"
    if not isinstance(result.get("arrays"), dict) and not isinstance(result.get("skip"), str):
        return {}, 'has neither an object "arrays" nor a string "skip"'
    return result, ""
