"""pytest plugins: one measures which tests reach which line and tries mutants in copies; one runs chosen tests in order."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import coverage
import pytest

from mutation.changes import Mutant, compiled
from mutation.forks import forked
from mutation.planting import replace_in_functions

SURVIVED, CAUGHT, UNCLEAR = 0, 1, 2
"""The outcomes of a trial; UNCLEAR: it must be tried before the import."""


class Runner:
    """Runs tests until one fails."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def outcome(self, items: list[pytest.Item]) -> int:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return CAUGHT
        return SURVIVED


class Chosen(Runner):
    """Runs only the chosen tests, in the given order."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        os._exit(self.outcome([items[name] for name in self.names]))


class Area(Runner):
    """Measures all collected tests, then tries each mutant and reports the outcome, its tests, and their seconds."""

    def __init__(
        self, package: Path, mutants: list[Mutant], seconds: float, limit: float, report: Callable[..., None]
    ) -> None:
        super().__init__()
        self.package, self.mutants, self.budget, self.limit, self.report = package, mutants, seconds, limit, report
        self.seconds: dict[str, float] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        reached = self.measure(session.items)
        if self.failed:
            raise session.Failed("the tests fail without a change")
        items = {item.nodeid: item for item in session.items}
        deadline = time.monotonic() + self.budget
        for mutant in self.mutants:
            if time.monotonic() > deadline:
                break
            names = self.tests(mutant, reached.get(mutant.file, {}))
            limit = self.limit + 5 * sum(self.seconds[name] for name in names)
            code = self.trial(mutant, [items[name] for name in names], limit)
            self.report(mutant, code, names, limit)
        return True

    def measure(self, items: list[pytest.Item]) -> dict[str, dict[int, list[str]]]:
        """Run all tests, and find for each file and line the tests that reach it."""
        measured = coverage.Coverage(data_file=None, source=[str(self.package)], config_file=False, messages=False)
        measured.start()
        for item in items:
            measured.switch_context(item.nodeid)
            begin = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            self.seconds[item.nodeid] = time.monotonic() - begin
        measured.stop()
        data = measured.get_data()
        names = {file: Path(file).relative_to(self.package).as_posix() for file in data.measured_files()}
        return {name: data.contexts_by_lineno(file) for file, name in names.items()}

    def tests(self, mutant: Mutant, reached: dict[int, list[str]]) -> list[str]:
        """The tests that reach a mutant, the fastest first; all tests for one that acts at import."""
        lines = reached if mutant.at_import else mutant.lines
        names = {name for line in lines for name in reached.get(line, []) if name in self.seconds}
        judges = self.seconds if mutant.at_import else names
        return sorted(judges, key=lambda name: (name not in names, self.seconds[name]))

    def trial(self, mutant: Mutant, items: list[pytest.Item], limit: float) -> int | None:
        if mutant.at_import:
            return UNCLEAR
        code = compiled(self.package, mutant)
        return forked(lambda: self.outcome(items) if replace_in_functions(code, self.package) else UNCLEAR, limit)
