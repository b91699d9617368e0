"""Fair timing: candidates take turns within one process, and only what was timed in the same round is compared."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

SHORTEST = 20_000
"""Nanoseconds that one sample lasts at least; faster calls are repeated within it."""

MOST_SAMPLES = 60

TOLERANCE = 1e-4
"""Of the largest element of an array: sums of a thousand float32 products, in any order, agree much better than this."""


class Candidate(NamedTuple):
    """Something to measure."""

    run: Callable[[], object]
    """What is timed."""
    answer: Callable[[], Mapping[str, Any]] | None = None
    """Arrays that every candidate of a case must agree on; None for a yardstick, which does other work."""
    scale: float = 1.0
    """By which the time is multiplied."""


@dataclass(frozen=True)
class Measure:
    """One number for each round: seconds or bytes."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratios_to(self, other: "Measure") -> list[float]:
        """Round by round: whatever slowed a whole round down falls out."""
        return [mine / its for mine, its in zip(self.rounds, other.rounds, strict=True)]

    def ratio_to(self, other: "Measure") -> float:
        return statistics.median(self.ratios_to(other))

    def spread_to(self, other: "Measure") -> float:
        """Half the distance between the quartiles of the ratios."""
        low, high = np.quantile(self.ratios_to(other), [0.25, 0.75])
        return float(high - low) / 2


class DisagreementError(AssertionError):
    """Candidates of one case do not compute the same."""


def check_agreement(case: str, candidates: Mapping[str, Candidate]) -> None:
    """Compare what the candidates compute, all with the first that answers.

    Raises
    ------
    DisagreementError
        Some array differs by more than `TOLERANCE`, is zero (nothing was computed) or is missing.
    """
    answers = {name: candidate.answer() for name, candidate in candidates.items() if candidate.answer is not None}
    if not answers:
        return
    first, expected = next(iter(answers.items()))
    for name, arrays in answers.items():
        if set(arrays) != set(expected):
            raise DisagreementError(f"{case}: {name} answers with {sorted(arrays)}, {first} with {sorted(expected)}")
        for what, array in arrays.items():
            mine, its = np.asarray(array), np.asarray(expected[what])
            if mine.shape != its.shape or mine.dtype != its.dtype:
                raise DisagreementError(
                    f"{case}: {what} is {mine.shape} {mine.dtype} of {name}, {its.shape} {its.dtype} of {first}"
                )
            size = float(np.abs(its).max())
            if not size > 0:
                raise DisagreementError(f"{case}: {what} of {first} is zero")
            error = float(np.abs(mine - its).max()) / size
            if not error <= TOLERANCE:
                raise DisagreementError(
                    f"{case}: {what} of {name} is off that of {first} by {error:.1e} of the largest element"
                )


def interleave(candidates: Mapping[str, Candidate], *, rounds: int, seconds: float) -> dict[str, Measure]:
    """Time the candidates in turn: in each round all of them, each round beginning with another one.

    Parameters
    ----------
    candidates : mapping
    rounds : int
    seconds : float
        About how long to spend on each candidate, over all rounds.
    """
    names = list(candidates)
    medians: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        plans = {name: _plan(candidates[name].run, seconds / rounds) for name in names}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                run, scale = candidates[name].run, candidates[name].scale
                run(), run()  # its data goes back into the cache
                medians[name].append(scale * statistics.median(_samples(run, *plans[name])) / 1e9)
            gc.collect()
    finally:
        gc.enable()
    return {name: Measure(tuple(values)) for name, values in medians.items()}


def _plan(run: Callable[[], object], seconds: float) -> tuple[int, int]:
    """Calls in a sample, and samples in a round."""
    run(), run()
    elapsed = max(1.0, min(_samples(run, 1, 3)))
    calls = max(1, round(SHORTEST / elapsed))
    return calls, int(np.clip(seconds * 1e9 / (elapsed * calls), 2, MOST_SAMPLES))


def _samples(run: Callable[[], object], calls: int, samples: int) -> Sequence[float]:
    clock, times = time.perf_counter_ns, []
    for _ in range(samples):
        start = clock()
        for _ in range(calls):
            run()
        times.append((clock() - start) / calls)
    return times
