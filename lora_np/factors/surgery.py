"""Rank surgery: truncate, grow and canonicalize low-rank layers, without forming the dense matrix.

The functions accept a `LoRALayer`, an adapter or `AdapterWeights`, and return a new object of the same kind.

Notes
-----
With thin QR factorisations ``A = Q_a R_a`` and ``Bᵀ = Q_b R_b``, the update is ``s A B = Q_a (s R_a R_bᵀ) Q_bᵀ``. Its
singular values are those of the small core ``s R_a R_bᵀ = U Σ Vᵀ``, and its singular vectors are ``Q_a U`` and ``Q_b V``:
the cost is O((d_in + d_out) r²), instead of O(d_in · d_out · min(d_in, d_out)) for decomposing the dense update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from .._typing import RNG, Array
from .._validation import finite_float, generator, positive_int, rank_within
from ..adapters.base import LoRAAdapterBase
from ..adapters.dylora import DyLoRAAdapter
from ..errors import ArgumentError, NotSupportedError
from ..functions.initializers import normal
from ..layers.lora import LoRALayer
from .weights import AdapterWeights

Subject = TypeVar("Subject", LoRALayer, LoRAAdapterBase, AdapterWeights)


def spectrum(layer: LoRALayer) -> Array:
    """The singular values of ``s A B``, in descending order, shape (min(rank, input_size, output_size),)."""
    return _decomposed(layer)[1]


def effective_rank(singular_values: Array) -> float:
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 for a zero matrix."""
    total = float(singular_values.sum())
    if not total:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def retained_energy(singular_values: Array, rank: int) -> float:
    """The fraction of the squared Frobenius norm in the first `rank` components; 1 for a zero matrix."""
    total = float((singular_values**2).sum())
    return float((singular_values[:rank] ** 2).sum()) / total if total else 1.0


def truncate(subject: Subject, *, rank: int | None = None, energy: float | None = None) -> Subject:
    """Replace each low-rank layer by its best approximation of a lower rank (Eckart and Young 1936).

    Parameters
    ----------
    subject : LoRALayer, adapter or AdapterWeights
    rank : int, optional
        The new rank, at least 1; layers of this rank or below keep their rank.
    energy : float, optional
        The fraction of the squared Frobenius norm to keep, in (0, 1], instead of a rank. Each layer gets the smallest rank
        that keeps this fraction.

    Raises
    ------
    ArgumentError
        If not exactly one of `rank` and `energy` is given, or its value is out of range.
    """
    if (rank is None) == (energy is None):
        raise ArgumentError(f"exactly one of rank and energy must be given, got rank={rank!r}, energy={energy!r}")
    if rank is not None:
        limit = positive_int("rank", rank)
        return _mapped(subject, lambda layer: _cut(layer, min(limit, layer.rank)))
    share = finite_float("energy", energy)
    if not 0 < share <= 1:
        raise ArgumentError(f"energy must lie in (0, 1], got {share}")
    return _mapped(subject, lambda layer: _cut(layer, _rank_for(spectrum(layer), share)))


def grow(subject: Subject, rank: int, *, rng: RNG = None) -> Subject:
    """Add components without changing the function: the new columns of A are random, the new rows of B are zero.

    Parameters
    ----------
    subject : LoRALayer, adapter or AdapterWeights
    rank : int
        The new rank, in 1..min(input_size, output_size); layers of this rank or above are copied unchanged.
    rng : seed or numpy.random.Generator, optional
        The source of the new columns of A, drawn from N(0, 1/rank).

    Raises
    ------
    ArgumentError
        If `rank` is out of range.
    NotSupportedError
        If `subject` is a DyLoRAAdapter whose scaling depends on the rank.
    """
    random = generator(rng)
    target = positive_int("rank", rank)
    if isinstance(subject, DyLoRAAdapter) and subject.lora_layer.scaling_rule != "max":
        raise NotSupportedError(
            "a DyLoRAAdapter can only grow with scaling='max': under the other rules, its scaling depends on the rank"
        )

    def grown(layer: LoRALayer) -> LoRALayer:
        if layer.rank >= target:
            return layer.clone()
        rank_within(target, layer.input_size, layer.output_size)
        more = target - layer.rank
        columns = normal((layer.input_size, more), layer.dtype, random, std=1 / math.sqrt(target))
        rows = np.zeros((more, layer.output_size), layer.dtype)
        A, B = np.hstack([layer.matrix_a, columns]), np.vstack([layer.matrix_b, rows])
        return _with_scaling(A, B, layer.scaling, layer.scaling_rule)

    return _mapped(subject, grown)


def canonicalize(subject: Subject) -> Subject:
    """Express the same function with components in descending order of singular value, each shared equally by A and B.

    Slices of the first components are then the best approximations of their rank. The sign of each component is chosen such
    that the element of its column of A with the largest magnitude is positive, so that equal functions get equal factors.
    """
    return _mapped(subject, lambda layer: _cut(layer, layer.rank))


def _mapped(subject: Subject, change: Callable[[LoRALayer], LoRALayer]) -> Subject:
    if isinstance(subject, LoRALayer):
        return change(subject)
    if isinstance(subject, LoRAAdapterBase):
        return subject.with_branches(change)
    if isinstance(subject, AdapterWeights):
        return replace(subject, layers={path: change(layer) for path, layer in subject.layers.items()}, nested={})
    raise ArgumentError(f"subject must be a LoRALayer, an adapter or AdapterWeights, got {subject!r}")


def _decomposed(layer: LoRALayer) -> tuple[Array, Array, Array]:
    """U (in, k), the singular values (k,), and Vᵀ (k, out) of ``s A B``, with k = min(rank, in, out)."""
    Qa, Ra = np.linalg.qr(layer.matrix_a)  # (in, r) -> (in, k_a), (k_a, r)
    Qb, Rb = np.linalg.qr(layer.matrix_b.T)  # (out, r) -> (out, k_b), (k_b, r)
    with np.errstate(over="ignore", invalid="ignore"):
        core = layer.scaling * (Ra @ Rb.T)  # (k_a, r) @ (r, k_b) -> (k_a, k_b)
    if not np.isfinite(core).all():  # otherwise LAPACK may never return
        raise ArgumentError("the factors must be finite, and so must their product")
    U, sigma, Vt = np.linalg.svd(core, full_matrices=False)
    return Qa @ U, sigma, Vt @ Qb.T


def _cut(layer: LoRALayer, rank: int) -> LoRALayer:
    """The first `rank` components of the singular value decomposition, each shared equally by A and B.

    The scaling rule is "max": it scales all slices of the first components alike, as best approximations require.
    """
    U, sigma, Vt = _decomposed(layer)
    rank = min(rank, len(sigma))
    largest = np.abs(U).argmax(axis=0)
    signs = np.where(U[largest, np.arange(len(sigma))] < 0, -1, 1).astype(layer.dtype)
    scaling = layer.scaling or 1.0  # if alpha is 0, all singular values are 0, and the function is the same for any scaling
    share = np.sqrt(sigma / scaling) * signs
    A = U * np.where(sigma == 0, 1, share)  # a component without effect keeps its column, so that it can still be trained
    B = share[:, None] * Vt
    return _with_scaling(A[:, :rank], B[:rank], scaling, "max")


def _with_scaling(A: Array, B: Array, scaling: float, rule: str) -> LoRALayer:
    """A layer whose alpha results in the given scaling at its full rank."""
    rank = A.shape[1]
    return LoRALayer.from_factors(A, B, scaling * (math.sqrt(rank) if rule == "rslora" else rank), scaling=rule)


def _rank_for(sigma: Array, share: float) -> int:
    """The smallest rank that keeps the given share of the energy."""
    energies = np.cumsum(sigma**2)
    return 1 + int((energies < share * energies[-1]).sum())
