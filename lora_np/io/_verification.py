"""Comparing a merged file with the results in float64, and with the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..errors import FormatError
from ._checkpoint import Checkpoint
from ._merging import WINDOW, Merge, Step
from ._pieces import PIECE, rows_within, windows
from .safetensors import SafetensorsFile, decoded


def errors(
    merge: Merge, steps: Mapping[str, Step], base: Checkpoint, old: SafetensorsFile, new: SafetensorsFile
) -> Iterator[tuple[str, float]]:
    """The merged tensors of a file and their errors; all other tensors must equal those of the base."""
    for key in dict.fromkeys([*old, *steps]):
        if key not in new or new.info(key) != (steps[key].info if key in steps else old.info(key)):
            raise FormatError(f"{new.path}: {key} is missing, or its dtype or shape differs from the base")
        if key in steps:
            yield key, _error(merge, base, steps[key], new)
        elif not _equal(old, new, key):
            raise FormatError(f"{new.path}: {key} differs from the base, but the adapter does not change it")
    for key in new:
        if key not in old and key not in steps:
            raise FormatError(f"{new.path}: {key} is not in the base")


def _equal(old: SafetensorsFile, new: SafetensorsFile, key: str) -> bool:
    return all(
        np.array_equal(old.raw(key, start, stop), new.raw(key, start, stop))
        for start, stop in windows(old.info(key).size, WINDOW)
    )


@np.errstate(invalid="ignore")  # signalling NaNs
def _error(merge: Merge, old: Checkpoint, step: Step, new: SafetensorsFile) -> float:
    rows, columns = step.rows_and_columns
    merged = merge.rows(old, step, np.float64)
    largest = difference = 0.0
    for start, stop in windows(rows, rows_within(PIECE, columns)):
        stored, dtype = merge.before(old, step, start, stop)
        before = decoded(stored, dtype).astype(np.float64)
        after = decoded(new.raw(step.key, start * columns, stop * columns), step.info.dtype).reshape(-1, columns)
        after, expected = after.astype(np.float64), before if merged is None else merged(before, start)
        for values in (before, expected):  # if the terms cancel, the rounding error is that of the terms
            largest = max(largest, float(np.abs(values[np.isfinite(values)]).max(initial=0)))
        wrong = ~((after == expected) | (np.isnan(after) & np.isnan(expected)))
        gaps = np.abs(after[wrong] - expected[wrong])
        difference = max(difference, float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0)))
    return difference / largest if largest else difference
