"""`LoRALayer`: the low-rank branch of the adapters, two thin factors whose product is added to a layer's weight."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self, final

import numpy as np

from .._typing import RNG, Array, Gradients, Part
from .._validation import generator, positive_int, rank_within, real_array
from ..errors import ArgumentError
from ..functions.initializers import normal
from ..kernels import product, sum_outer
from ..run import Run
from .dropout import Mask, masked
from .low_rank import LowRankLayer
from .movable_factors import MovableFactors


class LoRACache(NamedTuple):
    """The cache for `LoRALayer.vjp`."""

    x: Array
    h: Array
    A: Array
    B: Array
    s: float | Array
    trained_from: int
    mask: Mask | None


@final
class LoRALayer(MovableFactors, LowRankLayer):
    """``y = s (x A) B``: the low-rank update of Hu et al. (2021), eq. 3.

    Parameters
    ----------
    input_size, output_size : int
    rank : int
        r, in 1..min(input_size, output_size).
    alpha : float, default -1
        A negative value means `rank`. With 0 the layer returns zeros.
    scaling : {"max", "paper", "rslora"}, default "max"
        The rule of `scaling_at`: s = alpha / r at the full rank, alpha / √r for ``"rslora"``.
    dtype : {float64, float32}
    dropout : float, default 0
        p, in [0, 1): the probability with which a training pass drops an element of x; ``lora_dropout`` in PEFT.
    rng : seed or numpy.random.Generator, optional
        For the initial A, and for the masks of dropout.

    Raises
    ------
    ArgumentOutOfRangeError
        If a size is below 1, the rank or the dropout is out of range, or alpha is not finite.

    Notes
    -----
    ``matrix_a`` is A, (input_size, r), drawn from N(0, 1/r); ``matrix_b`` is B, (r, output_size), initially zero, so that
    an adapter starts out equal to its base. A is stored column-major and B row-major, so every component, and every leading
    slice, is contiguous. With G = dL/dY (sums run over rows)::

        H = X A,  Y = s H B
        dB = s Hᵀ G,  dH = s G Bᵀ,  dA = Xᵀ dH,  dX = dH Aᵀ

    At a lower rank r, A and B denote their first r columns and rows, and the gradients beyond them are exactly zero. If
    each row has its own rank, s is a matrix and multiplies elementwise: see `components_at`.

    A training pass with dropout replaces X by ``X ⊙ M``, and hence dX by ``(dH Aᵀ) ⊙ M``, where each element of M is 0 with
    probability p and 1 / (1 - p) otherwise. M follows from the seed of the `Run` and from `dropout_state`.

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
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        sizes = positive_int("input_size", input_size), positive_int("output_size", output_size)
        super().__init__(*sizes, rank_within(rank, *sizes), alpha, scaling, dtype)
        random = generator(rng)
        A = normal((self.input_size, self.rank), self.dtype, random, std=1 / math.sqrt(self.rank))
        self.matrix_a: Array = np.asfortranarray(A)
        self.matrix_b: Array = np.zeros((self.rank, self.output_size), self.dtype)
        self._drop(dropout, random)

    def apply(
        self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0
    ) -> tuple[Array, LoRACache]:
        """``h = s x A``, ``y = h B``, with the first `rank` columns of A and rows of B; with dropout, ``x ⊙ M`` for x."""
        x, mask = self.dropped(x, run)
        r, s = self.components_at(rank, x.shape)
        A, B = self.matrix_a[:, :r], self.matrix_b[:r]
        h = s * product(x, A)  # (..., in) @ (in, r) -> (..., r)
        y = product(h, B)  # (..., r) @ (r, out) -> (..., out)
        return y, LoRACache(x, h, A, B, s, trained_from, mask)

    def vjp(
        self, dy: Array, cache: LoRACache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dB = hᵀ dy``, ``dh = s dy Bᵀ``, ``dA = xᵀ dh``, ``dx = dh Aᵀ``; with dropout, ``dx = (dh Aᵀ) ⊙ M``."""
        x, h, A, B, s, first, mask = cache
        dh = s * product(dy, B.T)  # (..., out) @ (out, r) -> (..., r)
        dx = product(dh, A.T) if inputs else None  # (..., r) @ (r, in) -> (..., in)
        gradients = {}
        if parameters:
            if first:
                h, dh = h[..., first:], dh[..., first:]
            dA = sum_outer(dh, x).T  # ((r - first, ...) @ (..., in))ᵀ -> (in, r - first)
            dB = sum_outer(h, dy)  # (r - first, ...) @ (..., out) -> (r - first, out)
            gradients = {"matrix_a": dA, "matrix_b": dB}
            if len(dB) < self.rank:
                gradients = self._among_all(gradients, first, len(B))
        return masked(dx, mask), gradients

    @staticmethod
    def parts(first: int, last: int) -> tuple[Part, Part]:
        """The parts of A and B that hold the components from `first` up to, but not including, `last`."""
        return (slice(None), slice(first, last)), (slice(first, last), slice(None))

    def _among_all(self, gradients: Gradients, first: int, last: int) -> Gradients:
        """The gradients of the whole of A and B, given those of the components first..last; exactly zero elsewhere."""
        dA, dB = np.zeros_like(self.matrix_a), np.zeros_like(self.matrix_b)
        part_a, part_b = self.parts(first, last)
        dA[part_a], dB[part_b] = gradients["matrix_a"], gradients["matrix_b"]
        return {"matrix_a": dA, "matrix_b": dB}

    def merge_weights(self, *, rank: int | None = None) -> Array:
        """``s A B``, with the first `rank` columns of A and rows of B: shape (input_size, output_size)."""
        r = self.rank if rank is None else rank_within(rank, self.rank, self.rank)
        A, B, s = self.matrix_a[:, :r], self.matrix_b[:r], self.scaling_at(r)
        return s * (A @ B)  # (in, r) @ (r, out) -> (in, out)

    def merge_weights_vjp(self, dW: Array) -> Gradients:
        """The gradients of A and B, given the gradient dW of `merge_weights`: ``dA = s dW Bᵀ``, ``dB = s Aᵀ dW``."""
        A, B, s = self.matrix_a, self.matrix_b, self.scaling
        dA = s * (dW @ B.T)  # (in, out) @ (out, r) -> (in, r)
        dB = s * (A.T @ dW)  # (r, in) @ (in, out) -> (r, out)
        return {"matrix_a": dA, "matrix_b": dB}

    @classmethod
    def from_factors(
        cls, matrix_a: Any, matrix_b: Any, alpha: float = -1.0, *, scaling: str = "max", dropout: float = 0, rng: RNG = None
    ) -> Self:
        """A layer with copies of the given factors. The rank may exceed min(input_size, output_size), as in some files.

        Parameters
        ----------
        matrix_a : array, shape (input_size, rank)
        matrix_b : array, shape (rank, output_size)
            The layer is float32 if both are, and float64 otherwise.
        alpha, scaling, dropout, rng
            As in the constructor.

        Raises
        ------
        ArgumentError
            If the shapes do not fit each other, or if the elements are not real numbers.
        """
        A, B = real_array("matrix_a", matrix_a), real_array("matrix_b", matrix_b)
        if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
            raise ArgumentError(f"matrix_a and matrix_b must be (in, r) and (r, out), got {A.shape} and {B.shape}")
        dtype = np.float32 if A.dtype == B.dtype == np.float32 else np.float64
        layer = cls.__new__(cls)
        LowRankLayer.__init__(layer, A.shape[0], B.shape[1], A.shape[1], alpha, scaling, dtype)
        layer.matrix_a, layer.matrix_b = np.array(A, dtype, order="F"), np.array(B, dtype, order="C")
        layer._drop(dropout, rng)
        return layer

    def at_rank(self, rank: int) -> LoRALayer:
        """The first `rank` components as a separate layer, with the scaling that this one has at that rank."""
        r = rank_within(rank, self.rank, self.rank)
        return self.from_factors(self.matrix_a[:, :r], self.matrix_b[:r], self.scaling_at(r) * r, **self.dropout_choices)

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
        """Sizes, rank, alpha, dtype, scaling rule, and dropout, if there is any."""
        return super().config() | {"scaling": self.scaling_rule}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new layer of this structure, with zero factors."""
        layer = cls.__new__(cls)
        sizes = config["input_size"], config["output_size"], config["rank"]
        LowRankLayer.__init__(layer, *sizes, config["alpha"], config["scaling"], config["dtype"])
        layer.matrix_a = np.zeros((layer.input_size, layer.rank), layer.dtype, order="F")
        layer.matrix_b = np.zeros((layer.rank, layer.output_size), layer.dtype)
        layer._drop(config.get("dropout", 0.0), None)
        return layer
