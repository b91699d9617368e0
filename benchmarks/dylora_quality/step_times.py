"""The time of a step with a rank per step and with a rank per row: python -m benchmarks.dylora_quality.step_times."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from lora_np import (
    SGD,
    DenseLayer,
    DyLoRAAdapter,
    Layer,
    MeanSquaredError,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    find,
)
from lora_np.training import RankSchedule, rank_per_row, shared_rank
from lora_np.training.step import Descent

from .ways import RANKS

SIZES = {"16 x 128 x 128, 3 layers": (16, 128, 3), "32 x 1024 x 1024": (32, 1024, 1), "256 x 1024 x 1024": (256, 1024, 1)}


def step_times(rounds: int) -> None:
    """Median milliseconds of a training step in float32, with the kinds interleaved."""
    kinds: dict[str, RankSchedule | None] = {
        "rank-8 LoRA": None,
        "rank per step": shared_rank,
        "rank per row": rank_per_row,
    }
    table = {}
    for size, (rows, width, depth) in SIZES.items():
        random = np.random.default_rng(0)
        x, target = (random.normal(size=(rows, width)).astype(np.float32) for _ in range(2))
        base = Sequential([DenseLayer(width, width, dtype=np.float32, rng=random) for _ in range(depth)])
        steps = {kind: _step(base, schedule, x, target) for kind, schedule in kinds.items()}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, step in steps.items():
                start = time.perf_counter()
                step()
                times[kind].append(1e3 * (time.perf_counter() - start))
        table[size] = {kind: statistics.median(values) for kind, values in times.items()}
    print(f"\nmilliseconds of a training step (SGD, float32), median of {rounds}; in brackets, relative to a rank per step")
    for size, medians in table.items():
        own = medians["rank per step"]
        print(f"{size:28}" + "".join(f"{kind}: {ms:.3f} ({ms / own:.2f})   " for kind, ms in medians.items()))


def _step(base: Layer, schedule: RankSchedule | None, x: np.ndarray, target: np.ndarray) -> Callable[[], object]:
    if schedule is None:
        model = apply_lora(base, StandardLoRAAdapter, rank=RANKS[-1], rng=0)
    else:
        model = apply_lora(base, DyLoRAAdapter, max_rank=RANKS[-1], active_ranks=RANKS, rng=0)
    adapters = list(find(model, DyLoRAAdapter).values())
    descent, rng = Descent(model, MeanSquaredError(), SGD(1e-6)), np.random.default_rng(0)

    def step() -> None:
        rank = None if schedule is None else schedule(adapters, rng, len(x))
        descent.step(partial(model.forward, x, rank=rank), target)

    return step


if __name__ == "__main__":
    step_times(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
