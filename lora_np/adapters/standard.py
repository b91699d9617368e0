"""`StandardLoRAAdapter`: LoRA as in the original paper, one branch at one rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

from .._typing import RNG
from ..base import Layer
from ..layers.lora import LoRALayer
from ..run import Run
from .additive import AdditiveAdapter, Selection


@final
class StandardLoRAAdapter(AdditiveAdapter):
    """``y = base(x) + s (x A) B`` (Hu et al. 2021, eq. 3).

    Parameters
    ----------
    base_layer : Layer
        The layer to adapt.
    rank : int
        r, in 1..min(input_size, output_size).
    alpha : float, default -1
        s = alpha / r. A negative value means `rank`.
    freeze_base_layer : bool, default True
        Whether the base's parameters are frozen.
    scaling : {"max", "paper", "rslora"}, default "max"
        With ``"rslora"``, s = alpha / √r; the other two are equal here.
    dropout : float, default 0
        p, in [0, 1), for the input of the branch in training passes; see `LoRALayer`.
    rng : seed or numpy.random.Generator, optional
        For the initial A, and for the masks of dropout.

    Notes
    -----
    Forward, backward and merge are those of `AdditiveAdapter` with a `LoRALayer` as the branch::

        Y = base(X) + s H B,  H = X A
        dB = s Hᵀ G,  dH = s G Bᵀ,  dA = Xᵀ dH,  dX = dX_base + dH Aᵀ

    Examples
    --------
    >>> from lora_np import DenseLayer, StandardLoRAAdapter
    >>> StandardLoRAAdapter(DenseLayer(64, 10, rng=0), rank=4, rng=1)
    StandardLoRAAdapter(64 -> 10, rank=4, alpha=4, scaling=1, base_frozen=True, 296 of 946 parameters train)
    """

    def __init__(
        self,
        base_layer: Layer,
        rank: int,
        alpha: float = -1.0,
        freeze_base_layer: bool = True,
        *,
        scaling: str = "max",
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        self._lora = self._new_branch(rank, alpha, scaling=scaling, dropout=dropout, rng=rng)

    @classmethod
    def around(  # type: ignore[override]  # each kind of adapter has its own choices
        cls, base_layer: Layer, branch: LoRALayer, freeze_base_layer: bool = True
    ) -> Self:
        """An adapter with a given branch; see `LoRAAdapterBase.around`."""
        adapter = cls.__new__(cls)
        AdditiveAdapter.__init__(adapter, base_layer, freeze_base_layer)
        adapter._lora = adapter.fitted(branch)
        return adapter

    @property
    def lora_layer(self) -> LoRALayer:
        """The branch."""
        return self._lora

    def select(self, run: Run) -> Selection:
        """The branch, at its full rank."""
        return Selection("lora", self._lora)

    def _set_branches(self, branches: Mapping[str, LoRALayer]) -> None:
        self._lora = branches["lora"]

    def config(self) -> dict[str, Any]:
        """The base, the branch, and whether the base is frozen."""
        return {
            "base_layer": self.base_layer,
            "lora_layer": self._lora,
            "freeze_base_layer": self.is_base_layer_frozen,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new adapter with this base and branch."""
        return cls.around(config["base_layer"], config["lora_layer"], config["freeze_base_layer"])
