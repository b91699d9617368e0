"""An inference pass of one layer."""

from collections.abc import Iterator

import numpy as np

from ..groups import Group, Row, Settings, contenders, forward_candidate, timed
from ..harness import Candidate
from ..peers import JAX, TEXTBOOK
from ..problem import Problem
from .step import FEW_ROWS, label

BASE = "base product"
SIZES = [(256, 1024, 8), (32, 1024, 8), (8, 1024, 8), (1, 1024, 8), (1, 64, 4)]


def base_product(problem: Problem) -> Candidate:
    """``x W`` as plain `np.matmul`."""
    y = np.empty_like(problem.dy)
    return Candidate(lambda: np.matmul(problem.x, problem.W, out=y))


def rows(settings: Settings) -> Iterator[Row]:
    for batch, width, rank in settings.sizes(SIZES, [(4, 16, 2)]):
        problem = Problem.random(batch, width, width, rank)
        candidates: dict[str, Candidate | None] = {BASE: base_product(problem)}
        for peer, make in contenders(settings, "LoRA"):
            candidates[peer] = None if make is None else forward_candidate(make, problem)
        yield timed(settings, label(batch, width, rank), candidates)


GROUPS = (
    Group(
        "forward",
        "A forward pass",
        "The output of the same layer for inference (`predict`; `torch.no_grad` for the peers). The *base product* is "
        "`x W` alone, computed by plain `np.matmul` into a preallocated array.",
        rows,
        BASE,
        reasons={TEXTBOOK: "It has no checks.", JAX: FEW_ROWS},
    ),
)
