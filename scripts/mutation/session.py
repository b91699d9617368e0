"""pytest plugins: one measures which tests reach which line and tries mutants in copies; one runs chosen tests in order."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import coverage
import pytest

from mutation.changes import Mutant, compiled
from mutation.forks import forked, set_alarm
from mutation.planting import replace_in_functions

SURVIVED, CAUGHT, UNCLEAR = 0, 1, 2
"""The outcomes of a trial; UNCLEAR: it must be tried before the import."""

SLOWER = 10
"""A test may take so many times as long as without a change, and the limit of the trial more."""


class Runner:
    """Runs tests with an alarm for each, by the seconds that they take without a change."""

    def __init__(self, seconds: dict[str, float], limit: float) -> None:
        self.failed, self.seconds, self.limit = False, seconds, limit

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def failures(self, items: list[pytest.Item]) -> Iterator[str]:
        """The names of the tests that fail."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            set_alarm(self.limit + SLOWER * self.seconds[item.nodeid])
            self.failed = False
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                yield item.nodeid

    def outcome(self, items: list[pytest.Item]) -> int:
        return CAUGHT if any(self.failures(items)) else SURVIVED


class Chosen(Runner):
    """Runs only the chosen tests, in the given order. Tests whose names change from run to run are left out."""

    def __init__(self, seconds: dict[str, float], limit: float, names: list[str]) -> None:
        super().__init__(seconds, limit)
        self.names = names

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        chosen = [items[name] for name in self.names if name in items]
        os._exit(CAUGHT if session.testsfailed else self.outcome(chosen))  # some could not be collected


class Area(Runner):
    """Measures all collected tests, then tries each mutant and reports the outcome and the seconds of its tests.

    The first report are the tests that fail in a copy of the process without a change: they judge nothing.
    """

    def __init__(
        self, package: Path, mutants: list[Mutant], time: float, limit: float, report: Callable[..., None]
    ) -> None:
        super().__init__({}, limit)
        self.package, self.mutants, self.time, self.report = package, mutants, time, report

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        reached = self.measure(session.items)
        if self.failed:
            raise session.Failed("the tests fail without a change")
        items = {item.nodeid: item for item in session.items}
        self.leave_out_unsteady(sorted(session.items, key=lambda item: self.seconds[item.nodeid]))
        deadline = time.monotonic() + self.time
        for mutant in self.mutants:
            if time.monotonic() > deadline:
                break
            names = self.tests(mutant, reached.get(mutant.file, {}))
            outcome = self.trial(mutant, [items[name] for name in names])
            self.report(outcome, {name: self.seconds[name] for name in names})
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

    def leave_out_unsteady(self, items: list[pytest.Item]) -> None:
        """Run all tests in a copy, and leave out those that fail there."""
        reading, writing = os.pipe()

        def control() -> int:
            for name in self.failures(items):
                os.write(writing, f"{name}\n".encode())
            return 0

        code = forked(control)
        os.close(writing)
        with open(reading, encoding="utf-8") as lines:
            unsteady = [line.removesuffix("\n") for line in lines]
        if code:
            raise RuntimeError("the tests do not end in a copy of the process without a change")
        for name in unsteady:
            del self.seconds[name]
        self.report(unsteady)

    def tests(self, mutant: Mutant, reached: dict[int, list[str]]) -> list[str]:
        """The tests that reach a mutant, the fastest first; all tests for one that acts at import.

        A mutant that no test reaches may act there too, in a function that is called while the module is imported.
        """
        names = {name for line in mutant.lines for name in reached.get(line, []) if name in self.seconds}
        if names and not mutant.at_import:
            return sorted(names, key=self.seconds.__getitem__)
        names = {name for line in reached.values() for name in line}
        return sorted(self.seconds, key=lambda name: (name not in names, self.seconds[name]))

    def trial(self, mutant: Mutant, items: list[pytest.Item]) -> int:
        if mutant.at_import:
            return UNCLEAR
        code = compiled(self.package, mutant)
        return forked(lambda: self.outcome(items) if replace_in_functions(code, self.package) else UNCLEAR)
