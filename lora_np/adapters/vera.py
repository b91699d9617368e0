"""`VeRALayer` and `VeRAAdapter`: frozen random factors, which layers may share, scaled by two trained vectors."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np

from .._typing import RNG, Array, Gradients
from .._validation import finite_float, generator, rank_within
from ..base import Layer
from ..functions.initializers import he_uniform
from ..kernels import product, sum_rows
from ..layers.dropout import Mask, masked
from ..layers.low_rank import LowRankLayer
from ..run import Run
from .additive import AdditiveAdapter, Selection


class VeRACache(NamedTuple):
    """The cache for `VeRALayer.vjp`."""

    h: Array
    t: Array
    r: int
    s: float | Array
    trained_from: int
    mask: Mask | None


@final
class VeRALayer(LowRankLayer):
    """``y = s ((x A) d B) b`` with A and B frozen, d and b trained (Kopiczko et al. 2024, eq. 2).

    Parameters
    ----------
    input_size, output_size, rank, alpha, dtype
        As in `LoRALayer`, except that the rank has no upper limit.
    initial_d : float, default 0.1
        The initial value of every element of d; b is initially zero.
    dropout : float, default 0
        p, in [0, 1): the probability with which a training pass drops an element of x; ``vera_dropout`` in PEFT.
    rng : seed or numpy.random.Generator, optional
        For A and B, and for the masks of dropout. Layers of the same sizes and seed have the same factors.

    Notes
    -----
    A is (input_size, r), B is (r, output_size), d is (r,) and b is (output_size,). With G = dL/dY (sums run over rows)::

        H = X A,  T = s (H d) B,  Y = T b
        db = Σ G T,  dT = G b,  dQ = s dT Bᵀ,  dd = Σ H dQ,  dX = (dQ d) Aᵀ

    Dropout replaces X and dX as in `LoRALayer`.
    """

    parameter_names = ("vector_d", "vector_b", "projection_a", "projection_b")
    frozen = frozenset({"projection_a", "projection_b"})

    def __init__(
        self,
        input_size: int,
        output_size: int,
        rank: int,
        alpha: float = -1.0,
        *,
        initial_d: float = 0.1,
        dtype: Any = np.float64,
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        super().__init__(input_size, output_size, rank, alpha, "max", dtype)
        random = generator(rng)
        self.vector_d: Array = np.full(self.rank, finite_float("initial_d", initial_d), self.dtype)
        self.vector_b: Array = np.zeros(self.output_size, self.dtype)
        self.projection_a: Array = he_uniform((self.input_size, self.rank), self.dtype, random)
        self.projection_b: Array = he_uniform((self.rank, self.output_size), self.dtype, random)
        self._drop(dropout, random)

    def apply(
        self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0
    ) -> tuple[Array, VeRACache]:
        """``h = x A``, ``t = s (h d) B``, ``y = t b``; with dropout, ``x ⊙ M`` for x."""
        x, mask = self.dropped(x, run)
        r, s = self.components_at(rank, x.shape)
        A, B, d, b = self.projection_a[:, :r], self.projection_b[:r], self.vector_d[:r], self.vector_b
        h = product(x, A)  # (..., in) @ (in, r) -> (..., r)
        t = product(s * (h * d), B)  # (..., r) @ (r, out) -> (..., out)
        return t * b, VeRACache(h, t, r, s, trained_from, mask)

    def vjp(
        self, dy: Array, cache: VeRACache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``db = Σ dy t``, ``dq = s (dy b) Bᵀ``, ``dd = Σ h dq``, ``dx = (dq d) Aᵀ ⊙ M``."""
        h, t, r, s, first, mask = cache
        A, B, d, b = self.projection_a[:, :r], self.projection_b[:r], self.vector_d[:r], self.vector_b
        dq = s * product(dy * b, B.T)  # (..., out) @ (out, r) -> (..., r)
        gradients = {}
        if parameters:
            dd = np.zeros_like(self.vector_d)
            dd[first:r] = sum_rows((h * dq)[..., first:])
            gradients = {"vector_d": dd, "vector_b": sum_rows(dy * t)}
        dx = product(dq * d, A.T) if inputs else None  # (..., r) @ (r, in) -> (..., in)
        return masked(dx, mask), gradients

    def merge_weights(self, *, rank: int | None = None) -> Array:
        """``s (A d) B b``, with the first `rank` components: shape (input_size, output_size)."""
        r = self.rank if rank is None else rank_within(rank, self.rank, self.rank)
        A, B, d, b = self.projection_a[:, :r], self.projection_b[:r], self.vector_d[:r], self.vector_b
        return self.scaling_at(r) * (A * d) @ (B * b)  # (in, r) @ (r, out) -> (in, out)

    def estimate_flops(self) -> int:
        """2·r·(in + out), r for d and the scaling, out for b."""
        return 2 * self.rank * (self.input_size + self.output_size + 1) + self.output_size


@final
class VeRAAdapter(AdditiveAdapter):
    """``y = base(x) + s ((x A) d B) b``, with A and B frozen and random: r + output_size parameters train.

    Parameters
    ----------
    base_layer : Layer
        The layer to adapt.
    rank : int
        r, at least 1.
    alpha : float, default -1
        s = alpha / r. A negative value means `rank`, so that s = 1 as in the paper.
    freeze_base_layer : bool, default True
        Whether the base's parameters are frozen.
    initial_d : float, default 0.1
        The initial value of every element of d.
    dropout : float, default 0
        p, in [0, 1), for the input of the branch in training passes; see `LoRALayer`.
    rng : seed or numpy.random.Generator, optional
        For A and B, and for the masks of dropout; adapters of the same sizes and seed have the same factors.
    """

    def __init__(
        self,
        base_layer: Layer,
        rank: int,
        alpha: float = -1.0,
        freeze_base_layer: bool = True,
        *,
        initial_d: float = 0.1,
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        sizes = self.input_size, self.output_size
        self._lora = VeRALayer(*sizes, rank, alpha, initial_d=initial_d, dtype=self.dtype, dropout=dropout, rng=rng)

    @property
    def lora_layer(self) -> VeRALayer:
        """The branch."""
        return self._lora

    def select(self, run: Run) -> Selection:
        """The branch, at its full rank."""
        return Selection("lora", self._lora)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "base_layer": self.base_layer,
            "rank": self.rank,
            "alpha": self.alpha,
            "freeze_base_layer": self.is_base_layer_frozen,
        } | self._lora.dropout_config
