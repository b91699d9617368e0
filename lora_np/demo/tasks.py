"""MultiLoRA: several tasks that share one base, trained one after another and from mixed batches."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .._typing import Array
from ..adapters import MultiLoRAAdapter
from ..layers import AffineLayer, Layer
from ..models.adapting import apply_lora
from ..models.finding import select_task
from ..terminal.progress import Listener, silent
from .digits import VIEWS, Digits, Rows, upright
from .settings import Settings, Stream
from .training import accuracy, largest_difference, score, train


@dataclass(frozen=True)
class TaskResult:
    """One task of a MultiLoRA model, before and after the later tasks are trained."""

    task: str
    base_accuracy: float
    accuracy: float
    """After training this task."""
    final_accuracy: float
    """After training all tasks."""
    mixed_accuracy: float
    """The accuracy of a second model, which is trained on all tasks at once from mixed batches."""
    changed_bytes: int
    """The number of bytes of the task's parameters that training the later tasks changed."""
    changed_output: float
    """The largest change of an output caused by training the later tasks."""
    seconds: float


@dataclass(frozen=True)
class SharingResult:
    """All tasks on one base."""

    rank: int
    tasks: tuple[TaskResult, ...]
    mixed_seconds: float
    """The training time of the second model."""
    views: tuple[str, ...]
    accuracies: tuple[tuple[float, ...], ...]
    """The rows are the base alone, then each task's adapter; the columns are the views of the test digits."""
    mixed_rows: int
    mixed_difference: float
    """The largest difference between the outputs of a mixed batch and those of a separate pass per task."""


def share_base(base: Layer, digits: Digits, settings: Settings, listen: Listener = silent) -> tuple[SharingResult, Layer]:
    """Train the tasks one after another, and all at once in a second model; also returns the first model."""
    model, finished = _train_in_turn(base, digits, settings, listen)
    mixed, mixed_seconds = _train_mixed(base, digits, settings, listen)
    result = SharingResult(
        settings.task_rank,
        tuple(_task_result(task, once, base, model, mixed, digits) for task, once in finished.items()),
        mixed_seconds,
        ("upright", *VIEWS),
        _accuracies(base, model, digits),
        *_mixed_batch(base, model, digits, settings),
    )
    return result, model


def with_multilora(base: Layer, rank: int, rng: np.random.Generator) -> Layer:
    """The base with a new MultiLoRA adapter, which has a branch per task, on every dense layer."""
    return apply_lora(base, lambda layer: new_adapter(layer, VIEWS, rank, rng))


def new_adapter(layer: AffineLayer, tasks: Iterable[str], rank: int, rng: np.random.Generator) -> MultiLoRAAdapter:
    """A MultiLoRA adapter with a branch of the same rank for each task."""
    first, *others = tasks
    adapter = MultiLoRAAdapter(layer, first, rank, rng=rng)
    for task in others:
        adapter.add_task(task, rank)
    return adapter


class _Finished(NamedTuple):
    """A task immediately after its training."""

    parameters: bytes
    outputs: Array
    """On the test digits of the task."""
    seconds: float


def _train_in_turn(base: Layer, digits: Digits, settings: Settings, listen: Listener) -> tuple[Layer, dict[str, _Finished]]:
    rng = settings.generator(Stream.TASKS)
    model = with_multilora(base, settings.task_rank, rng)
    finished = {}
    for task, view in VIEWS.items():
        select_task(model, task)
        seconds = train(model, digits.training(view), settings.task_budget, rng, listen(f"task {task}"))
        finished[task] = _Finished(_parameters(model, task), model.predict(digits.testing(view).inputs), seconds)
    return model, finished


def _train_mixed(base: Layer, digits: Digits, settings: Settings, listen: Listener) -> tuple[Layer, float]:
    rng = settings.generator(Stream.MIXED_TASKS)
    model = with_multilora(base, settings.task_rank, rng)
    parts = {task: digits.training(view) for task, view in VIEWS.items()}
    rows = Rows(*(np.concatenate(arrays) for arrays in zip(*parts.values(), strict=True)))
    tasks = [task for task, part in parts.items() for _ in part.labels]
    return model, train(model, rows, settings.task_budget, rng, listen("all tasks"), tasks)


def _task_result(task: str, once: _Finished, base: Layer, model: Layer, mixed: Layer, digits: Digits) -> TaskResult:
    test = digits.testing(VIEWS[task])
    select_task(model, task)
    select_task(mixed, task)
    return TaskResult(
        task,
        base_accuracy=score(base, test).accuracy,
        accuracy=accuracy(once.outputs, test),
        final_accuracy=score(model, test).accuracy,
        mixed_accuracy=score(mixed, test).accuracy,
        changed_bytes=sum(a != b for a, b in zip(once.parameters, _parameters(model, task), strict=True)),
        changed_output=largest_difference(model.predict(test.inputs), once.outputs),
        seconds=once.seconds,
    )


def _parameters(model: Layer, task: str) -> bytes:
    adapters = [layer for layer in model.walk().values() if isinstance(layer, MultiLoRAAdapter)]
    return b"".join(adapter.get_task_adapter(task).get_parameters().tobytes() for adapter in adapters)


def _accuracies(base: Layer, model: Layer, digits: Digits) -> tuple[tuple[float, ...], ...]:
    tests = [digits.testing(view) for view in (upright, *VIEWS.values())]
    rows = [tuple(score(base, test).accuracy for test in tests)]
    for task in VIEWS:
        select_task(model, task)
        rows.append(tuple(score(model, test).accuracy for test in tests))
    return tuple(rows)


def _mixed_batch(base: Layer, model: Layer, digits: Digits, settings: Settings) -> tuple[int, float]:
    """Compare one pass over rows of all tasks and of the base alone with a separate pass for each.

    Returns
    -------
    rows : int
        The size of the batch.
    difference : float
        The largest difference of an output.
    """
    names = [None, *VIEWS]
    tests = [digits.testing(view).inputs for view in (upright, *VIEWS.values())]
    picked = settings.generator(Stream.MIXED_BATCH).integers(len(names), size=len(tests[0]))
    inputs = np.choose(picked[:, np.newaxis], tests)
    mixed = model.forward(inputs, tasks=[names[i] for i in picked])
    separate = np.empty_like(mixed)
    for i, name in enumerate(names):
        if name is not None:
            select_task(model, name)
        separate[picked == i] = (base if name is None else model).predict(inputs[picked == i])
    return len(inputs), largest_difference(mixed, separate)
