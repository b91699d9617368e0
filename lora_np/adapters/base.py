"""`LoRAAdapterBase`: the base class of all adapters, with a base layer and the low-rank branches that adapt it."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from .._validation import mapping, not_none
from ..base import Layer, require_same_sizes
from ..errors import ArgumentError, InvalidOperationError, NotSupportedError
from ..functions.activations import identity
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from ..layers.low_rank import LowRankLayer


class LoRAAdapterBase(Layer):
    """A layer that wraps a base layer and adapts it with a low-rank branch.

    Parameters
    ----------
    base_layer : Layer
        The layer to adapt. It is not copied, and the state of its own `forward` and `backward` is not changed.
    freeze_base_layer : bool, default True
        Whether the base's parameters are frozen; input gradients flow through it in either case.

    Raises
    ------
    ArgumentNullError
        If `base_layer` is None.
    """

    merge_error: ClassVar[type[Exception]] = InvalidOperationError
    """The exception that merging raises if the branch cannot be merged into the weight of the base layer."""

    base_layer: Layer

    def __init__(self, base_layer: Layer, freeze_base_layer: bool = True) -> None:
        not_none("base_layer", base_layer)
        if not isinstance(base_layer, Layer):
            raise ArgumentError(f"base_layer must be a layer, got {base_layer!r}")
        super().__init__(base_layer.input_size, base_layer.output_size, base_layer.dtype)
        self.base_layer = base_layer
        self.frozen = frozenset({"base"} if freeze_base_layer else ())

    @classmethod
    def around(cls, base_layer: Layer, branch: LoRALayer, **choices: Any) -> Self:
        """An adapter with a given branch instead of a new random one.

        Parameters
        ----------
        base_layer : Layer
        branch : LoRALayer
            A branch with the sizes and dtype of the base layer, and any rank. It is not copied.
        **choices
            The constructor's other arguments.

        Raises
        ------
        ArgumentError
            If the branch does not fit the base layer, or if an argument violates the constructor's constraints.
        NotSupportedError
            If the branch of this kind of adapter is not a pair of trained factors.
        """
        raise NotSupportedError(f"the branch of a {cls.__name__} is not a pair of trained factors")

    @property
    def is_base_layer_frozen(self) -> bool:
        """Whether the base layer's parameters are frozen."""
        return "base" in self.frozen

    @property
    @abstractmethod
    def lora_layer(self) -> LowRankLayer:
        """The low-rank branch; if there are several, the current one."""

    @property
    def rank(self) -> int:
        """The rank of `lora_layer`."""
        return self.lora_layer.rank

    @property
    def alpha(self) -> float:
        """The resolved alpha of `lora_layer`, never negative."""
        return self.lora_layer.alpha

    @abstractmethod
    def merge_to_original_layer(self) -> AffineLayer:
        """A new layer of the base's type that computes the same function as the adapter; the base is not changed.

        Raises
        ------
        InvalidOperationError, or NotSupportedError for MultiLoRA
            If the base is not a DenseLayer or FullyConnectedLayer, or if it has an activation.
        """

    def mergeable_base(self) -> AffineLayer:
        """The base layer; raises `merge_error` if a branch cannot be merged into its weight."""
        base = self.base_layer
        if not isinstance(base, AffineLayer):
            raise self.merge_error(
                f"{self.layer_name}: a branch can be merged only into a DenseLayer or FullyConnectedLayer, "
                f"but the base layer is a {type(base).__name__}"
            )
        if base.activation != identity:
            raise self.merge_error(
                f"{self.layer_name}: the base layer has the activation {base.activation.name}, and f(x W + b) + branch(x) "
                "is not a single dense layer; adapt only the linear part: "
                "linear, activation = base_layer.split_activation()"
            )
        return base

    def with_children(self, changed: Mapping[str, Layer]) -> Self:
        """A copy in which the base layer or branches are replaced by layers of the same sizes; all else is shared."""
        mapping("changed", changed)
        for name in changed:
            if name not in self.children():
                raise ArgumentError(f"changed must name children of {self.layer_name}, got {name!r}")
        twin = copy.copy(self)
        if branches := {name: self.fitted(layer) for name, layer in changed.items() if name != "base"}:
            twin._set_branches(branches)
        twin.base_layer = changed.get("base", self.base_layer)
        require_same_sizes("base", twin.base_layer, self)
        return twin

    def _set_branches(self, branches: Mapping[str, LoRALayer]) -> None:
        """Replace branches by name, without changing the adapter of which this one is a shallow copy."""
        raise NotSupportedError(
            f"{self.layer_name}: the branch of a {type(self).__name__} is not a pair of trained factors"
        )

    def with_branches(self, change: Callable[[LoRALayer], LoRALayer]) -> Self:
        """A copy in which each low-rank branch is replaced by the result of `change`; the base layer is shared.

        Parameters
        ----------
        change : callable
            Maps a LoRALayer to one of the same sizes, of any rank.

        Raises
        ------
        NotSupportedError
            If the branches are not pairs of trained factors.
        """
        branches = {
            name: child for name, child in self.children().items() if isinstance(child, LoRALayer) and name != "base"
        }
        twin = copy.copy(self)
        twin._set_branches({name: self.fitted(change(branch)) for name, branch in branches.items()})
        return twin

    def _new_branch(self, rank: int, alpha: float, **choices: Any) -> LoRALayer:
        """A new random branch of the adapter's sizes and dtype."""
        return LoRALayer(self.input_size, self.output_size, rank, alpha, dtype=self.dtype, **choices)

    def fitted(self, branch: Layer) -> LoRALayer:
        """Check that a branch is a LoRALayer of the adapter's sizes and dtype, and set it to the adapter's mode."""
        if not isinstance(branch, LoRALayer):
            raise ArgumentError(f"branch must be a LoRALayer, got {branch!r}")
        require_same_sizes("branch", branch, self)
        branch.is_training = self.is_training
        return branch

    @property
    def supports_training(self) -> bool:
        """Whether the adapter has trainable parameters."""
        return self.lora_layer.supports_training or super().supports_training

    def _listening_children(self) -> Mapping[str, Layer]:
        """The base layer; and the branch if it has dropout, because branches listen to nothing else."""
        branch = self.lora_layer
        return {"base": self.base_layer, "lora": branch} if branch.dropout else {"base": self.base_layer}

    def children(self) -> Mapping[str, Layer]:
        """The base layer and the branch."""
        return {"base": self.base_layer, "lora": self.lora_layer}

    def estimate_flops(self) -> int:
        """The base, the branch, and their sum."""
        return self.base_layer.estimate_flops() + self.lora_layer.estimate_flops() + self.output_size

    def _details(self) -> dict[str, str]:
        return self.lora_layer._details() | {"lora.base_frozen": str(self.is_base_layer_frozen)}
