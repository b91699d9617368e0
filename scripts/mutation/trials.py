"""Tries the mutants of an area: first in live functions, then, if none of the tests fails, from a clean import."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mutation.changes import Mutant, compiled
from mutation.forks import TOO_LONG, forked, set_alarm
from mutation.planting import Planter
from mutation.session import CAUGHT, SURVIVED, UNCLEAR, Area, Chosen

IMPORTING = 60.0
"""Seconds that the import of a package and its tests may take."""


class Trial(NamedTuple):
    """What became of a mutant: whether the tests caught it, whether one took too long, and the number of tests."""

    mutant: Mutant
    caught: bool
    too_long: bool
    tests: int


def quiet() -> None:
    """Send the output of this process nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def run_pytest(tests: list[str], plugin: object) -> int:
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--tb=no", *tests], plugins=[plugin]))


def first_reports(package: Path, tests: list[str], mutants: list[Mutant], time: float, limit: float) -> Iterator[list]:
    """The reports of an area's session, which runs in a copy of this process: this one has not imported the package."""
    reading, writing = os.pipe()

    def session() -> int:
        os.close(reading)
        quiet()

        def report(*values: object) -> None:
            os.write(writing, (json.dumps(values) + "\n").encode())

        return run_pytest(tests, Area(package, mutants, time, limit, report))

    process = os.fork()
    if process == 0:
        os._exit(session())
    os.close(writing)
    with open(reading, encoding="utf-8") as lines:
        yield from map(json.loads, lines)
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"the tests fail without a change: {' '.join(tests)}")


def from_import(package: Path, mutant: Mutant | None, seconds: dict[str, float], limit: float) -> int:
    """The outcome of tests of a package that is imported with a mutant."""

    def session() -> int:
        quiet()
        set_alarm(IMPORTING)
        if mutant:
            Planter(compiled(package, mutant), package).install()
        run_pytest(sorted({name.partition("::")[0] for name in seconds}), Chosen(seconds, limit, list(seconds)))
        return CAUGHT  # the tests could not be collected

    return forked(session)


def trials(
    package: Path, tests: list[str], mutants: list[Mutant], time: float = math.inf, limit: float = 10.0
) -> Iterator[Trial]:
    """Try the mutants of an area for `time` seconds; `limit` is what a test may take beyond `SLOWER` times its time."""
    reports = first_reports(package, tests, mutants, time, limit)
    [unsteady] = next(reports)
    if unsteady:
        print(f"{len(unsteady)} tests fail when they are repeated, and judge nothing:", *unsteady, file=sys.stderr)
    controls: dict[frozenset[str], int] = {}
    for (outcome, seconds), mutant in zip(reports, mutants, strict=False):
        if outcome in (SURVIVED, UNCLEAR) and seconds:
            outcome = from_import(package, mutant, seconds, limit)
            names = frozenset(seconds)
            if outcome == CAUGHT and names not in controls:
                controls[names] = from_import(package, None, seconds, limit)
            if outcome == CAUGHT and controls[names] != SURVIVED:
                sys.exit(f"of {len(names)} tests, some fail in a clean import without a change: {next(iter(seconds))}, ...")
        yield Trial(mutant, bool(seconds) and outcome != SURVIVED, outcome == TOO_LONG, len(seconds))
