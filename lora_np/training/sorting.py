"""`sort_components`: the components of DyLoRA adapters in descending order of singular value, with the same function."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral

import numpy as np

from .._typing import Array
from .._validation import finite_float, instance, positive_int
from ..base import Layer, listeners
from ..errors import ArgumentOutOfRangeError
from ..functions.product_svd import product_svd
from ..layers.lora import LoRALayer
from .optimizers import Optimizer


def checked_warmup(warmup: object, name: str = "warmup") -> float | int:
    """The length of a warm-up at the highest rank: a fraction of all steps, in (0, 1), or a number of steps, at least 1."""
    if isinstance(warmup, Integral):
        return positive_int(name, warmup)
    share = finite_float(name, warmup)
    if not 0 < share < 1:
        raise ArgumentOutOfRangeError(f"{name} must be a fraction in (0, 1) or a number of steps, got {share}")
    return share


def warmup_length(warmup: float | int, steps: int) -> int:
    """The number of warm-up steps of a training run.

    Raises
    ------
    ArgumentOutOfRangeError
        If no step would be left after the warm-up.
    """
    length = max(1, round(warmup * steps)) if isinstance(warmup, float) else warmup
    if length >= steps:
        raise ArgumentOutOfRangeError(f"warmup must be shorter than the training, which has {steps} steps, got {length}")
    return length


def sort_components(
    model: Layer, optimizer: Optimizer | None = None, *, tasks: Collection[str | None] | None = None
) -> int:
    """Sort the components of each branch with ranks by singular value; its function at the highest rank stays the same.

    Parameters
    ----------
    model : Layer
        Changed in place. Adapters in which a factor is frozen are left alone; so are components beyond the highest rank.
    optimizer : Optimizer, optional
        Its state of the sorted factors is discarded.
    tasks : collection of str or None, optional
        Leave the other tasks alone. By default, the branches of all tasks with ranks are sorted.

    Returns
    -------
    int
        The number of sorted branches.

    Raises
    ------
    InvalidOperationError
        If an adapter is in frozen mode, in which a pass at the highest rank trains only some of the components.
    ArgumentError
        If a factor, or the product of a pair of factors, is not finite. Nothing is changed.

    Notes
    -----
    With the singular value decomposition ``A B = U Σ Vᵀ`` of the R components, the new factors are ``A' = a U`` and
    ``B' = Σ Vᵀ / a``, where ``a = ‖A‖_F / √R`` keeps the norm of A. Their product is the same, and with scaling ``"max"``
    the slices of the first r components are the best approximations of rank r (Eckart and Young 1936).
    """
    instance("model", model, Layer, "a layer")
    if optimizer is not None:
        instance("optimizer", optimizer, Optimizer, "an optimizer")
    branches = trained_branches(model, tasks)
    factors: dict[str, Array] = {}
    for (name_a, name_b), (lora, rank) in branches.items():
        A, B = lora.get_matrix_a(), lora.get_matrix_b()
        A[:, :rank], B[:rank] = _sorted(A[:, :rank].astype(float), B[:rank].astype(float))
        factors |= {name_a: A, name_b: B}
    for name, factor in factors.items():
        model.set_parameter(name, factor)
    if optimizer is not None:
        optimizer.reset(factors)
    return len(branches)


def trained_branches(
    model: Layer, tasks: Collection[str | None] | None = None
) -> dict[tuple[str, str], tuple[LoRALayer, int]]:
    """The branches that nested dropout trains, each with its highest rank, by the names of both factors."""
    names = {id(array): name for name, array in model.named_parameters().items()}
    found: dict[tuple[str, str], tuple[LoRALayer, int]] = {}
    for layer in listeners(model).values():
        for lora, rank in layer.nested_branches(tasks) if layer.listens_to == "rank" else ():
            name_a, name_b = names.get(id(lora.matrix_a)), names.get(id(lora.matrix_b))
            if name_a and name_b:
                found[name_a, name_b] = lora, rank
    return found


def _sorted(A: Array, B: Array) -> tuple[Array, Array]:
    """``A' = a U``, ``B' = Σ Vᵀ / a``: the same product, with components in descending order of singular value."""
    U, sigma, Vt = product_svd(A, B)
    k, a = len(sigma), np.linalg.norm(A) / math.sqrt(A.shape[1]) or 1.0
    A, B = A.copy(), np.zeros_like(B)  # components beyond min(in, out), if there are any, have no effect
    A[:, :k], B[:k] = a * U, (sigma / a)[:, np.newaxis] * Vt
    return A, B
