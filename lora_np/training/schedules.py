"""Schedules of the learning rate: functions of the progress of a training run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, final

from .._validation import fraction, function, non_negative_float
from ..errors import ArgumentError
from .optimizers import Optimizer

Schedule: TypeAlias = Callable[[float], float]
"""Returns the factor of the learning rate, at least 0, given the fraction of the steps that are done, from 0 to below 1."""


@dataclass(frozen=True)
class _WarmUp(ABC):
    """A linear rise from 0 to 1 over the fraction `warmup` of the steps, then the part that a subclass adds."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "warmup", fraction("warmup", self.warmup))

    def __call__(self, progress: float) -> float:
        """The factor of the learning rate."""
        if progress < self.warmup:
            return progress / self.warmup
        return self._after((progress - self.warmup) / (1 - self.warmup))

    @abstractmethod
    def _after(self, u: float) -> float:
        """The factor after the warm-up, given the fraction u of the remaining steps that are done."""


@dataclass(frozen=True)
class _Decay(_WarmUp):
    """A warm-up, then a fall from 1 to `end`."""

    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "end", non_negative_float("end", self.end))


@final
@dataclass(frozen=True)
class Constant(_WarmUp):
    """A warm-up, then the full learning rate.

    Parameters
    ----------
    warmup : float, default 0
        The fraction of the steps, in [0, 1), during which the factor rises linearly from 0 to 1 (Goyal et al. 2017).

    Examples
    --------
    >>> schedule = Constant(warmup=0.5)
    >>> [schedule(progress) for progress in (0, 0.25, 0.5, 0.75)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def _after(self, u: float) -> float:
        return 1.0


@final
@dataclass(frozen=True)
class LinearDecay(_Decay):
    """A warm-up, then a linear decay: ``end + (1 - end) (1 - u)``, with u from 0 to 1 after the warm-up.

    Parameters
    ----------
    warmup : float, default 0
        As in `Constant`.
    end : float, default 0
        The factor at the end, at least 0.

    Examples
    --------
    >>> [LinearDecay()(progress) for progress in (0, 0.25, 0.5, 0.75)]
    [1.0, 0.75, 0.5, 0.25]
    """

    def _after(self, u: float) -> float:
        return self.end + (1 - self.end) * (1 - u)


@final
@dataclass(frozen=True)
class CosineDecay(_Decay):
    """A warm-up, then half a cosine: ``end + (1 - end) (1 + cos πu) / 2`` (Loshchilov and Hutter 2017, eq. 5).

    Parameters
    ----------
    warmup : float, default 0
        As in `Constant`.
    end : float, default 0
        The factor at the end, at least 0.

    Examples
    --------
    >>> [round(CosineDecay()(progress), 3) for progress in (0, 0.25, 0.5, 0.75)]
    [1.0, 0.854, 0.5, 0.146]
    """

    def _after(self, u: float) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * u)) / 2


def factors_of(schedule: Schedule | None, steps: int) -> tuple[float, ...] | None:
    """The factor of each step, all checked; None without a schedule."""
    if schedule is None:
        return None
    function("schedule", schedule)
    return tuple(_checked(schedule(step / steps), step / steps) for step in range(steps))


def _checked(factor: float, progress: float) -> float:
    try:
        return non_negative_float("factor", factor)
    except ArgumentError as error:
        raise ArgumentError(f"schedule must return a factor of the learning rate at {progress:g}: {error}") from None


@contextmanager
def scheduled(optimizer: Optimizer, factors: tuple[float, ...] | None) -> Iterator[Callable[[int], None]]:
    """Context manager: a function that sets the learning rate of a step, counted from 0; restores the rate at the end."""
    rate = optimizer.learning_rate

    def set_rate(step: int) -> None:
        if factors is not None:
            optimizer.learning_rate = rate * factors[step]

    try:
        yield set_rate
    finally:
        if factors is not None:
            optimizer.learning_rate = rate
