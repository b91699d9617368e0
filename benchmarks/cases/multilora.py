"""Many tasks on one base: mixed batches, and adding a task."""

from collections.abc import Iterator

import numpy as np

from lora_np import MultiLoRAAdapter

from .. import ours, peers
from ..groups import Group, Row, Settings, contenders, forward_candidate, step_candidate, timed
from ..harness import Candidate
from ..peers import GATHER, JAX, PEFT, TEXTBOOK, TORCH
from ..problem import MixedProblem, normal
from .forward import BASE as BASE_PRODUCT
from .forward import base_product
from .step import BASE as BASE_PRODUCTS
from .step import base_products

GATHERED = (
    "It gathers factors that were padded and stacked beforehand, without checking or grouping the tasks of the batch."
)
REASONS = {
    GATHER: GATHERED,
    TEXTBOOK: "It has no checks and does not store gradients by name.",
    JAX: GATHERED,
    TORCH: GATHERED,
}

FULL = [
    (256, 1024, 16, "uniform"),
    (256, 1024, 16, "zipf"),
    (256, 1024, 64, "uniform"),
    (256, 1024, 64, "zipf"),
    (256, 1024, 1000, "uniform"),
    (256, 1024, 1000, "zipf"),
    (256, 256, 1000, "uniform"),
    (256, 64, 1000, "uniform"),
]
QUICK = [(8, 32, 3, "uniform"), (8, 32, 3, "zipf")]


def label(problem: MixedProblem, distribution: str) -> str:
    batch, width = problem.x.shape
    return f"{len(problem.A)} tasks {distribution}, batch {batch}, {width} × {width}"


def forward_row(settings: Settings, name: str, problem: MixedProblem, x: float | None = None) -> Row:
    candidates: dict[str, Candidate | None] = {BASE_PRODUCT: base_product(problem)}
    for peer, make in contenders(settings, "MixedLoRA"):
        candidates[peer] = None if make is None else forward_candidate(make, problem)
    return timed(settings, name, candidates, x)


def forward_rows(settings: Settings) -> Iterator[Row]:
    for batch, width, tasks, distribution in settings.sizes(FULL, QUICK):
        problem = MixedProblem.random(batch, width, width, tasks, distribution)
        yield forward_row(settings, label(problem, distribution), problem)


def training_rows(settings: Settings) -> Iterator[Row]:
    for batch, width, tasks, distribution in settings.sizes(FULL, QUICK):
        problem = MixedProblem.random(batch, width, width, tasks, distribution)
        candidates: dict[str, Candidate | None] = {BASE_PRODUCTS: base_products(problem)}
        for peer, make in contenders(settings, "MixedLoRA", "step"):
            candidates[peer] = None if make is None else step_candidate(make, problem)
        yield timed(settings, label(problem, distribution), candidates)


class Tasks:
    """An adapter with many tasks, to which one more is added and then removed."""

    def __init__(self, W: np.ndarray, b: np.ndarray, tasks: int, rank: int) -> None:
        self.rank = rank
        self.adapter = MultiLoRAAdapter(ours.frozen_base(W, b), "task0", rank, rng=0)
        for number in range(1, tasks):
            self.adapter.add_task(f"task{number}", rank)

    def add_and_remove(self) -> None:
        self.adapter.add_task("new", self.rank)
        self.adapter.remove_task("new")

    def count(self) -> int:
        return len(self.adapter)


MOST_OF_PEFT = 100


def adding_rows(settings: Settings) -> Iterator[Row]:
    width, rank = 64, 4
    rng = np.random.default_rng(0)
    W, b = normal(rng, width, width), normal(rng, width)
    makers = {"lora_np": Tasks}
    if PEFT in settings.peers:
        module = peers.load(PEFT)
        makers[PEFT] = None if module is None else module.Tasks
    for tasks in settings.sizes((1, 100, 10_000), (1, 10)):
        candidates: dict[str, Candidate | None] = {}
        for name, make in makers.items():
            if make is None:
                candidates[name] = None
            elif name != PEFT or tasks <= MOST_OF_PEFT:
                subject = make(W, b, tasks, rank)
                candidates[name] = Candidate(subject.add_and_remove, lambda subject=subject: {"count": [subject.count()]})
        name = f"{tasks:,} existing task{'s' * (tasks > 1)}, {width} × {width}, rank {rank}"
        yield timed(settings, name, candidates, tasks)


GROUPS = (
    Group(
        "mixed",
        "A mixed batch, forward",
        "One base and many LoRAs of ranks 4, 8 and 16, with a task for each row of the batch. The tasks are drawn "
        "uniformly, or by Zipf's law (a few tasks have most rows). PEFT uses `adapter_names`; NumPy gather, torch by hand "
        "and JAX gather each row's factors, padded to the same rank.",
        forward_rows,
        BASE_PRODUCT,
        reasons=REASONS,
    ),
    Group(
        "mixed-step",
        "A mixed batch, training",
        "A training step on the same batches, which trains the tasks present. PEFT does not support mixed batches in "
        "training, so it processes one sub-batch per task, followed by one optimizer step for all. NumPy gather and "
        "torch by hand gather the padded factors of each row in training, too.",
        training_rows,
        BASE_PRODUCTS,
        reasons=REASONS,
    ),
    Group(
        "adding",
        "Adding a task",
        f"Adding a task and removing it again, by the number of existing tasks. (PEFT only up to {MOST_OF_PEFT}, because "
        "setting up more takes too long.)",
        adding_rows,
        "lora_np",
    ),
)
