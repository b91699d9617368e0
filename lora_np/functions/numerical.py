"""Numerical derivatives of a scalar function of an array, one element at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from .._typing import Array
from .._validation import one_of

COMPLEX_STEP = 1e-30
CENTRAL_STEP = 6e-6  # about the cube root of the float64 precision, where truncation and rounding errors balance


def numerical_gradient(
    function: Callable[[Array], Any],
    point: Array,
    *,
    method: Literal["complex", "central"] = "complex",
) -> Array:
    """The gradient of a scalar function at a point, computed numerically.

    Parameters
    ----------
    function : callable
        Takes an array with the shape of `point` and returns a scalar. For ``"complex"`` it must be analytic: no ``abs``,
        no comparison of complex numbers, no conjugation.
    point : array, any shape
        Where to differentiate. It is not modified.
    method : {"complex", "central"}
        ``"complex"``: Im f(x + ih) / h with h = 1e-30, exact up to rounding because nothing is subtracted (Squire and
        Trapp 1998). ``"central"``: (f(x + h) - f(x - h)) / 2h, for any smooth function, accurate to about 9 digits.

    Returns
    -------
    array, float64, the shape of `point`

    Raises
    ------
    ArgumentError
        If `method` is neither of the two.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.testing import numerical_gradient
    >>> numerical_gradient(lambda x: (x**3).sum(), np.array([1.0, 2.0]))
    array([ 3., 12.])
    """
    one_of("method", method, ("complex", "central"))
    gradient = np.empty(np.shape(point))
    moved: Any = np.array(point, dtype=complex if method == "complex" else float)
    for index in np.ndindex(moved.shape):
        kept = moved[index]
        if method == "complex":
            moved[index] = kept + 1j * COMPLEX_STEP
            gradient[index] = np.imag(function(moved)) / COMPLEX_STEP
        else:
            step = CENTRAL_STEP * max(1.0, float(abs(kept)))
            moved[index] = kept + step
            above = function(moved)
            moved[index] = kept - step
            gradient[index] = (above - function(moved)) / (2 * step)
        moved[index] = kept
    return gradient
