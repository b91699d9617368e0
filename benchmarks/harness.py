"""Fair timing: candidates take turns within one process, and only times from the same round are compared."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

SHORTEST = 20_000
"""The minimum duration of a sample in nanoseconds; faster calls are repeated within it."""

MOST_SAMPLES = 60

TOLERANCE = 1e-4
"""Relative to the largest element of an array. Sums of a thousand float32 products in any order agree much better."""


class Candidate(NamedTuple):
    """Something to measure."""

    run: Callable[[], object]
    """The call to time."""
    answer: Callable[[], Mapping[str, Any]] | None = None
    """Returns arrays on which all candidates of a case must agree; None for a yardstick, which does different work."""
    scale: float = 1.0
    """A factor for the measured time."""


@dataclass(frozen=True)
class Measure:
    """One number per round: seconds or bytes."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratios_to(self, other: "Measure") -> list[float]:
        """The ratio of each round, in which the speed of the machine during that round cancels out."""
        return [mine / its for mine, its in zip(self.rounds, other.rounds, strict=True)]

    def ratio_to(self, other: "Measure") -> float:
        return statistics.median(self.ratios_to(other))

    def spread_to(self, other: "Measure") -> float:
        """Half the interquartile range of the ratios."""
        low, high = np.quantile(self.ratios_to(other), [0.25, 0.75])
        return float(high - low) / 2


class DisagreementError(AssertionError):
    """Candidates of the same case compute different results."""


def check_agreement(case: str, candidates: Mapping[str, Candidate]) -> None:
    """Compare the results of all candidates with those of the first one that has any.

    Raises
    ------
    DisagreementError
        If an array is missing, is zero (nothing was computed), or differs by more than `TOLERANCE`.
    """
    answers = {name: candidate.answer() for name, candidate in candidates.items() if candidate.answer is not None}
    if not answers:
        return
    first, expected = next(iter(answers.items()))
    for name, arrays in answers.items():
        if set(arrays) != set(expected):
            raise DisagreementError(f"{case}: {name} returns {sorted(arrays)}, {first} returns {sorted(expected)}")
        for what, array in arrays.items():
            mine, its = np.asarray(array), np.asarray(expected[what])
            if mine.shape != its.shape or mine.dtype != its.dtype:
                raise DisagreementError(
                    f"{case}: {what} of {name} has {mine.shape} {mine.dtype}, {what} of {first} has {its.shape} {its.dtype}"
                )
            size = float(np.abs(its).max())
            if not size > 0:
                raise DisagreementError(f"{case}: {what} of {first} is zero")
            error = float(np.abs(mine - its).max()) / size
            if not error <= TOLERANCE:
                raise DisagreementError(
                    f"{case}: {what} of {name} differs from that of {first} by {error:.1e} of the largest element"
                )


Clock = Literal["cpu", "wall"]
CLOCKS = {"cpu": time.process_time_ns, "wall": time.perf_counter_ns}
"""Processor time is hardly disturbed by other processes; wall time is what users wait for on an idle machine."""


def interleave(
    candidates: Mapping[str, Candidate], *, rounds: int, seconds: float, clock: Clock = "cpu"
) -> dict[str, Measure]:
    """Time the candidates in turn: every round runs all of them, each time starting with a different one.

    Parameters
    ----------
    candidates : mapping
    rounds : int
    seconds : float
        The approximate time per candidate, over all rounds.
    """
    names = list(candidates)
    medians: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        read = CLOCKS[clock]
        plans = {name: _plan(candidates[name].run, seconds / rounds, read) for name in names}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                run, scale = candidates[name].run, candidates[name].scale
                run(), run()  # brings its data back into the cache
                medians[name].append(scale * statistics.median(_samples(run, *plans[name], read)) / 1e9)
            gc.collect()
    finally:
        gc.enable()
    return {name: Measure(tuple(values)) for name, values in medians.items()}


def _plan(run: Callable[[], object], seconds: float, clock: Callable[[], int]) -> tuple[int, int]:
    """The number of calls per sample, and of samples per round."""
    run(), run()
    elapsed = max(1.0, min(_samples(run, 1, 3, clock)))
    calls = max(1, round(SHORTEST / elapsed))
    return calls, int(np.clip(seconds * 1e9 / (elapsed * calls), 2, MOST_SAMPLES))


def _samples(run: Callable[[], object], calls: int, samples: int, clock: Callable[[], int]) -> Sequence[float]:
    times = []
    for _ in range(samples):
        start = clock()
        for _ in range(calls):
            run()
        times.append((clock() - start) / calls)
    return times
