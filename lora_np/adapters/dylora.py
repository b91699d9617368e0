"""DyLoRA: one adapter, trained at several ranks at once, deployable at any of them."""

from __future__ import annotations

import copy
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, final, overload

import numpy as np

from .._typing import RNG, Array
from .._validation import (
    ascending_ranks,
    finite_float,
    fraction,
    generator,
    integer,
    one_of,
    rank_within,
    real_array,
)
from ..base import Layer
from ..errors import ArgumentError, InvalidOperationError
from ..functions.losses import Loss
from ..kernels import product
from ..layers.lora import LoRALayer
from ..run import Draw, Run
from ..training.nested_dropout import nested_dropout
from .base import AdditiveAdapter, Selection


@final
class DyLoRAAdapter(AdditiveAdapter):
    """``y = base(x) + s (x A[:, :r]) B[:r, :]``, with r drawn anew for each training pass (Valipour et al. 2022).

    Because the first components learn to do without the later ones, one trained adapter serves at every active rank.

    Parameters
    ----------
    base_layer : Layer
        What to adapt.
    max_rank : int
        Columns of A and rows of B, in 1..min(input_size, output_size).
    active_ranks : sequence of int
        The ranks to train and deploy, strictly ascending, in 1..max_rank. The last is the first deployment rank.
    alpha : float, default -1
        A negative one stands for `max_rank`.
    freeze_base_layer : bool, default True
        Whether the base's parameters stay as they are.
    mode : {"full", "frozen"}, default "full"
        Which components a pass at rank r trains: ``"full"``, components 1..r; ``"frozen"``, only the block from the
        previous active rank up to r (eq. 10), also under optimizers with a state.
    scaling : {"max", "paper", "rslora"}, default "max"
        s at rank r: alpha / max_rank, alpha / r (eq. 7), or alpha / √r.
    rank_distribution : sequence of float, optional
        The probability of each active rank in training; uniform if left out. See `geometric`.
    rng : seed or numpy.random.Generator, optional
        For the initial A and for the ranks.

    Raises
    ------
    ArgumentNullError
        `base_layer` or `active_ranks` is None.
    ArgumentError
        A rule above is broken.

    Notes
    -----
    The rank of a pass is the ``rank`` given to `forward` or `predict`, which may be one for each row. Where none is given,
    a training pass draws one for all layers of the model, and any other takes `current_deployment_rank`.

    Examples
    --------
    >>> from lora_np import DenseLayer, DyLoRAAdapter
    >>> adapter = DyLoRAAdapter(DenseLayer(64, 10, rng=0), max_rank=8, active_ranks=[1, 2, 4, 8], rng=1)
    >>> adapter.set_deployment_rank(2)
    >>> merged = adapter.merge_to_original_layer()
    """

    settings = ("current_deployment_rank",)
    listens_to = "rank"

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
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        max_rank = rank_within(max_rank, self.input_size, self.output_size, "max_rank")
        self._set_ranks(ascending_ranks("active_ranks", active_ranks, max_rank), rank_distribution)
        self.mode = one_of("mode", mode, ("full", "frozen"))
        self._rng = generator(rng)
        self._lora = LoRALayer(
            self.input_size, self.output_size, max_rank, alpha, scaling=scaling, dtype=self.dtype, rng=self._rng
        )
        self._deployment_rank = self._active_ranks[-1]

    def _set_ranks(self, ranks: tuple[int, ...], distribution: Sequence[float] | None) -> None:
        self._active_ranks = ranks
        self._distribution = _probabilities(distribution, len(ranks))
        sums = np.cumsum(self._distribution)
        self._cumulative: list[float] = (sums / sums[-1]).tolist()  # exactly 1 from the last rank on that has a probability

    def rank_in(self, run: Run) -> int | Array:
        """The rank that a pass uses here: a number, or one for each entry of the first axis."""
        rank = run.rank(self) if callable(run.rank) else run.rank
        if rank is None and run.training:
            raise InvalidOperationError(f"{self.layer_name}: a training pass needs a rank; `new_run` draws one")
        return self._deployment_rank if rank is None else rank

    def select(self, run: Run) -> Selection:
        """The branch at the rank of the pass, or at each row's own."""
        rank = self.rank_in(run)
        first = self._previous(rank) if self.mode == "frozen" and not isinstance(rank, np.ndarray) else 0
        return Selection("lora", self._lora, rank, first)

    def draw(self) -> Draw:
        """One random number, from which every layer of the pass takes its rank."""
        return Draw(self._rng.random())

    def check_run(self, run: Run) -> None:
        """Raise ArgumentError where a rank is not active, InvalidOperationError for ranks of rows in frozen training."""
        rank = None if run.rank is None else self.rank_in(run)
        if not isinstance(rank, np.ndarray):
            _ = rank is None or self._active("rank", rank)
            return
        if run.training:
            self._require_row_ranks()
        inactive = rank[~np.isin(rank, self._active_ranks)]
        if inactive.size:
            raise ArgumentError(f"rank must be one of the active ranks {self._active_ranks}, got {inactive[0]}")

    @overload
    def rank_at(self, quantile: float) -> int: ...
    @overload
    def rank_at(self, quantile: Array) -> Array: ...
    def rank_at(self, quantile: float | Array) -> int | Array:
        """The active rank at a quantile, in [0, 1), of the rank distribution, or at each of several."""
        if isinstance(quantile, np.ndarray):
            return np.array(self._active_ranks)[np.searchsorted(self._cumulative, quantile, side="right")]
        return self._active_ranks[bisect_right(self._cumulative, fraction("quantile", quantile))]

    def _require_row_ranks(self) -> None:
        if self.mode == "frozen":
            raise InvalidOperationError(
                f"{self.layer_name}: mode must be 'full' where each row has a rank of its own, got 'frozen': "
                "it trains one block of components in a pass"
            )

    def _previous(self, rank: int) -> int:
        index = self._active_ranks.index(rank)
        return self._active_ranks[index - 1] if index else 0

    @property
    def lora_layer(self) -> LoRALayer:
        """The branch, of rank `max_rank`."""
        return self._lora

    @property
    def max_rank(self) -> int:
        """The number of components."""
        return self._lora.rank

    @property
    def active_ranks(self) -> tuple[int, ...]:
        """The ranks to train and deploy, ascending."""
        return self._active_ranks

    @property
    def rank_distribution(self) -> tuple[float, ...]:
        """The probability of each active rank in training."""
        return self._distribution

    @property
    def current_deployment_rank(self) -> int:
        """The rank of `predict`, of evaluation mode and of merging; setting one that is not active raises ArgumentError."""
        return self._deployment_rank

    @current_deployment_rank.setter
    def current_deployment_rank(self, rank: int) -> None:
        self._deployment_rank = self._active("rank", rank)

    def set_deployment_rank(self, rank: int) -> None:
        """Set `current_deployment_rank`."""
        self.current_deployment_rank = rank

    def _active(self, name: str, rank: object) -> int:
        number = integer(name, rank)
        if number not in self._active_ranks:
            raise ArgumentError(f"{name} must be one of the active ranks {self._active_ranks}, got {number}")
        return number

    def scaling_at(self, rank: int) -> float:
        """The factor s in front of the product of the first `rank` components."""
        return self._lora.scaling_at(rank_within(rank, self.max_rank, self.max_rank))

    def outputs_at_ranks(self, input: Any) -> dict[int, Array]:
        """The inference output at every active rank, for about the price of one: each rank adds its block.

        Parameters
        ----------
        input : array, shape (..., input_size)

        Returns
        -------
        dict of arrays, shape (..., output_size), by rank

        Notes
        -----
        ``y_r = base(x) + s_r Σ_blocks (x A[:, p:q]) B[p:q, :]``, with p:q the blocks between active ranks up to r.
        """
        x = self.check_input(input)
        base = self.base_layer.predict(x)
        A, B = self._lora.matrix_a[:, : self._active_ranks[-1]], self._lora.matrix_b
        h = product(x, A)  # (..., in) @ (in, r) -> (..., r)
        outputs, branch, first = {}, np.zeros_like(base), 0
        for rank in self._active_ranks:
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
    ) -> list[float]:
        """Train by gradient descent, one step for each pair of an input and a target, in the given order.

        Parameters
        ----------
        inputs : sequence of arrays, each of shape (..., input_size)
        targets : sequence of arrays, as many
        epochs : int
            How often to go through the pairs.
        learning_rate : float
            The step size.
        loss_function : Loss, or callable
            What to minimise. A plain function of (predictions, targets) that returns a scalar is differentiated
            numerically with respect to the predictions: two evaluations for each element (`lora_np.FunctionLoss`).
        rank_per : {"pass", "row"}, default "pass"
            Whether all rows of an input train at the rank of the pass, or each at a rank of its own (`Draw.of_rows`).

        Returns
        -------
        list of float
            The mean loss of each epoch, each loss taken at its own drawn ranks, before its step.

        Raises
        ------
        ArgumentError
            Bad input, before the first step: nothing is changed.
        InvalidOperationError
            Ranks for each row in frozen mode.
        NonFiniteError
            The loss is infinite or NaN; the parameters are those with which it was last finite.
        """
        return nested_dropout(self, inputs, targets, epochs, learning_rate, loss_function, rank_per=rank_per, rng=self._rng)

    def estimate_flops(self) -> int:
        """The base, the branch at the deployment rank, and adding them."""
        branch = self._lora.estimate_flops() * self._deployment_rank // self.max_rank
        return self.base_layer.estimate_flops() + branch + self.output_size

    def details(self) -> dict[str, str]:
        """The branch's details and DyLoRA's own."""
        return super().details() | {
            "dylora.max_rank": str(self.max_rank),
            "dylora.active_ranks": str(list(self._active_ranks)),
            "dylora.current_deployment_rank": str(self._deployment_rank),
            "dylora.mode": self.mode,
        }

    def with_branches(self, change: Callable[[LoRALayer], LoRALayer]) -> Self:
        """A copy in which the branch is what `change` makes of it; the base layer is shared.

        A lower rank takes the place of the active ranks above it; a higher one leaves them as they are.
        """
        branch = self.changed(self._lora, change)
        rank_within(branch.rank, self.input_size, self.output_size, "max_rank")
        kept = [rank for rank in self._active_ranks if rank <= branch.rank]
        lost = self._active_ranks[len(kept) :]
        ranks = kept + [branch.rank] * (bool(lost) and branch.rank not in kept)
        weights = list(self.rank_distribution[: len(kept)]) + [0.0] * (len(ranks) - len(kept))
        weights[-1] += sum(self.rank_distribution[len(kept) :])
        twin = copy.copy(self)
        twin._lora, twin._rng = branch, copy.deepcopy(self._rng)
        twin._set_ranks(tuple(ranks), weights)
        twin.current_deployment_rank = min(self._deployment_rank, ranks[-1])
        return twin

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "base_layer": self.base_layer,
            "max_rank": self.max_rank,
            "active_ranks": self._active_ranks,
            "alpha": self.alpha,
            "freeze_base_layer": self.is_base_layer_frozen,
            "mode": self.mode,
            "scaling": self._lora.scaling_rule,
            "rank_distribution": self.rank_distribution,
        }


def geometric(ranks: Sequence[int], p: float = 0.15) -> tuple[float, ...]:
    """Probabilities proportional to ``p (1 - p)^(rank - 1)``: the other rank distribution of Valipour et al. (2022).

    Parameters
    ----------
    ranks : sequence of int
        The active ranks.
    p : float, default 0.15
        In (0, 1): the larger, the more often the small ranks train.
    """
    ranks = ascending_ranks("ranks", ranks, sys.maxsize)
    p = finite_float("p", p)
    if not 0 < p < 1:
        raise ArgumentError(f"p must lie between 0 and 1, got {p}")
    weights = (1 - p) ** (np.array(ranks) - float(ranks[0]))  # relative to the first, so that not all of them vanish
    return tuple(float(weight) for weight in weights / weights.sum())


def _probabilities(distribution: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Probabilities of the active ranks that sum to one; those that do already stay as they are."""
    weights = np.ones(count) if distribution is None else real_array("rank_distribution", distribution, float)
    if weights.shape != (count,):
        raise ArgumentError(f"rank_distribution must have one probability for each of {count} ranks, got {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ArgumentError(f"rank_distribution must be probabilities, got {distribution}")
    total = float(weights.sum())
    return tuple(float(weight) for weight in (weights if abs(total - 1) < 1e-12 else weights / total))
