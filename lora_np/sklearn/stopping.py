"""Early stopping as in scikit-learn: on held-out samples, or on the training loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from .._typing import Generator
from .._validation import finite_float
from ..errors import ArgumentOutOfRangeError
from .objectives import Classes, Samples


class Stopping(NamedTuple):
    """When the training of adapters ends."""

    patience: int | None = None
    tolerance: float = 0.0
    held_out: Samples | None = None
    """The samples whose loss decides; by default, the training loss decides."""

    def of_fit(self) -> dict[str, Any]:
        """The arguments of `lora_np.fit`."""
        held_out = self.held_out
        data = None if held_out is None else (held_out.X, held_out.targets, held_out.tasks, held_out.weights)
        return {"validation": data, "patience": self.patience, "tolerance": self.tolerance}


def held_out_fraction(value: Any) -> float:
    """The checked fraction of samples to hold out."""
    fraction = finite_float("validation_fraction", value)
    if not 0 < fraction < 1:
        raise ArgumentOutOfRangeError(f"validation_fraction must be between 0 and 1, got {fraction}")
    return fraction


def split(samples: Samples, fraction: float, rng: Generator) -> tuple[Samples, Samples]:
    """The samples to train on, and those to hold out, which have the same shares of classes and tasks."""
    rows = np.arange(len(samples.X))
    groups = [None if samples.tasks is None else np.array(samples.tasks)]
    groups += [samples.targets if isinstance(samples.objective, Classes) else None]
    present = [np.unique(group, return_inverse=True)[1] for group in groups if group is not None]
    strata = np.unique(present, axis=1, return_inverse=True)[1].reshape(-1) if present else None
    parts = train_test_split(rows, test_size=fraction, stratify=strata, random_state=int(rng.integers(2**31)))
    return _rows(samples, parts[0]), _rows(samples, parts[1])


def _rows(samples: Samples, rows: Any) -> Samples:
    tasks = None if samples.tasks is None else tuple(samples.tasks[row] for row in rows)
    weights = None if samples.weights is None else samples.weights[rows]
    return replace(samples, X=samples.X[rows], y=samples.y[rows], tasks=tasks, weights=weights)
