"""Tries the mutants of an area: first in live functions, then, if none of the tests fails, from a clean import."""

import json
import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mutation.changes import Mutant, compiled
from mutation.forks import forked
from mutation.planting import Planter
from mutation.session import CAUGHT, SURVIVED, UNCLEAR, Area, Chosen

MEMORY = 8 << 30
"""Bytes that a mutant may take."""

IMPORTING = 30.0
"""Seconds that the import of a package and its tests may take."""


class Trial(NamedTuple):
    """What became of a mutant: whether the tests caught it, whether they took too long, and the number of tests."""

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


def first_trials(package: Path, tests: list[str], mutants: list[Mutant], seconds: float, limit: float) -> Iterator[tuple]:
    """The reports of an area's session, which runs in a copy of this process: this one has not imported the package."""
    reading, writing = os.pipe()

    def session() -> int:
        os.close(reading)
        quiet()

        def report(mutant: Mutant, *rest: object) -> None:
            os.write(writing, (json.dumps([mutants.index(mutant), *rest]) + "\n").encode())

        return run_pytest(tests, Area(package, mutants, seconds, limit, report))

    process = os.fork()
    if process == 0:
        os._exit(session())
    os.close(writing)
    with open(reading, encoding="utf-8") as lines:
        for line in lines:
            number, *rest = json.loads(line)
            yield mutants[number], *rest
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"the tests fail without a change: {' '.join(tests)}")


def from_import(package: Path, mutant: Mutant, names: list[str], limit: float) -> int | None:
    """The outcome of tests of a package that is imported with a mutant."""

    def session() -> int:
        quiet()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        Planter(compiled(package, mutant), package).install()
        run_pytest(sorted({name.partition("::")[0] for name in names}), Chosen(names))
        return CAUGHT  # the tests could not be collected

    return forked(session, limit)


def trials(
    package: Path, tests: list[str], mutants: list[Mutant], seconds: float = math.inf, limit: float = 10.0
) -> Iterator[Trial]:
    """Try the mutants of an area for `seconds`. A mutant may take five times as long as its tests, and `limit` more."""
    for mutant, code, names, longest in first_trials(package, tests, mutants, seconds, limit):
        if code in (SURVIVED, UNCLEAR) and names:
            code = from_import(package, mutant, names, longest + IMPORTING)
        yield Trial(mutant, code != SURVIVED and bool(names), code is None, len(names))
