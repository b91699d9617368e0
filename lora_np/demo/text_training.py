"""How the text demo builds, trains and evaluates classifiers on the upper blocks of an encoder."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .._typing import Array
from ..base import Layer
from ..functions.losses import SoftmaxCrossEntropy
from ..layers import FullyConnectedLayer
from ..models.adapting import Factory, apply_lora
from ..models.bert import DOWN, UP, BertBlock, BertModel, Q, V
from ..models.finding import find
from ..models.heads import BODY, HEAD, SentenceEncoder, SequenceClassifier
from ..text import predict_by_length
from .digits import Rows
from .text_data import Task
from .text_encoder import UpperBlocks, cut
from .text_settings import TextSettings, TextStream
from .training import Score, accuracy, score, train

ADAPTED = (Q, V, UP, DOWN)
"""The adapted layers of each upper block: query, value, and the two dense layers after attention."""


class Prepared(NamedTuple):
    """A task for the upper blocks, and a head on the unchanged encoder, from which all adapted models start."""

    task: Task
    head: FullyConnectedLayer
    score: Score
    """The score of the head on the test sentences."""


def prepare(encoder: BertModel, tasks: Sequence[Task], settings: TextSettings) -> tuple[UpperBlocks, list[Prepared]]:
    """Run the lower blocks once, and train a head for each task on the mean hidden states of the unchanged encoder."""
    ids = [rows.inputs for task in tasks for rows in (task.training, task.test)]
    upper, numbers = cut(encoder, _stacked(ids), settings.blocks)
    parts = iter(np.split(numbers, np.cumsum([len(part) for part in ids])[:-1]))
    return upper, [_prepared(upper, task, next(parts), next(parts), settings) for task in tasks]


def _prepared(upper: UpperBlocks, task: Task, training: Array, test: Array, settings: TextSettings) -> Prepared:
    rng = settings.generator(TextStream.HEAD)
    head = FullyConnectedLayer(upper.output_size, len(task.classes), bias=False, dtype=upper.dtype, rng=rng)
    means = SentenceEncoder(upper, normalize=False)
    train(head, Rows(predict_by_length(means, training), task.training.labels), settings.head_budget, rng, ())
    head_score = score(head, Rows(predict_by_length(means, test), task.test.labels))
    rows = Rows(training, task.training.labels), Rows(test, task.test.labels)
    return Prepared(Task(task.name, task.classes, *rows), head, head_score)


def _stacked(parts: Sequence[Array]) -> Array:
    """The ids of all parts, padded to the same length."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=-1) for part in parts])


def adapted(upper: UpperBlocks, head: Layer, adapter: Factory, *, train_head: bool = True) -> Layer:
    """A classifier with an adapter on the `ADAPTED` layers; its head trains too, or is adapted as well."""
    model = SequenceClassifier(upper, head.output_size, rng=0).with_children({HEAD: head.clone()})
    paths = [f"{BODY}.{block}.{name}" for block in find(upper, BertBlock) for name in ADAPTED]
    return apply_lora(model, adapter, paths if train_head else [*paths, HEAD], train=[HEAD] if train_head else [])


def score_texts(model: Layer, rows: Rows, *, rank: int | None = None) -> Score:
    """The score of a model, optionally with its DyLoRA adapters at a given rank."""
    logits = predict_by_length(model, rows.inputs, rank=rank)
    return Score(accuracy(logits, rows), SoftmaxCrossEntropy()(logits, rows.labels))
