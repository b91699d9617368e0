"""A training step of one layer: forward, backward with the gradient of the input, update."""

from collections.abc import Iterator

import numpy as np

from ..groups import Group, Row, Settings, contenders, step_candidate, timed
from ..harness import Candidate
from ..peers import JAX, PEFT, TEXTBOOK, TORCH
from ..problem import Problem, normal

BASE = "base products"
PEAK = "its operations at peak"

SIZES = [(256, 1024, 8), (32, 1024, 8), (8, 1024, 8), (256, 256, 8), (32, 256, 8), (1, 64, 4)]
PEAK_SIZES = [(2048, 1024, 8), (256, 1024, 8), (32, 1024, 8), (256, 768, 8)]
LARGE = 1024


FEW_ROWS = (
    "OpenBLAS copies a large matrix into a form of its own in every product, which takes most of the time of a few rows; "
    "packing does it once."
)
REASONS = {
    TEXTBOOK: "It checks nothing, copies no input and keeps no gradients by name.",
    JAX: "The whole step is one compiled call, without Python between the products.",
    TORCH: FEW_ROWS,
    PEFT: FEW_ROWS,
}


def label(batch: int, width: int, rank: int) -> str:
    return f"batch {batch}, {width} × {width}, rank {rank}"


def base_products(problem: Problem) -> Candidate:
    """What even a layer without an adapter must do: ``x W`` and ``dy Wᵀ`` as plain `np.matmul`."""
    y, dx, Wt = np.empty_like(problem.dy), np.empty_like(problem.x), problem.W.T
    return Candidate(lambda: (np.matmul(problem.x, problem.W, out=y), np.matmul(problem.dy, Wt, out=dx)))


def at_peak(flops: int, size: int) -> Candidate:
    """The time that so many operations take at the speed of a large product of square matrices, measured in turn."""
    rng = np.random.default_rng(1)
    left, right, product = normal(rng, size, size), normal(rng, size, size), np.empty((size, size), np.float32)
    return Candidate(lambda: np.matmul(left, right, out=product), scale=flops / (2 * size**3))


def row(settings: Settings, name: str, problem: Problem, yardstick: dict[str, Candidate], x: float | None = None) -> Row:
    candidates: dict[str, Candidate | None] = dict(yardstick)
    for peer, make in contenders(settings, "LoRA"):
        candidates[peer] = None if make is None else step_candidate(make, problem)
    return timed(settings, name, candidates, x)


def rows(settings: Settings) -> Iterator[Row]:
    for batch, width, rank in settings.sizes(SIZES, [(4, 16, 2)]):
        problem = Problem.random(batch, width, width, rank)
        yield row(settings, label(batch, width, rank), problem, {BASE: base_products(problem)})


def peak_rows(settings: Settings) -> Iterator[Row]:
    for batch, width, rank in settings.sizes(PEAK_SIZES, [(4, 16, 2)]):
        problem = Problem.random(batch, width, width, rank)
        peak = at_peak(problem.step_flops, 64 if settings.quick else LARGE)
        yield row(settings, label(batch, width, rank), problem, {PEAK: peak})


GROUPS = (
    Group(
        "step",
        "A training step",
        "One LoRA layer around a frozen dense layer with bias, float32: forward, backward with the gradient of the input, "
        "and a step of gradient descent on A and B. *Base products* are `x W` and `dy Wᵀ` alone, as plain `np.matmul` into "
        "arrays that are there already: what every implementation must do, and nothing else.",
        rows,
        BASE,
        reasons=REASONS,
    ),
    Group(
        "peak",
        "How near a step comes to the processor's peak",
        "The same step against the time that its additions and multiplications (4·batch·in·out + 6·batch·rank·(in + out)) "
        f"would take at the speed of a large product, {LARGE} × {LARGE} by {LARGE} × {LARGE} with plain `np.matmul`, which "
        "is timed in turn with them. That comes near what the processor can do; a step may still beat it by a little.",
        peak_rows,
        PEAK,
        reasons=REASONS,
    ),
)
