"""A warning for features that should have been scaled."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .._typing import Array
from .sparse import SparseRows

LARGEST = 1000.0
"""The root mean square of a feature above which training with the usual learning rates is unlikely to converge."""


def warn_unless_scaled(X: Array | SparseRows) -> None:
    """Warn if a feature is so large that training may not converge."""
    with np.errstate(over="ignore"):
        squares = X.matrix.multiply(X.matrix) if isinstance(X, SparseRows) else np.square(X)
        sizes = np.sqrt(np.asarray(squares.mean(axis=0, dtype=np.float64)).ravel())
    largest = int(sizes.argmax())
    if sizes[largest] > LARGEST:
        message = f"the root mean square of feature {largest} of X is {sizes[largest]:.3g}: training may not converge. "
        warnings.warn(message + "Scale the features, for example with StandardScaler", ConvergenceWarning, stacklevel=4)
