"""Ranks that do not depend on the number of samples."""

from __future__ import annotations

from dataclasses import replace

from .._typing import Generator
from ..training.nested_dropout import RankSchedule
from ..training.sorted_start import SortedStart


def drawn_from(own: Generator, schedule: RankSchedule | SortedStart) -> RankSchedule | SortedStart:
    """A rank schedule with a separate generator, because what the order of samples draws depends on their number."""
    if isinstance(schedule, SortedStart):
        return replace(schedule, then=_drawn_from(own, schedule.then))
    return _drawn_from(own, schedule)


def _drawn_from(own: Generator, schedule: RankSchedule) -> RankSchedule:
    return lambda adapters, _, rows: schedule(adapters, own, rows)
