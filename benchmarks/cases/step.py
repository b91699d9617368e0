"""A training step of one layer: forward, backward with the gradient of the input, update."""

from collections.abc import Iterator

import numpy as np

from ..groups import Group, Row, Settings, contenders, step_candidate, timed
from ..harness import Candidate
from ..peers import JAX, PEFT, TEXTBOOK, TORCH
from ..problem import Problem, normal

BASE = "base products"
PEAK = "time at peak speed"

SIZES = [(256, 1024, 8), (32, 1024, 8), (8, 1024, 8), (256, 256, 8), (32, 256, 8), (1, 64, 4)]
AXES = [(64, 4), (2, 128)]
"""Leading axes of inputs with a sequence axis, at 1024 × 1024."""
PEAK_SIZES = [(2048, 1024, 8), (256, 1024, 8), (32, 1024, 8), (256, 768, 8)]
LARGE = 1024


FEW_ROWS = (
    "OpenBLAS packs a large matrix into an internal layout in every product, which takes most of the time if there are few "
    "rows; `pack` does it once."
)
REASONS = {
    TEXTBOOK: "It has no checks, does not copy the input and does not store gradients by name.",
    JAX: "The whole step is one compiled call, without Python between the products.",
    TORCH: FEW_ROWS,
    PEFT: FEW_ROWS,
}


def label(batch: int | str, width: int, rank: int) -> str:
    return f"batch {batch}, {width} × {width}, rank {rank}"


def base_products(problem: Problem) -> Candidate:
    """The work of a layer without an adapter: ``x W`` and ``dy Wᵀ`` as plain `np.matmul`."""
    x, dy = (array.reshape(-1, array.shape[-1]) for array in (problem.x, problem.dy))
    y, dx, Wt = np.empty_like(dy), np.empty_like(x), problem.W.T
    return Candidate(lambda: (np.matmul(x, problem.W, out=y), np.matmul(dy, Wt, out=dx)))


def at_peak(flops: int, size: int) -> Candidate:
    """The time of `flops` operations at the speed of a large product of square matrices, measured in the same rounds."""
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
    for axes in settings.sizes(AXES, [(2, 2)]):
        width, rank = (16, 2) if settings.quick else (1024, 8)
        problem = Problem.random(axes[0] * axes[1], width, width, rank).with_axes(*axes)
        name = label(f"{axes[0]} × {axes[1]}", width, rank)
        yield row(settings, name, problem, {BASE: base_products(problem)})


def peak_rows(settings: Settings) -> Iterator[Row]:
    for batch, width, rank in settings.sizes(PEAK_SIZES, [(4, 16, 2)]):
        problem = Problem.random(batch, width, width, rank)
        peak = at_peak(problem.step_flops, 64 if settings.quick else LARGE)
        yield row(settings, label(batch, width, rank), problem, {PEAK: peak})


GROUPS = (
    Group(
        "step",
        "A training step",
        "One LoRA layer around a frozen dense layer with bias, in float32: forward, backward with the gradient of the "
        "input, and a step of gradient descent on A and B. The *base products* are `x W` and `dy Wᵀ` alone, computed by "
        "plain `np.matmul` into preallocated arrays: the minimum that every implementation must do. *Batch 64 × 4* is an "
        "input with a sequence axis; its base products are those of the 256 rows.",
        rows,
        BASE,
        reasons=REASONS,
    ),
    Group(
        "peak",
        "How close a step comes to peak speed",
        "The same step, relative to the time that its additions and multiplications (4·batch·d_in·d_out + "
        f"6·batch·rank·(d_in + d_out)) would take at the speed of a large product: {LARGE} × {LARGE} by {LARGE} × {LARGE} "
        "with plain `np.matmul`, timed in the same rounds. This is close to the processor's peak; a step may still be "
        "slightly faster.",
        peak_rows,
        PEAK,
        reasons=REASONS,
    ),
)
