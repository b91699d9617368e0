"""`AdditiveAdapter`: ``y = base(x) + branch(x)``, with a rule that picks the branch and its rank for each pass."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, Protocol

import numpy as np

from .._typing import Array, Cache, Gradients
from ..base import prefixed
from ..kernels import add
from ..layers.dense import AffineLayer
from ..layers.low_rank import LowRankLayer
from ..run import INFERENCE, Run
from .base import LoRAAdapterBase


class Branch(Protocol):
    """The function that an adapter adds to its base: a LowRankLayer, or the branches of all tasks in a mixed batch."""

    def apply(self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0) -> tuple[Array, Cache]:
        """The output, and a cache for `vjp`; see `LowRankLayer.apply`."""

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The gradients of the input and of the parameters; see `Layer.vjp`."""


class Selection(NamedTuple):
    """The result of `AdditiveAdapter.select`."""

    name: str
    """The branch's name among the children."""
    branch: Branch
    rank: int | Array | None = None
    """The number of components to use, for the pass or for each entry along the first axis; None means all."""
    trained_from: int = 0
    """The index of the first component that gets a gradient."""


class AdapterCache(NamedTuple):
    """The cache for `AdditiveAdapter.vjp`."""

    base: Cache
    name: str
    branch: Branch
    branch_cache: Cache


class AdditiveAdapter(LoRAAdapterBase):
    """``y = base(x) + branch(x)``, where `select` picks the branch for each pass.

    Notes
    -----
    Base and branch receive the same X and the same G = dL/dY, so ``dX = dX_base + dX_branch``, and each computes the
    gradients of its own parameters.
    """

    @abstractmethod
    def select(self, run: Run) -> Selection:
        """The branch and the rank for one pass."""

    def apply(self, x: Array, run: Run) -> tuple[Array, AdapterCache]:
        """``y = base(x) + branch(x)``."""
        name, branch, rank, trained_from = self.select(run)
        base_y, base_cache = self.base_layer.apply(x, run)
        branch_y, branch_cache = branch.apply(x, run, rank=rank, trained_from=trained_from)
        return add(base_y, branch_y), AdapterCache(base_cache, name, branch, branch_cache)

    def vjp(
        self, dy: Array, cache: AdapterCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dx = dx_base + dx_branch``."""
        base_cache, name, branch, branch_cache = cache
        trains_base = parameters and not self.is_base_layer_frozen
        base_dx, base_gradients = self.base_layer.vjp(dy, base_cache, parameters=trains_base, inputs=inputs)
        branch_dx, branch_gradients = branch.vjp(dy, branch_cache, parameters=parameters, inputs=inputs)
        dx = None if base_dx is None or branch_dx is None else add(base_dx, branch_dx)
        return dx, (prefixed("base", base_gradients) if trains_base else {}) | prefixed(name, branch_gradients)

    def merge_to_original_layer(self) -> AffineLayer:
        """A new layer with ``W + s A B`` of the selected branch and rank, in the base's layout; the base is not changed.

        Raises
        ------
        InvalidOperationError, or NotSupportedError for MultiLoRA
            If the base is not a DenseLayer or FullyConnectedLayer, or if it has an activation.
        """
        base, (branch, rank) = self.mergeable_base(), self._deployed()
        return base.with_matrix(base.matrix + branch.merge_weights(rank=rank))

    def estimate_flops(self) -> int:
        """The base, the selected branch at its rank, and their sum."""
        branch, rank = self._deployed()
        flops = branch.estimate_flops() * rank // branch.rank
        return self.base_layer.estimate_flops() + flops + self.output_size

    def _deployed(self) -> tuple[LowRankLayer, int]:
        """The branch and the rank that `predict` uses by default."""
        chosen = self.select(INFERENCE)
        assert isinstance(chosen.branch, LowRankLayer)  # without tasks there is no mixed batch
        assert not isinstance(chosen.rank, np.ndarray)
        return chosen.branch, chosen.branch.rank if chosen.rank is None else chosen.rank
