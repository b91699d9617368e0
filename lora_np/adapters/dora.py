"""`DoRAAdapter`: a weight decomposed into magnitude and direction, with a low-rank change of the direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self, final

import numpy as np

from .._typing import RNG, Array, Cache, Gradients
from ..base import Layer, prefixed
from ..errors import ArgumentError
from ..kernels import sum_rows
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from ..run import Run
from .base import LoRAAdapterBase


class DoRACache(NamedTuple):
    """The cache for `DoRAAdapter.vjp`."""

    base: Cache
    lora: Cache
    V: Array
    norm: Array
    c: Array
    u: Array
    dropped: Cache
    """With dropout, the cache of the base for the masked input; None otherwise."""


@final
class DoRAAdapter(LoRAAdapterBase):
    """``y = x (V · m / ‖V‖) + b`` with ``V = W + s A B`` (Liu et al. 2024, eq. 5), norms taken over each column of V.

    Parameters
    ----------
    base_layer : DenseLayer or FullyConnectedLayer
        The layer to adapt, without an activation.
    rank : int
        r, in 1..min(input_size, output_size).
    alpha : float, default -1
        s = alpha / r. A negative value means `rank`.
    freeze_base_layer : bool, default True
        Whether W and b are frozen.
    norm_gradient : bool, default True
        Whether gradients flow through the norm. If False, it is treated as a constant, as in the paper (eq. 11) and in
        PEFT, to save memory; the gradients of A, B and W are then inexact.
    scaling : {"max", "paper", "rslora"}, default "max"
        With ``"rslora"``, s = alpha / √r; the other two are equal here.
    dropout : float, default 0
        p, in [0, 1), for the input of the change of the weight in training passes; see the notes.
    rng : seed or numpy.random.Generator, optional
        For the initial A, and for the masks of dropout.

    Notes
    -----
    The parameters are the magnitude m, (output_size,), initially the column norms of W, and the A and B of the branch. A
    column of zero norm stays zero. With ν = ‖V‖, c = m / ν, U = X V and G = dL/dY (sums over rows)::

        Y = c U + b
        dc = Σ G U,  dm = dc / ν,  dU = c G
        X and V receive dU as in a linear layer; the norm adds  dV = -V · dc m / ν³
        and through V = W + s A B,  dA = s dV Bᵀ,  dB = s Aᵀ dV,  dW = dV

    DoRA adds ``X (c V - W)`` to the base. With dropout, a training pass computes this change for ``X ⊙ M``, with the M of
    the branch, and the base for X, as PEFT does::

        U = (X ⊙ M) V,  Y = X W + c U - (X ⊙ M) W + b
    """

    parameter_names = ("magnitude",)

    def __init__(
        self,
        base_layer: AffineLayer,
        rank: int,
        alpha: float = -1.0,
        freeze_base_layer: bool = True,
        *,
        norm_gradient: bool = True,
        scaling: str = "max",
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        self._measure(norm_gradient)
        self._lora = self._new_branch(rank, alpha, scaling=scaling, dropout=dropout, rng=rng)

    @classmethod
    def around(  # type: ignore[override]  # each kind of adapter has its own choices
        cls, base_layer: Layer, branch: LoRALayer, freeze_base_layer: bool = True, *, norm_gradient: bool = True
    ) -> Self:
        """An adapter with a given branch and the initial magnitude; see `LoRAAdapterBase.around`."""
        adapter = cls.__new__(cls)
        LoRAAdapterBase.__init__(adapter, base_layer, freeze_base_layer)
        adapter._measure(norm_gradient)
        adapter._lora = adapter.fitted(branch)
        return adapter

    def _measure(self, norm_gradient: bool) -> None:
        try:
            base = self.mergeable_base()
        except self.merge_error as error:
            raise ArgumentError(f"base_layer must be a linear DenseLayer or FullyConnectedLayer: {error}") from None
        self.norm_gradient = bool(norm_gradient)
        self.magnitude: Array = _column_norms(np.asarray(base.matrix))

    @property
    def _bias(self) -> Array | float:
        return 0.0 if self._base.bias is None else self._base.bias

    @property
    def _base(self) -> AffineLayer:
        assert isinstance(self.base_layer, AffineLayer)
        return self.base_layer

    def apply(self, x: Array, run: Run) -> tuple[Array, DoRACache]:
        """``y = c (base(x) - b + branch(x)) + b``, with c = m / ‖W + s A B‖; with dropout, see the notes."""
        b, m = self._bias, self.magnitude
        z, base_cache = self._base.apply(x, run)
        branch, lora_cache = self._lora.apply(x, run)
        V = self._base.matrix + self._lora.merge_weights()  # (in, out)
        norm = _divisor(V)
        c = m / norm
        if lora_cache.mask is None:
            u = z - b + branch
            y = c * u + b
            return y, DoRACache(base_cache, lora_cache, V, norm, c, u, None)
        w, dropped_cache = self._base.apply(lora_cache.x, run)
        u = w - b + branch
        y = z + (c * u - (w - b))
        return y, DoRACache(base_cache, lora_cache, V, norm, c, u, dropped_cache)

    def vjp(
        self, dy: Array, cache: DoRACache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dc = Σ dy u``, ``dm = dc / ν``, ``du = c dy`` for base and branch; ``dV = -V dc c / ν²`` through the norm."""
        base_cache, lora_cache, V, norm, c, u, dropped_cache = cache
        trains_base = parameters and not self.is_base_layer_frozen
        du = c * dy
        dz = du if dropped_cache is None else dy
        base_dx, base_gradients = self._base.vjp(dz, base_cache, parameters=trains_base, inputs=inputs)
        if dropped_cache is not None:
            base_dx, base_gradients = self._with_dropped(dy, cache, base_dx, base_gradients)
        lora_dx, lora_gradients = self._lora.vjp(du, lora_cache, parameters=parameters, inputs=inputs)
        gradients: Gradients = {}
        if parameters:
            dc = sum_rows(dy * u)
            gradients["magnitude"] = dc / norm
            dV = V * (-dc * c / norm**2 if self.norm_gradient else np.zeros_like(c))  # (in, out)
            if trains_base:
                base_gradients["weight"] = base_gradients["weight"] + self._base.in_layout(dV)
                if self._base.bias is not None:
                    base_gradients["bias"] = sum_rows(dy)
            through_norm = self._lora.merge_weights_vjp(dV)
            lora_gradients = {name: lora_gradients[name] + through_norm[name] for name in through_norm}
            gradients |= prefixed("base", base_gradients) | prefixed("lora", lora_gradients)
        dx = base_dx + lora_dx if inputs else None  # type: ignore[operator]
        return dx, gradients

    def _with_dropped(
        self, dy: Array, cache: DoRACache, base_dx: Array | None, gradients: Gradients
    ) -> tuple[Array | None, Gradients]:
        """The gradients of the base, with those of ``w = (x ⊙ M) W`` added, of which y contains ``(c - 1) w``."""
        dw = (cache.c - 1) * dy
        dx, more = self._base.vjp(dw, cache.dropped, parameters=bool(gradients), inputs=base_dx is not None)
        total = {name: gradient + more[name] for name, gradient in gradients.items()}
        return None if base_dx is None or dx is None else base_dx + cache.lora.mask(dx), total

    def merge_to_original_layer(self) -> AffineLayer:
        """A new layer with the weight ``V · m / ‖V‖``; the base is not changed."""
        V = self._base.matrix + self._lora.merge_weights()
        return self._base.with_matrix(V * (self.magnitude / _divisor(V)))

    @property
    def lora_layer(self) -> LoRALayer:
        """The branch."""
        return self._lora

    def _details(self) -> dict[str, str]:
        return super()._details() | {"dora.norm_gradient": str(self.norm_gradient)}

    def _set_branches(self, branches: Mapping[str, LoRALayer]) -> None:
        self._lora = branches["lora"]

    def config(self) -> dict[str, Any]:
        """The base, the branch, and the other arguments of `around`."""
        return {
            "base_layer": self.base_layer,
            "lora_layer": self._lora,
            "freeze_base_layer": self.is_base_layer_frozen,
            "norm_gradient": self.norm_gradient,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new adapter with this base and branch."""
        choices = {name: config[name] for name in ("freeze_base_layer", "norm_gradient")}
        return cls.around(config["base_layer"], config["lora_layer"], **choices)


def _column_norms(V: Array) -> Array:
    """The Euclidean norm of each column, (in, out) -> (out,); analytic, so that a complex step passes through."""
    return np.sqrt((V * V).sum(axis=0))


def _divisor(V: Array) -> Array:
    """The column norms, with 1 for zero columns, which therefore stay zero whatever their magnitude."""
    norms = _column_norms(V)
    return np.where(norms == 0, 1, norms)
