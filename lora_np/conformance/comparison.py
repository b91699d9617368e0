"""Compare a result with the expected arrays of its case."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._typing import Array
from .._validation import real_array, same_shape
from ..errors import ArgumentError
from .vectors import Case

TOLERANCE = 1e-12
"""The largest relative error that passes."""

ZERO = 1e-12
"""If no expected element is larger in magnitude, the error is absolute instead of relative."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one case."""

    case: str
    result: Literal["pass", "FAIL", "skip"]
    detail: str
    """The array with the largest error, or the reason why no error was measured."""
    error: float | None = None
    """The largest error; infinite if an array contains NaN or infinity."""


def compare(case: Case, result: dict[str, Any] | None, *, tolerance: float = TOLERANCE) -> Verdict:
    """Compare one result with its case.

    Parameters
    ----------
    case : Case
    result : dict or None
        The program's ``arrays`` or ``skip``; None if it did not answer.
    tolerance : float, default 1e-12
        The largest error that passes; see `relative_error`.

    Returns
    -------
    Verdict
    """
    name = case["name"]
    if result is None:
        return Verdict(name, "FAIL", "no answer")
    if "skip" in result:
        return Verdict(name, "skip", str(result["skip"]))
    try:
        errors = {array: _error(array, result["arrays"], np.array(values)) for array, values in case["expected"].items()}
    except ArgumentError as error:
        return Verdict(name, "FAIL", str(error))
    worst = max(errors, key=lambda array: errors[array])
    return Verdict(name, "pass" if errors[worst] <= tolerance else "FAIL", worst, errors[worst])


def _error(name: str, arrays: dict[str, Any], expected: Array) -> float:
    if name not in arrays:
        raise ArgumentError(f"{name} is missing")
    found = real_array(name, arrays[name], np.float64)
    same_shape(name, found, expected.shape)
    return relative_error(found, expected)


def relative_error(found: Array, expected: Array) -> float:
    """``max |found - expected| / max |expected|``, without the division if ``max |expected|`` is at most 1e-12.

    Parameters
    ----------
    found, expected : arrays of the same shape

    Returns
    -------
    float
        Infinite if an element of `found` is NaN or infinite.
    """
    if not np.isfinite(found).all():
        return math.inf
    largest = float(np.abs(expected).max())
    return float(np.abs(found - expected).max()) / (largest if largest > ZERO else 1.0)
