"""Layers that normalize each row: `LayerNorm` (Ba, Kiros and Hinton 2016), `RMSNorm` (Zhang and Sennrich 2019)."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np

from .._typing import Array, Gradients
from .._validation import array_shape, non_negative_float
from ..base import Layer
from ..kernels import sum_rows
from ..run import Run


class NormCache(NamedTuple):
    """The cache of both layers."""

    n: Array
    """(..., size): the normalized rows."""
    u: Array
    """(..., 1): the factor of each row."""


class Normalization(Layer):
    """The size, ε and g of `LayerNorm` and `RMSNorm`."""

    def __init__(self, size: int, epsilon: float = 1e-5, *, dtype: Any = np.float64) -> None:
        super().__init__(size, size, dtype)
        self.epsilon = non_negative_float("epsilon", epsilon)
        array_shape("size", self.input_size)
        self.weight: Array = np.ones(self.input_size, self.dtype)

    def _details(self) -> dict[str, str]:
        return {"normalization.epsilon": f"{self.epsilon:g}"}

    def config(self) -> dict[str, Any]:
        """Size, epsilon and dtype."""
        return {"size": self.input_size, "epsilon": self.epsilon, "dtype": self.dtype}


@final
class LayerNorm(Normalization):
    """``y = g n + b`` with ``n = (x - mean(x)) / √(var(x) + ε)``: rows of mean 0 and variance 1, rescaled.

    Parameters
    ----------
    size : int
        The size of the last axis of input and output.
    epsilon : float, default 1e-5
        ε, which limits the factor by which nearly constant rows grow.
    dtype : {float64, float32}

    Raises
    ------
    ArgumentError
        If the size is below 1, or if epsilon is negative.

    Notes
    -----
    `weight` is g, initially 1, and `bias` is b, initially 0. Means are taken over each row, sums over all rows. With
    G = dL/dY::

        u = 1 / √(var(x) + ε),  n = u (x - mean(x)),  Y = g n + b
        dg = Σ G n,  db = Σ G,  dn = g G,  dx = u (dn - mean(dn) - n mean(n dn))

    Examples
    --------
    >>> from lora_np import LayerNorm
    >>> LayerNorm(2).forward([[1, 3], [-10, 10]]).round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """

    parameter_names = ("weight", "bias")

    def __init__(self, size: int, epsilon: float = 1e-5, *, dtype: Any = np.float64) -> None:
        super().__init__(size, epsilon, dtype=dtype)
        self.bias: Array = np.zeros(self.input_size, self.dtype)

    def apply(self, x: Array, run: Run) -> tuple[Array, NormCache]:
        """``u = 1 / √(var(x) + ε)``, ``n = u (x - mean(x))``, ``y = g n + b``."""
        g, b = self.weight, self.bias
        centred = x - _mean(x)  # (..., size)
        u = 1 / np.sqrt(_mean(centred * centred) + self.epsilon)  # (..., 1)
        n = u * centred  # (..., size)
        return g * n + b, NormCache(n, u)

    def vjp(
        self, dy: Array, cache: NormCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dg = Σ n dy``, ``db = Σ dy``, ``dn = g dy``, ``dx = u (dn - mean(dn) - n mean(n dn))``."""
        n, u = cache
        g = self.weight
        gradients = {"weight": sum_rows(n * dy), "bias": sum_rows(dy)} if parameters else {}  # (..., size) -> (size,)
        if not inputs:
            return None, gradients
        dn = g * dy  # (..., size)
        dx = u * (dn - _mean(dn) - n * _mean(n * dn))  # (..., size)
        return dx, gradients

    def estimate_flops(self) -> int:
        """7 for each element."""
        return 7 * self.input_size


@final
class RMSNorm(Normalization):
    """``y = g n`` with ``n = x / √(mean(x²) + ε)``: rows of mean square 1, rescaled.

    Parameters
    ----------
    size : int
        The size of the last axis of input and output.
    epsilon : float, default 1e-5
        ε, which limits the factor by which nearly zero rows grow.
    dtype : {float64, float32}

    Raises
    ------
    ArgumentError
        If the size is below 1, or if epsilon is negative.

    Notes
    -----
    `weight` is g, initially 1. Means are taken over each row, sums over all rows. With G = dL/dY::

        u = 1 / √(mean(x²) + ε),  n = u x,  Y = g n
        dg = Σ G n,  dn = g G,  dx = u (dn - n mean(n dn))

    Examples
    --------
    >>> from lora_np import RMSNorm
    >>> RMSNorm(2).forward([[1, 7], [-3, 3]]).round(3)
    array([[ 0.2,  1.4],
           [-1. ,  1. ]])
    """

    parameter_names = ("weight",)

    def apply(self, x: Array, run: Run) -> tuple[Array, NormCache]:
        """``u = 1 / √(mean(x²) + ε)``, ``n = u x``, ``y = g n``."""
        g = self.weight
        u = 1 / np.sqrt(_mean(x * x) + self.epsilon)  # (..., 1)
        n = u * x  # (..., size)
        return g * n, NormCache(n, u)

    def vjp(
        self, dy: Array, cache: NormCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dg = Σ n dy``, ``dn = g dy``, ``dx = u (dn - n mean(n dn))``."""
        n, u = cache
        g = self.weight
        gradients = {"weight": sum_rows(n * dy)} if parameters else {}  # (..., size) -> (size,)
        if not inputs:
            return None, gradients
        dn = g * dy  # (..., size)
        dx = u * (dn - n * _mean(n * dn))  # (..., size)
        return dx, gradients

    def estimate_flops(self) -> int:
        """4 for each element."""
        return 4 * self.input_size


def _mean(x: Array) -> Array:
    """The mean of each row: (..., size) -> (..., 1)."""
    return x.mean(axis=-1, keepdims=True)
