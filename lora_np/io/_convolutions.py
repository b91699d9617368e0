"""The factors of convolutions as the two matrices of a low-rank layer, and back.

A convolution with the weight (out, in, k, l) is adapted by a convolution of the same kernel to r channels, A (r, in, k, l),
and one of kernel 1 from there, B (out, r, 1, 1). Their composition has the weight ``ΔW = B A`` with A as (r, in·k·l).
"""

from __future__ import annotations

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..layers.lora import LoRALayer

Kernel = tuple[int, ...]
"""The size of a kernel, such as (3, 3); () for a dense layer."""


def as_matrices(down: Array, up: Array, where: str) -> tuple[Array, Array, Kernel]:
    """A (in · kernel, r), B (r, out) and the kernel, of factors stored as (r, in, *kernel) and (out, r, 1, ...)."""
    if not 2 <= down.ndim == up.ndim <= 5:
        raise FormatError(
            f"{where}: factors must be (r, in, *kernel) and (out, r, 1, ...), got {down.shape} and {up.shape}"
        )
    if any(size != 1 for size in up.shape[2:]):
        raise NotSupportedError(f"{where}: the second factor must have a kernel of size 1, got shape {up.shape}")
    if down.ndim > 2 and 0 < up.shape[1] < len(down) and len(down) % up.shape[1] == 0:
        raise NotSupportedError(f"{where}: a convolution in groups cannot be merged, neither here nor by PEFT")
    return down.reshape(len(down), -1).T, up.reshape(up.shape[:2]).T, down.shape[2:]


def as_stored(layer: LoRALayer, kernel: Kernel) -> tuple[Array, Array]:
    """The factors (r, in, *kernel) and (out, r, 1, ...) of a layer."""
    down, up = layer.matrix_a.T, layer.matrix_b.T
    return down.reshape(len(down), -1, *kernel), up.reshape(*up.shape, *(1 for _ in kernel))


def stored_magnitude(magnitude: Array, kernel: Kernel) -> Array:
    """A DoRA magnitude as PEFT stores it: (out,), or (1, out, 1, ...) for a convolution."""
    return magnitude.reshape(1, -1, *(1 for _ in kernel)) if kernel else magnitude


def composed(down: Array, middle: Array, up: Array, where: str) -> Array:
    """The factor (r, in, *kernel) of a 1x1 convolution and one with the kernel, as in LoCon's Tucker decomposition.

    ``A = Σ_j middle[:, j] down[j]`` is computed in float64 and rounded once.
    """
    if middle.ndim < 3 or down.ndim != middle.ndim or middle.shape[:2] != (up.shape[1], down.shape[0]):
        raise FormatError(
            f"{where}: lora_down, lora_mid and lora_up must be (r, in, 1, ...), (q, r, *kernel) and (out, q, 1, ...), "
            f"got {down.shape}, {middle.shape} and {up.shape}"
        )
    if any(size != 1 for size in down.shape[2:]):
        raise NotSupportedError(f"{where}: beside lora_mid, lora_down must have a kernel of size 1, got shape {down.shape}")
    first = down.reshape(down.shape[:2]).astype(np.float64)
    whole = np.tensordot(first, middle.astype(np.float64), axes=(0, 1))  # (r, in), (q, r, *kernel) -> (in, q, *kernel)
    return np.moveaxis(whole, 1, 0).astype(down.dtype)
