"""The ways of training that the study compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lora_np import Adam, DyLoRAAdapter, Layer, Optimizer, StandardLoRAAdapter, find
from lora_np.surgery import canonicalize
from lora_np.training import Progress, RankSchedule, SortedStart, rank_per_row, shared_rank

RANKS = (1, 2, 4, 8)
SHARE = 1 / 24
"""The warm-up of `SortedStart`, as a fraction of the steps."""
FIRST_MORE = (2, 1, 1, 1)
"""Weights of the ranks: the first is trained twice as often."""

Restart = Callable[[Layer, Optimizer], object]


class Way(NamedTuple):
    """How to train adapters for every rank."""

    schedule: RankSchedule | SortedStart | None
    """None: one LoRA for each rank."""
    weights: tuple[float, ...] = (1, 1, 1, 1)
    epochs: float = 1
    """As a multiple of those of the run."""
    beta2: float = 0.999
    """Of Adam."""
    restart: Restart | None = None
    """What is done once, after `SHARE` of the steps, in ways that are not in the library."""
    warms_up: bool = False
    """Whether the steps before `restart` are taken at the highest rank; a dedicated LoRA has a `SortedStart` instead."""
    decays: bool = True
    """Whether the learning rate falls linearly to zero."""
    cut: Callable[[DyLoRAAdapter], object] | None = None
    """What is done with a LoRA of the highest rank, whose first components are then used at each rank."""

    @property
    def is_dedicated(self) -> bool:
        """Whether each rank has a separate LoRA."""
        return self.schedule is None and self.cut is None

    @property
    def cost(self) -> float:
        """The steps of all trainings together, as a multiple of those of the run."""
        return self.epochs * (len(RANKS) if self.is_dedicated else 1)


def forget(model: Layer, optimizer: Optimizer) -> None:
    """Start the optimizer's state again, and change nothing else."""
    optimizer.reset()


def balance(model: Layer, optimizer: Optimizer) -> None:
    """Sort the components, and share each singular value equally between A and B."""
    for adapter in find(model, DyLoRAAdapter).values():
        by_svd(adapter)
    optimizer.reset()


def by_svd(adapter: DyLoRAAdapter) -> None:
    """Sort the components of a trained adapter, so that its slices are its best approximations."""
    adapter.lora_layer.load_weights(canonicalize(adapter.lora_layer).named_parameters())


def nothing(adapter: DyLoRAAdapter) -> None:
    """Leave the components as they are."""


LORA, STEP, ROW, SORTED = "one LoRA per rank", "a rank per step", "a rank per row", "sorted start, then a rank per row"
QUARTER = f"{LORA}, 1/4 of the steps"
SORTED_LORA = f"{LORA}, sorted start"
BALANCED, SVD = "balanced start, then a rank per row", "rank-8 LoRA, truncated by SVD"
MAIN: dict[str, Way] = {
    STEP: Way(shared_rank),
    ROW: Way(rank_per_row),
    SORTED: Way(SortedStart()),
    BALANCED: Way(rank_per_row, restart=balance, warms_up=True),
    LORA: Way(None),
    QUARTER: Way(None, epochs=1 / len(RANKS)),
    f"{SORTED}, 2:1:1:1": Way(SortedStart(), FIRST_MORE),
    f"{SORTED}, beta2 .95": Way(SortedStart(), beta2=0.95),
    f"{STEP}, beta2 .95": Way(shared_rank, beta2=0.95),
    f"{ROW}, beta2 .95": Way(rank_per_row, beta2=0.95),
    "rank-8 LoRA, first components": Way(None, cut=nothing),
    SVD: Way(None, cut=by_svd),
}
"""The most important comparisons."""
MORE: dict[str, Way] = {
    "sorted start, then a rank per step": Way(SortedStart(then=shared_rank)),
    f"{ROW}, optimizer reset": Way(rank_per_row, restart=forget),
    f"{STEP}, optimizer reset": Way(shared_rank, restart=forget),
    "warm-up and optimizer reset, then a rank per row": Way(rank_per_row, restart=forget, warms_up=True),
    SORTED_LORA: Way(None, warms_up=True),
    f"{SORTED_LORA}, 1/4 of the steps": Way(None, epochs=1 / len(RANKS), warms_up=True),
    f"{LORA}, beta2 .95": Way(None, beta2=0.95),
    f"{LORA}, beta2 .95, 1/4 of the steps": Way(None, epochs=1 / len(RANKS), beta2=0.95),
    f"{SORTED}, warm-up 1/96": Way(SortedStart(1 / 96)),
    f"{SORTED}, warm-up 1/12": Way(SortedStart(1 / 12)),
    f"{SORTED}, warm-up 1/6": Way(SortedStart(1 / 6)),
    f"{SORTED}, warm-up 1/3": Way(SortedStart(1 / 3)),
    f"{STEP}, 2:1:1:1": Way(shared_rank, FIRST_MORE),
    f"{ROW}, 2:1:1:1": Way(rank_per_row, FIRST_MORE),
    f"{STEP}, constant learning rate": Way(shared_rank, decays=False),
    f"{SORTED}, constant learning rate": Way(SortedStart(), decays=False),
    f"{SORTED}, 2:1:1:1, beta2 .95": Way(SortedStart(), FIRST_MORE, beta2=0.95),
}
"""What a part of the gain is due to, and the settings."""
WAYS = MAIN | MORE


class Started:
    """A rank schedule with a restart after a share of the steps, as a schedule and a callback."""

    def __init__(self, way: Way, optimizer: Optimizer, steps: int) -> None:
        self.way, self.optimizer, self.left = way, optimizer, max(1, round(SHARE * steps))

    def rank(self, adapters: Sequence[Any], rng: np.random.Generator, rows: int) -> Any:
        """The rank of a step."""
        if self.left > 0 and self.way.warms_up:
            return lambda layer: layer.max_rank
        return self.way.schedule(adapters, rng, rows)  # type: ignore[misc, operator]

    def after(self, progress: Progress) -> None:
        """The restart after the last step before it."""
        self.left -= 1
        if self.left == 0 and self.way.restart is not None:
            self.way.restart(progress.model, self.optimizer)


def options_of(way: Way, steps: int, rate: float) -> tuple[Optimizer, dict[str, Any]]:
    """The optimizer of a training run, and the arguments of `fit` for the ranks."""
    optimizer = Adam(rate, beta2=way.beta2)
    if way.restart is not None:
        started = Started(way, optimizer, steps)
        return optimizer, {"rank_schedule": started.rank, "callbacks": [started.after]}
    if way.schedule is None:
        return optimizer, {"rank_schedule": SortedStart()} if way.warms_up else {}
    return optimizer, {"rank_schedule": way.schedule}


def adapter_of(way: Way, rank: int, rng: np.random.Generator) -> Callable[[Layer], Layer]:
    """Adapts a layer for all ranks, or for one; a smaller layer has its full rank instead of those above it."""
    if way.is_dedicated:
        return partial(_dedicated, rank=rank, rng=rng, sorts=way.warms_up)
    return partial(_nested, weights=way.weights if way.cut is None else (0, 0, 0, 1), rng=rng)


def _dedicated(layer: Layer, rank: int, rng: np.random.Generator, *, sorts: bool) -> Layer:
    rank = min(rank, layer.input_size, layer.output_size)
    return DyLoRAAdapter(layer, rank, [rank], rng=rng) if sorts else StandardLoRAAdapter(layer, rank, rng=rng)


def _nested(layer: Layer, weights: tuple[float, ...], rng: np.random.Generator) -> Layer:
    limit = min(layer.input_size, layer.output_size)
    ranks = sorted({min(rank, limit) for rank in RANKS})
    return DyLoRAAdapter(layer, ranks[-1], ranks, rank_distribution=weights, rng=rng)


def deploy(model: Layer, rank: int) -> None:
    """Let all adapters predict at a rank, or at their full rank if it is lower."""
    for adapter in find(model, DyLoRAAdapter).values():
        adapter.set_deployment_rank(min(rank, adapter.max_rank))
