"""`product_svd`: the singular value decomposition of a product of thin factors, without forming the product."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._typing import Array
from ..errors import ArgumentError


class SVD(NamedTuple):
    """``U diag(sigma) Vt``."""

    U: Array
    """Orthonormal columns, shape (in, k)."""
    sigma: Array
    """The singular values, in descending order, shape (k,)."""
    Vt: Array
    """Orthonormal rows, shape (k, out)."""


def product_svd(A: Array, B: Array, scaling: float = 1.0) -> SVD:
    """The SVD of ``s A B``, with k = min(in, r, out).

    With ``A = Q_a R_a`` and ``Bᵀ = Q_b R_b``, the core ``s R_a R_bᵀ = U Σ Vᵀ`` has the singular values of the product,
    whose singular vectors are ``Q_a U`` and ``Q_b V``.

    Parameters
    ----------
    A : array, shape (in, r)
    B : array, shape (r, out)
    scaling : float, default 1

    Raises
    ------
    ArgumentError
        If the core is not finite.
    """
    Qa, Ra = np.linalg.qr(A)  # (in, r) -> (in, k_a), (k_a, r)
    Qb, Rb = np.linalg.qr(B.T)  # (out, r) -> (out, k_b), (k_b, r)
    with np.errstate(over="ignore", invalid="ignore"):
        core = scaling * (Ra @ Rb.T)  # (k_a, r) @ (r, k_b) -> (k_a, k_b)
    if not np.isfinite(core).all():  # otherwise LAPACK may never return
        raise ArgumentError("the factors must be finite, and so must their product")
    U, sigma, Vt = np.linalg.svd(core, full_matrices=False)
    return SVD(Qa @ U, sigma, Vt @ Qb.T)
