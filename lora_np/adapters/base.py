"""What adapters share: a base layer, and branches that are added to it.

An adapter is a base layer, a branch, and a rule that picks (branch, rank) for this call: `select`. Forward, backward and
merge are written here, once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, Protocol, Self

import numpy as np

from .._typing import Array, Cache, Gradients, Parts
from .._validation import not_none
from ..base import Layer, prefixed
from ..errors import ArgumentError, InvalidOperationError, NotSupportedError
from ..functions.activations import identity
from ..kernels import add
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer, LowRankLayer
from ..run import INFERENCE, Run


class LoRAAdapterBase(Layer):
    """A layer around a base layer, with a low-rank part that adapts it.

    Parameters
    ----------
    base_layer : Layer
        What to adapt. It is not copied, and its own state is not touched.
    freeze_base_layer : bool, default True
        Whether its parameters stay as they are; the gradient of the input flows through it all the same.

    Raises
    ------
    ArgumentNullError
        There is no base layer.
    """

    merge_error: ClassVar[type[Exception]] = InvalidOperationError
    """What merging raises when the base layer cannot take the branch into its weight."""

    def __init__(self, base_layer: Layer, freeze_base_layer: bool = True) -> None:
        not_none("base_layer", base_layer)
        if not isinstance(base_layer, Layer):
            raise ArgumentError(f"base_layer must be a layer, got {base_layer!r}")
        super().__init__(base_layer.input_size, base_layer.output_size, base_layer.dtype)
        self.base_layer = base_layer
        self.frozen_children = frozenset({"base"} if freeze_base_layer else ())

    @property
    def is_base_layer_frozen(self) -> bool:
        """Whether the base layer's parameters stay as they are."""
        return "base" in self.frozen_children

    @property
    @abstractmethod
    def lora_layer(self) -> LowRankLayer:
        """The low-rank branch; the current one where there are several."""

    @property
    def rank(self) -> int:
        """The rank of `lora_layer`."""
        return self.lora_layer.rank

    @property
    def alpha(self) -> float:
        """The alpha of `lora_layer`, resolved: never the -1 that stands for the rank."""
        return self.lora_layer.alpha

    @abstractmethod
    def merge_to_original_layer(self) -> AffineLayer:
        """A new layer of the base's type that gives what the adapter gives; the base is untouched.

        Raises
        ------
        InvalidOperationError, or NotSupportedError for MultiLoRA
            The base is not a DenseLayer or FullyConnectedLayer, or it has an activation.
        """

    def mergeable_base(self) -> AffineLayer:
        """The base layer, where a branch can be taken into its weight."""
        base = self.base_layer
        if not isinstance(base, AffineLayer):
            raise self.merge_error(
                f"{self.layer_name}: only a DenseLayer or FullyConnectedLayer can take the branch into its weight, "
                f"and the base layer is a {type(base).__name__}"
            )
        if base.activation != identity:
            raise self.merge_error(
                f"{self.layer_name}: f(x W + b) + branch(x) is not one dense layer, and the base layer has the activation "
                f"{base.activation.name}; adapt the linear part alone: "
                "linear, activation = base_layer.split_activation()"
            )
        return base

    def with_branches(self, change: Callable[[LoRALayer], LoRALayer]) -> Self:
        """A copy in which each low-rank branch is what `change` makes of it; the base layer is shared.

        Parameters
        ----------
        change : callable
            Takes a LoRALayer and returns one of the same sizes, of any rank.

        Raises
        ------
        NotSupportedError
            The branches are not of the kind A B.
        """
        raise NotSupportedError(
            f"{self.layer_name}: the branch of a {type(self).__name__} is not a pair of trained factors"
        )

    def changed(self, branch: LoRALayer, change: Callable[[LoRALayer], LoRALayer]) -> LoRALayer:
        """What `change` makes of a branch, after a check that it fits."""
        new = change(branch)
        if not isinstance(new, LoRALayer):
            raise ArgumentError(f"change must give a LoRALayer, got {new!r}")
        if (new.input_size, new.output_size, new.dtype) != (self.input_size, self.output_size, self.dtype):
            raise ArgumentError(f"change must keep sizes and dtype of {branch!r}, got {new!r}")
        new.is_training = self.is_training
        return new

    @property
    def supports_training(self) -> bool:
        """Whether there are trainable parameters: the branch has some."""
        return self.lora_layer.supports_training or super().supports_training

    def listeners(self) -> tuple[Layer, ...]:
        """Those of the base layer, and the adapter itself: branches, which may be thousands, read nothing."""
        return (*self.base_layer.listeners(), self) if self.listens_to else self.base_layer.listeners()

    def children(self) -> Mapping[str, Layer]:
        """The base layer and the branch."""
        return {"base": self.base_layer, "lora": self.lora_layer}

    def estimate_flops(self) -> int:
        """The base, the branch, and adding them."""
        return self.base_layer.estimate_flops() + self.lora_layer.estimate_flops() + self.output_size

    def details(self) -> dict[str, str]:
        """The branch's details, and whether the base is frozen."""
        return self.lora_layer.details() | {"lora.base_frozen": str(self.is_base_layer_frozen)}


class Branch(Protocol):
    """What an adapter adds to its base: a LowRankLayer, or those of all tasks in a mixed batch."""

    def apply(self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0) -> tuple[Array, Cache]:
        """The output, and what `vjp` needs; see `LowRankLayer.apply`."""

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The gradients of the input and of the parameters; see `Layer.vjp`."""

    def active_parts(self, cache: Cache) -> Parts:
        """The part of each array that trains; see `Layer.active_parts`."""


class Selection(NamedTuple):
    """What `AdditiveAdapter.select` picks."""

    name: str
    """The branch's name among the children."""
    branch: Branch
    rank: int | Array | None = None
    """How many of its components take part, in the pass or in each entry of the first axis; None for all."""
    trained_from: int = 0
    """The first component that gets a gradient."""


class AdditiveAdapter(LoRAAdapterBase):
    """``y = base(x) + branch(x)``, the branch being what `select` picks for this pass.

    Notes
    -----
    Both parts see the same X and the same G = dL/dY, so ``dX = dX_base + dX_branch``, and each gives its own parameters
    their gradients.
    """

    @abstractmethod
    def select(self, run: Run) -> Selection:
        """The branch and the rank for one pass."""

    def apply(self, x: Array, run: Run) -> tuple[Array, Cache]:
        """``y = base(x) + branch(x)``."""
        name, branch, rank, trained_from = self.select(run)
        base_y, base_cache = self.base_layer.apply(x, run)
        branch_y, branch_cache = branch.apply(x, run, rank=rank, trained_from=trained_from)
        return add(base_y, branch_y), (base_cache, name, branch, branch_cache)

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dx = dx_base + dx_branch``."""
        base_cache, name, branch, branch_cache = cache
        trains_base = parameters and not self.is_base_layer_frozen
        base_dx, base_gradients = self.base_layer.vjp(dy, base_cache, parameters=trains_base, inputs=inputs)
        branch_dx, own = branch.vjp(dy, branch_cache, parameters=parameters, inputs=inputs)
        dx = None if base_dx is None or branch_dx is None else add(base_dx, branch_dx)
        gradients = prefixed(name, own)
        return dx, prefixed("base", base_gradients) | gradients if trains_base else gradients

    def active_parts(self, cache: Cache) -> Parts:
        """The parts of the base, where it trains, and of the branch."""
        base_cache, name, branch, branch_cache = cache
        base = {} if self.is_base_layer_frozen else prefixed("base", self.base_layer.active_parts(base_cache))
        return base | prefixed(name, branch.active_parts(branch_cache))

    def merge_to_original_layer(self) -> AffineLayer:
        """A new layer with ``W + s A B`` of the selected branch and rank, in the base's layout; the base is untouched.

        Raises
        ------
        InvalidOperationError, or NotSupportedError for MultiLoRA
            The base is not a DenseLayer or FullyConnectedLayer, or it has an activation.
        """
        base, chosen = self.mergeable_base(), self.select(INFERENCE)
        assert isinstance(chosen.branch, LowRankLayer)  # no pass, no mixed batch
        assert not isinstance(chosen.rank, np.ndarray)
        return base.with_matrix(base.matrix + chosen.branch.merge_weights(rank=chosen.rank))
