"""The low-rank branch of every adapter: two thin factors whose product is added to a layer's weight."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Self, final

import numpy as np

from .._typing import RNG, Array, Cache, Gradients, Parts
from .._validation import (
    array_shape,
    float_dtype,
    generator,
    one_of,
    positive_int,
    rank_within,
    real_array,
    resolved_alpha,
)
from ..base import Layer
from ..errors import ArgumentError
from ..functions.initializers import normal
from ..kernels import product, sum_outer
from ..run import Run

SCALINGS = ("max", "paper", "rslora")


class LowRankLayer(Layer):
    """A linear layer without bias that is a product of factors, usable at any rank up to its own.

    Parameters
    ----------
    input_size, output_size : int
    rank : int
        The number of components: columns of the first factor, rows of the second.
    alpha : float, default -1
        The LoRA alpha; a negative one stands for the rank, 0 switches the layer off.
    scaling : {"max", "paper", "rslora"}
        The rule of `scaling_at`.
    dtype : {float64, float32}
    """

    def __init__(
        self, input_size: int, output_size: int, rank: int, alpha: float, scaling: str, dtype: Any = np.float64
    ) -> None:
        super().__init__(input_size, output_size, dtype)
        self.rank = positive_int("rank", rank)
        array_shape("input_size, rank", self.input_size, self.rank)
        array_shape("rank, output_size", self.rank, self.output_size)
        self.alpha = resolved_alpha(alpha, self.rank)
        self.scaling_rule = one_of("scaling", scaling, SCALINGS)

    def scaling_at(self, rank: int) -> float:
        """The factor s in front of the product of the first `rank` components.

        ``"max"``: alpha / (full rank), the same at every rank; ``"paper"``: alpha / rank (Valipour et al. 2022, eq. 7);
        ``"rslora"``: alpha / √rank (Kalajdzievski 2023, eq. 3).
        """
        if self.scaling_rule == "max":
            return self.alpha / self.rank
        return self.alpha / (rank if self.scaling_rule == "paper" else math.sqrt(rank))

    @property
    def scaling(self) -> float:
        """The factor at the full rank."""
        return self.scaling_at(self.rank)

    def cut(self, rank: int | Array | None, leading: tuple[int, ...]) -> tuple[int, float | Array]:
        """How many components a pass needs, and the scaling s of each.

        Parameters
        ----------
        rank : int, or array of int with one for each entry of the first axis, or None for the full rank
        leading : tuple of int
            The input's axes but the last; the first counts the rows.

        Returns
        -------
        r : int
            The largest rank.
        s : scalar, or array of shape (rows, 1, ..., 1, r)
            Where each row has a rank of its own, row i of s is ``scaling_at`` of that rank in the columns up to it, and
            zero beyond (nested dropout: Rippel et al. 2014).
        """
        if not isinstance(rank, np.ndarray):
            r = self.rank if rank is None else rank
            s = self.scaling_at(r)
            # An array is much faster to multiply by than a Python number. What records a graph has a symbol here.
            return r, np.array(s, self.dtype) if type(s) is float else s
        r = int(rank.max(initial=1))
        scalings = np.array([self.scaling_at(each) for each in range(1, r + 1)], self.dtype)
        by_rank = np.tri(r, dtype=self.dtype) * scalings[:, np.newaxis]  # row k: the first k + 1 components
        return r, by_rank[rank - 1].reshape(*leading[:1], *[1] * (len(leading) - 1), r)

    @abstractmethod
    def apply(self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0) -> tuple[Array, Cache]:
        """The map of the first `rank` components; `vjp` gives gradients to components `trained_from` up to `rank`."""

    @abstractmethod
    def merge_weights(self, *, rank: int | None = None) -> Array:
        """The weight of the first `rank` components as one matrix, scaling included, shape (input_size, output_size)."""

    def details(self) -> dict[str, str]:
        """Rank, alpha and scaling."""
        details = {"lora.rank": str(self.rank), "lora.alpha": f"{self.alpha:g}"}
        return details | {"lora.scaling": f"{self.scaling:g}"}

    def config(self) -> dict[str, Any]:
        """Sizes, rank, alpha and dtype."""
        return {
            "input_size": self.input_size,
            "output_size": self.output_size,
            "rank": self.rank,
            "alpha": self.alpha,
            "dtype": self.dtype,
        }


@final
class LoRALayer(LowRankLayer):
    """``y = s (x A) B``: the low-rank update of Hu et al. (2021), eq. 3, by itself.

    Parameters
    ----------
    input_size, output_size : int
    rank : int
        r, in 1..min(input_size, output_size).
    alpha : float, default -1
        A negative one stands for the rank; 0 is allowed, and the layer then gives zeros.
    scaling : {"max", "paper", "rslora"}, default "max"
        The rule of `scaling_at`: s = alpha / r at the full rank, alpha / √r for ``"rslora"``.
    dtype : {float64, float32}
    rng : seed or numpy.random.Generator, optional

    Raises
    ------
    ArgumentOutOfRangeError
        A size below 1, a rank out of its range, an alpha that is not finite.

    Notes
    -----
    ``matrix_a`` is A, (input_size, r), drawn from N(0, 1/r); ``matrix_b`` is B, (r, output_size), zero at first, so that an
    adapter begins as its base. The flat vector holds A row by row, then B; in memory a component of either is one piece,
    and so is a rank's slice. With G = dL/dY (sums run over rows)::

        H = s X A,  Y = H B
        dB = Hᵀ G,  dH = s G Bᵀ,  dA = Xᵀ dH,  dX = dH Aᵀ

    At a lower rank, A and B stand for their first columns and rows, and the gradients beyond them are exactly zero. Where
    each row has a rank of its own, s is a matrix, and multiplies element by element: see `cut`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> layer = LoRALayer(4, 3, rank=2, rng=0)
    >>> layer.parameter_count, layer.scaling
    (14, 1.0)
    >>> layer.forward(np.ones(4))
    array([0., 0., 0.])
    """

    parameter_names = ("matrix_a", "matrix_b")

    def __init__(
        self,
        input_size: int,
        output_size: int,
        rank: int,
        alpha: float = -1.0,
        *,
        scaling: str = "max",
        dtype: Any = np.float64,
        rng: RNG = None,
    ) -> None:
        sizes = positive_int("input_size", input_size), positive_int("output_size", output_size)
        super().__init__(*sizes, rank_within(rank, *sizes), alpha, scaling, dtype)
        shape = (self.input_size, self.rank)
        A = normal(shape, self.dtype, generator(rng), std=1 / math.sqrt(self.rank))
        self.matrix_a: Array = np.asfortranarray(A)
        self.matrix_b: Array = np.zeros((self.rank, self.output_size), self.dtype)

    def apply(self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0) -> tuple[Array, Cache]:
        """``h = s x A``, ``y = h B``, with the first `rank` columns of A and rows of B."""
        r, s = self.cut(rank, x.shape[:-1])
        A, B = self._first(r)
        h = product(x, A)  # (..., in) @ (in, r) -> (..., r)
        h *= s
        y = product(h, B)  # (..., r) @ (r, out) -> (..., out)
        return y, (x, h, r, s, trained_from)

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dB = hᵀ dy``, ``dh = s dy Bᵀ``, ``dA = xᵀ dh``, ``dx = dh Aᵀ``."""
        x, h, r, s, first = cache
        A, B = self._first(r)
        dh = product(dy, B.T)  # (..., out) @ (out, r) -> (..., r)
        dh *= s
        gradients = {}
        if parameters:
            h, trained_dh = (h[..., first:], dh[..., first:]) if first else (h, dh)
            dA = sum_outer(trained_dh, x).T  # ((r - first, ...) @ (..., in))ᵀ -> (in, r - first)
            dB = sum_outer(h, dy)  # (r - first, ...) @ (..., out) -> (r - first, out)
            if len(dB) < self.rank:  # zeros for the components that do not train
                dA, dB = self._among_all(first, dA, dB)
            gradients = {"matrix_a": dA, "matrix_b": dB}
        dx = product(dh, A.T) if inputs else None  # (..., r) @ (r, in) -> (..., in)
        return dx, gradients

    def _first(self, r: int) -> tuple[Array, Array]:
        """The first r columns of A and rows of B."""
        return (self.matrix_a, self.matrix_b) if r == self.rank else (self.matrix_a[:, :r], self.matrix_b[:r])

    def _among_all(self, first: int, dA: Array, dB: Array) -> tuple[Array, Array]:
        all_dA, all_dB = np.zeros_like(self.matrix_a), np.zeros_like(self.matrix_b)
        all_dA[:, first : first + len(dB)], all_dB[first : first + len(dB)] = dA, dB
        return all_dA, all_dB

    def active_parts(self, cache: Cache) -> Parts:
        """The components that trained: columns of A, rows of B."""
        _, _, r, _, first = cache
        return {"matrix_a": (slice(None), slice(first, r)), "matrix_b": (slice(first, r), slice(None))}

    def merge_weights(self, *, rank: int | None = None) -> Array:
        """``s A B``, with the first `rank` columns of A and rows of B: shape (input_size, output_size)."""
        r = self.rank if rank is None else rank_within(rank, self.rank, self.rank)
        A, B, s = self.matrix_a[:, :r], self.matrix_b[:r], self.scaling_at(r)
        return s * (A @ B)  # (in, r) @ (r, out) -> (in, out)

    def merge_weights_vjp(self, dW: Array) -> Gradients:
        """The gradients of A and B from that of `merge_weights`: ``dA = s dW Bᵀ``, ``dB = s Aᵀ dW``."""
        A, B, s = self.matrix_a, self.matrix_b, self.scaling
        dA = s * (dW @ B.T)  # (in, out) @ (out, r) -> (in, r)
        dB = s * (A.T @ dW)  # (r, in) @ (in, out) -> (r, out)
        return {"matrix_a": dA, "matrix_b": dB}

    @classmethod
    def from_factors(cls, matrix_a: Any, matrix_b: Any, alpha: float = -1.0, *, scaling: str = "max") -> Self:
        """A layer with given factors; its rank may be above min(input_size, output_size), as it may be in files of others.

        Parameters
        ----------
        matrix_a : array, shape (input_size, rank)
        matrix_b : array, shape (rank, output_size)
            Both are copied. The layer is float32 where both are, and float64 otherwise.
        alpha, scaling
            As in the constructor.

        Raises
        ------
        ArgumentError
            Shapes that do not fit, or not real numbers.
        """
        A, B = real_array("matrix_a", matrix_a), real_array("matrix_b", matrix_b)
        if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
            raise ArgumentError(f"matrix_a and matrix_b must be (in, r) and (r, out), got {A.shape} and {B.shape}")
        dtype = np.float32 if A.dtype == B.dtype == np.float32 else np.float64
        layer = cls.__new__(cls)
        LowRankLayer.__init__(layer, A.shape[0], B.shape[1], A.shape[1], alpha, scaling, dtype)
        layer.matrix_a, layer.matrix_b = np.array(A, dtype, order="F"), np.array(B, dtype, order="C")
        return layer

    def get_matrix_a(self) -> Array:
        """A copy of A, shape (input_size, rank)."""
        return self.matrix_a.copy()

    def get_matrix_b(self) -> Array:
        """A copy of B, shape (rank, output_size)."""
        return self.matrix_b.copy()

    def estimate_flops(self) -> int:
        """2·r·(in + out), and r for the scaling."""
        return self.rank * (2 * self.input_size + 2 * self.output_size + 1)

    def config(self) -> dict[str, Any]:
        """Sizes, rank, alpha, dtype and scaling rule."""
        return super().config() | {"scaling": self.scaling_rule}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new layer of this structure, with zero factors."""
        dtype, rank = float_dtype(config["dtype"]), positive_int("rank", config["rank"])
        A, B = np.zeros((config["input_size"], rank), dtype), np.zeros((rank, config["output_size"]), dtype)
        return cls.from_factors(A, B, config["alpha"], scaling=config["scaling"])
