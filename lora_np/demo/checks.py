"""Checks that must pass regardless of how well the models are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .merging import MergeResult
from .tasks import SharingResult

ROUNDING = 1e-9
"""The largest difference of a logit that float64 rounding may cause when sums are formed in a different order."""


@dataclass(frozen=True)
class Check:
    """A measured value and its upper limit."""

    what: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the value is within the limit; False for NaN."""
        return self.value <= self.limit


def all_checks(sharing: SharingResult, merging: Sequence[MergeResult], reloaded: Mapping[str, float]) -> list[Check]:
    """Every check; `reloaded` holds the largest difference of an output for each file saved and loaded again."""
    return [
        *(Check(f"{task.task}: bytes changed by later tasks", task.changed_bytes, 0) for task in sharing.tasks),
        *(Check(f"{task.task}: output change due to later tasks", task.changed_output, 0) for task in sharing.tasks),
        Check("mixed batch vs. one pass per task", sharing.mixed_difference, ROUNDING),
        Check("merged vs. unmerged", max(result.difference for result in merging), ROUNDING),
        *(Check(f"{name}: reloaded vs. saved", difference, 0) for name, difference in reloaded.items()),
    ]
