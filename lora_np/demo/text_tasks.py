"""MultiLoRA on sentences: two tasks that share one encoder, trained and evaluated in mixed batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._typing import Array
from ..adapters import MultiLoRAAdapter
from ..base import Layer
from ..functions.losses import SoftmaxCrossEntropy
from ..layers import AffineLayer, FullyConnectedLayer
from ..models.finding import find, select_task
from ..models.heads import HEAD
from ..terminal.progress import Listener, silent
from ..text import predict_by_length
from .digits import Rows
from .tasks import new_adapter
from .text_encoder import UpperBlocks
from .text_settings import TextSettings, TextStream
from .text_training import Prepared, adapted
from .training import Score, accuracy, largest_difference, train


@dataclass(frozen=True)
class TextTaskResult:
    """One task of the MultiLoRA model."""

    task: str
    majority: float
    """The share of the most frequent class among the test sentences."""
    head: Score
    """Of a head on the unchanged encoder."""
    score: Score
    """Of the MultiLoRA model, in a mixed batch."""


@dataclass(frozen=True)
class TextSharingResult:
    """All tasks on one encoder."""

    rank: int
    training_rows: int
    tasks: tuple[TextTaskResult, ...]
    seconds: float
    """The training time."""
    mixed_rows: int
    mixed_difference: float
    """The largest difference between the logits of mixed batches and those of a separate pass per task."""


def share_encoder(
    upper: UpperBlocks, prepared: Sequence[Prepared], settings: TextSettings, listen: Listener = silent
) -> TextSharingResult:
    """Train one model on all tasks at once."""
    rng = settings.generator(TextStream.TASKS)
    model = with_tasks(upper, prepared, settings.task_rank, rng)
    training, names = mixed(
        [Rows(*(part[: settings.task_rows] for part in one.task.training)) for one in prepared], prepared
    )
    seconds = train(model, training, settings.budget, rng, listen("both tasks"), names)
    test, names = mixed([one.task.test for one in prepared], prepared)
    order = rng.permutation(len(names))
    logits = np.empty((len(names), model.output_size), model.dtype)
    logits[order] = predict_by_length(model, test.inputs[order], tasks=[names[row] for row in order])
    separate = [_alone(model, one) for one in prepared]
    parts = np.split(logits, np.cumsum([len(part) for part in separate])[:-1])
    results = tuple(_result(one, part) for one, part in zip(prepared, parts, strict=True))
    difference = largest_difference(logits, np.concatenate(separate))
    return TextSharingResult(settings.task_rank, len(training.labels), results, seconds, len(names), difference)


def with_tasks(upper: UpperBlocks, prepared: Sequence[Prepared], rank: int, rng: np.random.Generator) -> Layer:
    """A classifier with a branch for each task on every adapted layer.

    The head is adapted too, from zero and at full rank: this is a separate head for each task, which starts as the one on
    the unchanged encoder.
    """

    def adapter(layer: AffineLayer) -> MultiLoRAAdapter:
        return new_adapter(layer, (one.task.name for one in prepared), min(rank, layer.output_size), rng)

    head = prepared[0].head
    model = adapted(upper, FullyConnectedLayer.from_arrays(np.zeros_like(head.weight)), adapter, train_head=False)
    heads = find(model, MultiLoRAAdapter)[HEAD]
    for one in prepared:
        factors = {"matrix_a": one.head.weight.T, "matrix_b": np.eye(head.output_size, dtype=head.dtype)}
        heads.get_task_adapter(one.task.name).load_weights(factors)
    return model


def mixed(parts: Sequence[Rows], prepared: Sequence[Prepared]) -> tuple[Rows, list[str]]:
    """The rows of all tasks, and the task of each."""
    rows = Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return rows, [one.task.name for one, part in zip(prepared, parts, strict=True) for _ in part.labels]


def _alone(model: Layer, one: Prepared) -> Array:
    """The logits of a task's test sentences, with the task selected."""
    select_task(model, one.task.name)
    return predict_by_length(model, one.task.test.inputs)


def _result(one: Prepared, logits: Array) -> TextTaskResult:
    labels = one.task.test.labels
    majority = float(np.bincount(labels).max() / len(labels))
    score = Score(accuracy(logits, one.task.test), SoftmaxCrossEntropy()(logits, labels))
    return TextTaskResult(one.task.name, majority, one.score, score)
