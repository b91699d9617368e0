"""`DyLoRAAdapter`: one adapter, trained at several ranks at once, deployable at any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, final

import numpy as np

from .._typing import RNG, Array, Parts
from .._validation import instance, rank_within
from ..base import FixedAttributes, Layer, prefixed
from ..functions.losses import Loss
from ..kernels import product
from ..layers.lora import LoRALayer
from ..run import Run
from ..training.pairs import train_pairs
from .additive import AdditiveAdapter, Selection
from .rank_choice import RankChoice


@final
class DyLoRAAdapter(FixedAttributes, AdditiveAdapter, RankChoice):
    """``y = base(x) + s (x A[:, :r]) B[:r, :]``, with a new random r for each training pass (Valipour et al. 2022).

    The first components learn to work without the later ones, so one trained adapter can be deployed at any active rank.

    Parameters
    ----------
    base_layer : Layer
        The layer to adapt.
    max_rank : int
        The number of columns of A and rows of B, in 1..min(input_size, output_size).
    active_ranks : sequence of int
        The ranks to train and deploy, strictly ascending, in 1..max_rank. The last is the initial deployment rank.
    alpha : float, default -1
        A negative value means `max_rank`.
    freeze_base_layer : bool, default True
        Whether the base's parameters are frozen.
    mode : {"full", "frozen"}, default "full"
        Which components a pass at rank r trains: ``"full"``, components 1..r; ``"frozen"``, only the block from the
        previous active rank up to r (eq. 10), also under optimizers with state.
    scaling : {"max", "paper", "rslora"}, default "max"
        s at rank r: alpha / max_rank, alpha / r (eq. 7), or alpha / √r.
    rank_distribution : sequence of float, optional
        The probability of each active rank in training; uniform by default. See `geometric`.
    dropout : float, default 0
    rng : seed or numpy.random.Generator, optional
        As in `StandardLoRAAdapter`; the generator also draws the ranks.

    Raises
    ------
    ArgumentError
        If an argument violates the constraints above (ArgumentNullError if `base_layer` or `active_ranks` is None).

    Notes
    -----
    The rank of a pass is the argument ``rank`` of `forward` or `predict`, which may be one for each row. By default, a
    training pass draws one for the whole model, and any other pass uses `current_deployment_rank`. At rank r the pass is
    that of a LoRA whose factors are the slices ``A_r = A[:, :r]`` and ``B_r = B[:r, :]``, so with G = dL/dY::

        H = X A_r,  Y = base(X) + s H B_r
        dB[:r] = s Hᵀ G,  dH = s G B_rᵀ,  dA[:, :r] = Xᵀ dH,  dX = dX_base + dH A_rᵀ

    and dA and dB are exactly zero beyond r. In frozen mode they are also zero up to the previous active rank, whereas Y
    and dX are the same. `AdditiveAdapter` and `LoRALayer` compute all this; `select` picks the slice.

    Examples
    --------
    >>> from lora_np import DenseLayer, DyLoRAAdapter
    >>> adapter = DyLoRAAdapter(DenseLayer(64, 10, rng=0), max_rank=8, active_ranks=[1, 2, 4, 8], rng=1)
    >>> adapter.set_deployment_rank(2)
    >>> merged = adapter.merge_to_original_layer()
    """

    settings = ("current_deployment_rank",)

    def __init__(
        self,
        base_layer: Layer,
        max_rank: int,
        active_ranks: Sequence[int],
        alpha: float = -1.0,
        freeze_base_layer: bool = True,
        *,
        mode: Literal["full", "frozen"] = "full",
        scaling: Literal["max", "paper", "rslora"] = "max",
        rank_distribution: Sequence[float] | None = None,
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        max_rank = rank_within(max_rank, self.input_size, self.output_size, "max_rank")
        self._choose(max_rank, active_ranks, mode, rank_distribution, rng)
        self._lora = self._new_branch(max_rank, alpha, scaling=scaling, dropout=dropout, rng=self._rng)

    @classmethod
    def around(cls, base_layer: Layer, branch: LoRALayer, freeze_base_layer: bool = True, **choices: Any) -> Self:
        """An adapter with a given branch, whose rank is `max_rank`; see `LoRAAdapterBase.around`."""
        adapter = cls.__new__(cls)
        AdditiveAdapter.__init__(adapter, base_layer, freeze_base_layer)
        adapter._lora = adapter.fitted(branch)
        adapter._choose(branch.rank, **choices)
        return adapter

    def select(self, run: Run) -> Selection:
        """The branch at the rank of the pass, or at a separate rank for each row."""
        rank = self.rank_in(run)
        return Selection("lora", self._lora, rank, self.trained_from(rank))

    def trained_parts(self, run: Run) -> Parts:
        """The components of the branch that a pass trains."""
        return prefixed("lora", self.trained_part(self.rank_in(run)))

    @property
    def lora_layer(self) -> LoRALayer:
        """The branch, of rank `max_rank`."""
        return self._lora

    def scaling_at(self, rank: int) -> float:
        """The factor s of the first `rank` components."""
        return self._lora.scaling_at(rank_within(rank, self.max_rank, self.max_rank))

    def outputs_at_ranks(self, input: Any) -> dict[int, Array]:
        """The inference output at every active rank, at about the cost of one: each rank adds its block.

        ``y_r = base(x) + s_r Σ_blocks (x A[:, p:q]) B[p:q, :]``, with p:q the blocks between active ranks up to r.

        Parameters
        ----------
        input : array, shape (..., input_size)

        Returns
        -------
        dict of arrays, shape (..., output_size), by rank
        """
        x = self.check_input(input)
        base = self.base_layer.predict(x)
        A, B = self._lora.matrix_a[:, : self.active_ranks[-1]], self._lora.matrix_b
        h = product(x, A)  # (..., in) @ (in, r) -> (..., r)
        outputs, branch, first = {}, np.zeros_like(base), 0
        for rank in self.active_ranks:
            branch = branch + product(h[..., first:rank], B[first:rank])  # (..., block) @ (block, out) -> (..., out)
            outputs[rank] = base + self._lora.scaling_at(rank) * branch
            first = rank
        return outputs

    def train_with_nested_dropout(
        self,
        inputs: Sequence[Any],
        targets: Sequence[Any],
        epochs: int,
        learning_rate: float,
        loss_function: Loss | Callable[[Array, Array], Any],
        *,
        rank_per: Literal["pass", "row"] = "pass",
        warmup: float | int | None = None,
    ) -> list[float]:
        """Train by gradient descent, one step for each pair of an input and a target, in the given order.

        Parameters
        ----------
        inputs, targets : sequences of arrays
            Of the same length; each input has shape (..., input_size).
        epochs, learning_rate : int, float
        loss_function : Loss, or callable
            A plain scalar function of (predictions, targets) is differentiated numerically (`lora_np.FunctionLoss`).
        rank_per : {"pass", "row"}, default "pass"
            Whether all rows of an input train at the rank of the pass, or each row at its own (`Draw.of_rows`).
        warmup : float or int, optional
            The fraction of the steps, in (0, 1), or their number, at least 1, to train at the highest rank before the
            components are sorted and nested dropout starts; see `lora_np.training.SortedStart`. By default, no warm-up.

        Returns
        -------
        list of float
            The mean loss of each epoch, each loss at the drawn ranks, before its step.

        Raises
        ------
        ArgumentError, InvalidOperationError
            If an argument is invalid, or if ranks by row or a warm-up are requested in frozen mode; nothing is changed.
        NonFiniteError
            If the loss is infinite or NaN; the parameters are those of the last finite loss.
        """
        return train_pairs(self, inputs, targets, epochs, learning_rate, loss_function, rank_per, warmup, self._rng)

    def _details(self) -> dict[str, str]:
        base = sum(array.size for array in self.base_layer.named_parameters(frozen=True).values())
        trained = 0 if self.is_base_layer_frozen else self.base_layer.parameter_count
        sizes = {rank: rank * (self.input_size + self.output_size) for rank in self.active_ranks}
        shares = [f"{rank}: {(size + trained) / (size + base):.1%}" for rank, size in sizes.items()]
        ranks = {"dylora.max_rank": str(self.max_rank), "dylora.share_at_rank": f"{{{', '.join(shares)}}}"}
        return super()._details() | self._rank_details() | ranks

    def _set_branches(self, branches: Mapping[str, LoRALayer]) -> None:
        """Replace the branch; if its rank is lower, it replaces the active ranks above it."""
        branch = branches["lora"]
        rank_within(branch.rank, self.input_size, self.output_size, "max_rank")
        self._lora, self._rng, self._ranks = branch, copy.deepcopy(self._rng), self._ranks.up_to(branch.rank)
        self._deployment_rank = min(self._deployment_rank, self.active_ranks[-1])

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("base_layer", "max_rank", "active_ranks", "alpha", "mode", "rank_distribution")
        config = {name: getattr(self, name) for name in names} | self._lora.dropout_config
        return config | {"freeze_base_layer": self.is_base_layer_frozen, "scaling": self._lora.scaling_rule}


def at_rank(adapter: DyLoRAAdapter, rank: int) -> LoRALayer:
    """The branch at an active rank as a plain layer: the first `rank` components, with ``alpha = scaling_at(rank) · rank``.

    `lora_np.surgery.truncate` cuts by singular values instead, which suits branches that were not trained for the rank.
    """
    instance("adapter", adapter, DyLoRAAdapter, "a DyLoRAAdapter")
    adapter.check_rank(rank)
    return adapter.lora_layer.at_rank(rank)
