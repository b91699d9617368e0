"""Check a program against all cases."""

from collections.abc import Sequence
from dataclasses import dataclass

from .._validation import non_negative_float
from .comparison import TOLERANCE, Verdict, compare
from .program import ask
from .vectors import Case, load_vectors


@dataclass(frozen=True)
class Report:
    """The results of checking a program."""

    verdicts: tuple[Verdict, ...]
    """One for each case, in the order of the cases."""
    problems: tuple[str, ...]
    """What went wrong apart from the cases; see `Answers.problems`."""

    def count(self, result: str) -> int:
        """The number of cases with this result."""
        return sum(verdict.result == result for verdict in self.verdicts)

    @property
    def ok(self) -> bool:
        """Whether there was no problem, no case failed, and at least one case passed."""
        return not self.problems and not self.count("FAIL") and self.count("pass") > 0


def check_program(
    command: str, cases: Sequence[Case] | None = None, *, tolerance: float = TOLERANCE, timeout: float = 60.0
) -> Report:
    """Run a program on all cases and compare its results with the expected arrays.

    Parameters
    ----------
    command : str
        The program and its arguments; see `ask`.
    cases : sequence of Case, optional
        All cases of `load_vectors` if left out.
    tolerance : float, default 1e-12
        The largest relative error that passes.
    timeout : float, default 60
        The time limit for all cases, in seconds.

    Returns
    -------
    Report

    Raises
    ------
    ArgumentError
        If the command does not name a program, if the timeout is not positive, or if the tolerance is negative.
    """
    tolerance = non_negative_float("tolerance", tolerance)
    cases = load_vectors() if cases is None else cases
    answers = ask(command, cases, timeout=timeout)
    verdicts = [compare(case, answers.results.get(case["name"]), tolerance=tolerance) for case in cases]
    return Report(tuple(verdicts), tuple(answers.problems))
