"""The cost of DyLoRA compared with LoRA."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from lora_np import DyLoRAAdapter, Layer, StandardLoRAAdapter

from ..groups import Group, Row, Settings, timed
from ..harness import Candidate
from ..ours import frozen_base
from ..problem import SCALE, Problem

LORA, DYLORA = "LoRA at that rank", "DyLoRA at that rank"
ONE, MANY = "one DyLoRA", "one LoRA per rank"
STEPS = 8
"""The number of steps in a timed training run; all steps do the same work, so a few are representative."""


def _start(adapter: Layer, A: np.ndarray, B: np.ndarray) -> Layer:
    adapter.set_parameter("lora.matrix_a", A)
    adapter.set_parameter("lora.matrix_b", B)
    return adapter


def lora(problem: Problem, rank: int) -> Layer:
    adapter = StandardLoRAAdapter(frozen_base(problem.W, problem.b), rank, SCALE * rank, rng=0)
    return _start(adapter, problem.A[:, :rank], problem.B[:rank])


def dylora(problem: Problem) -> Layer:
    ranks, base = range(1, problem.rank + 1), frozen_base(problem.W, problem.b)
    adapter = DyLoRAAdapter(base, problem.rank, ranks, SCALE * problem.rank, rng=0)
    return _start(adapter, problem.A, problem.B)


def train(adapter: Layer, problem: Problem, steps: int = 1, rank: int | None = None) -> np.ndarray:
    for _ in range(steps):
        y = adapter.forward(problem.x, rank=rank)
        adapter.backward(problem.dy)
        adapter.update_parameters(problem.rate)
    return y


def step_candidate(make: Callable[[Problem], Layer], problem: Problem, size: int, **knows: Any) -> Candidate:
    def answer() -> dict[str, np.ndarray]:
        adapter = make(problem)
        y = train(adapter, problem, **knows)
        layer = adapter.lora_layer
        return {"y": y, "A": layer.matrix_a[:, :size] - problem.A[:, :size], "B": layer.matrix_b[:size] - problem.B[:size]}

    slow = problem.slowly()
    return Candidate(partial(train, make(slow), slow, **knows), answer)


def step_rows(settings: Settings) -> Iterator[Row]:
    batch, width, full = (4, 16, 2) if settings.quick else (256, 1024, 8)
    problem = Problem.random(batch, width, width, full)
    for rank in settings.sizes((1, 2, 4, 8), (1, 2)):
        candidates = {
            LORA: step_candidate(partial(lora, rank=rank), problem, rank),
            DYLORA: step_candidate(dylora, problem, rank, rank=rank),
        }
        yield timed(settings, f"rank {rank} of {full}, batch {batch}, {width} × {width}", candidates)


def training_rows(settings: Settings) -> Iterator[Row]:
    batch, width, full = (4, 16, 2) if settings.quick else (256, 1024, 8)
    problem = Problem.random(batch, width, width, full).slowly()
    adapters = [lora(problem, rank) for rank in range(1, full + 1)]

    def separate() -> None:
        for adapter in adapters:
            train(adapter, problem, STEPS)

    one = dylora(problem)
    candidates = {ONE: Candidate(lambda: train(one, problem, STEPS)), MANY: Candidate(separate)}
    yield timed(settings, f"{full} ranks, batch {batch}, {width} × {width}", candidates)


GROUPS = (
    Group(
        "dylora",
        "A DyLoRA step",
        "A training step of DyLoRA at a given rank, compared with a step of a LoRA of exactly that rank: the cost of the "
        "additional components. Both compute the same results, which is checked.",
        step_rows,
        LORA,
    ),
    Group(
        "trainings",
        "One DyLoRA training run for all ranks",
        "The time to train one LoRA per rank, one after the other, compared with one DyLoRA training run, which draws a "
        "rank in each step. Every run has the same number of steps. The demo (`python -m lora_np demo`) compares the "
        "accuracy.",
        training_rows,
        ONE,
    ),
)
