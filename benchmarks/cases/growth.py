"""How time and memory grow with each size while the others are fixed."""

from collections.abc import Callable, Iterator
from functools import partial

from .. import processes
from ..groups import Group, Row, Settings
from ..problem import MixedProblem, Problem
from . import memory, multilora, step

BATCHES = (1, 4, 16, 64, 256, 1024)
WIDTHS = (64, 128, 256, 512, 1024, 2048)
RANKS = (1, 4, 16, 64, 256)
TASKS = (1, 4, 16, 64, 256, 1024)
LARGE_BATCHES = (64, 256, 1024, 4096)
LARGE_WIDTHS = (512, 1024, 2048)
WIDTH = 1024

QUICK = (2, 4)


def times(settings: Settings, values: tuple[int, ...], problem: Callable[[int, int], Problem]) -> Iterator[Row]:
    """`problem` takes the growing size, and the width if that is fixed."""
    for value in settings.sizes(values, QUICK):
        size = problem(value, 16 if settings.quick else WIDTH)
        yield step.row(settings, f"{value:,}", size, {step.BASE: step.base_products(size)}, value)


def task_times(settings: Settings) -> Iterator[Row]:
    for tasks in settings.sizes(TASKS, QUICK):
        batch, width = (8, 16) if settings.quick else (256, 512)
        yield multilora.forward_row(settings, f"{tasks:,}", MixedProblem.random(batch, width, width, tasks), x=tasks)


def bytes_(settings: Settings, values: tuple[int, ...], size: Callable[[int], tuple[int, int, int, int]]) -> Iterator[Row]:
    if processes.can_measure_memory():
        for value in settings.sizes(values, (256,)):
            yield memory.row(settings, f"{value:,}", size(value), full=False, x=value)


GROUPS = (
    Group(
        "time-by-batch",
        "Time by batch",
        f"A training step at {WIDTH} × {WIDTH}, rank 8.",
        partial(times, values=BATCHES, problem=lambda batch, width: Problem.random(batch, width, width, 8)),
        step.BASE,
        reasons=step.REASONS,
        axis="rows in the batch",
    ),
    Group(
        "time-by-width",
        "Time by width",
        "A training step with a batch of 64 and rank 8; input and output size are equal.",
        partial(times, values=WIDTHS, problem=lambda width, _: Problem.random(64, width, width, min(8, width))),
        step.BASE,
        reasons=step.REASONS,
        axis="width",
    ),
    Group(
        "time-by-rank",
        "Time by rank",
        f"A training step with a batch of 64 at {WIDTH} × {WIDTH}.",
        partial(times, values=RANKS, problem=lambda rank, width: Problem.random(64, width, width, rank)),
        step.BASE,
        reasons=step.REASONS,
        axis="rank",
    ),
    Group(
        "time-by-tasks",
        "Time by tasks",
        "A forward pass of a mixed batch of 256 at 512 × 512, with the task of each row drawn uniformly.",
        task_times,
        multilora.BASE_PRODUCT,
        reasons=multilora.REASONS,
        axis="tasks",
    ),
    Group(
        "memory-by-batch",
        "Memory by batch",
        "The peak memory of training a rank-8 LoRA on 4 layers of 512 × 512 with Adam.",
        partial(bytes_, values=LARGE_BATCHES, size=lambda batch: (512, 4, batch, 8)),
        "lora_np",
        unit="B",
        axis="rows in the batch",
    ),
    Group(
        "memory-by-width",
        "Memory by width",
        "The same on 4 layers with a batch of 64.",
        partial(bytes_, values=LARGE_WIDTHS, size=lambda width: (width, 4, 64, min(8, width))),
        "lora_np",
        unit="B",
        axis="width",
    ),
    Group(
        "memory-by-rank",
        "Memory by rank",
        "The same on 4 layers of 1024 × 1024 with a batch of 64.",
        partial(bytes_, values=RANKS, size=lambda rank: (1024, 4, 64, rank)),
        "lora_np",
        unit="B",
        axis="rank",
    ),
)
