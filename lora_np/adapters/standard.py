"""LoRA as its authors wrote it: one branch at one rank."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self, final

from .._typing import RNG
from ..base import Layer
from ..layers.lora import LoRALayer
from ..run import Run
from .base import AdditiveAdapter, Selection


@final
class StandardLoRAAdapter(AdditiveAdapter):
    """``y = base(x) + s (x A) B`` (Hu et al. 2021, eq. 3).

    Parameters
    ----------
    base_layer : Layer
        What to adapt.
    rank : int
        r, in 1..min(input_size, output_size).
    alpha : float, default -1
        s = alpha / r; a negative one stands for the rank.
    freeze_base_layer : bool, default True
        Whether the base's parameters stay as they are.
    scaling : {"max", "paper", "rslora"}, default "max"
        ``"rslora"`` makes it s = alpha / √r; the others are the same here.
    rng : seed or numpy.random.Generator, optional
        For the initial A.

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
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        self._lora = LoRALayer(self.input_size, self.output_size, rank, alpha, scaling=scaling, dtype=self.dtype, rng=rng)

    @property
    def lora_layer(self) -> LoRALayer:
        """The branch."""
        return self._lora

    def select(self, run: Run) -> Selection:
        """The branch, whole."""
        return Selection("lora", self._lora)

    def with_branches(self, change: Callable[[LoRALayer], LoRALayer]) -> Self:
        """A copy in which the branch is what `change` makes of it; the base layer is shared."""
        twin = copy.copy(self)
        twin._lora = self.changed(self._lora, change)
        return twin

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
        adapter = cls(config["base_layer"], 1, freeze_base_layer=config["freeze_base_layer"])
        return adapter.with_branches(lambda _: config["lora_layer"])
