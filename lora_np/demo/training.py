"""How every model of the demo is trained and evaluated."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._typing import Array
from ..functions.losses import SoftmaxCrossEntropy
from ..layers import Layer
from ..terminal.progress import Callbacks
from ..training.fit import fit
from ..training.nested_dropout import RankSchedule, shared_rank
from ..training.optimizers import Adam
from ..training.schedules import LinearDecay
from ..training.sorted_start import SortedStart
from .digits import Rows
from .settings import Budget


@dataclass(frozen=True)
class Score:
    """The quality of a model on test rows."""

    accuracy: float
    """From 0 to 1."""
    nll: float
    """The mean negative log-likelihood of the true labels."""


def score(model: Layer, rows: Rows, *, rank: int | None = None) -> Score:
    """The score of a model, optionally with its DyLoRA adapters at a given rank."""
    logits = model.predict(rows.inputs, rank=rank)
    return Score(accuracy(logits, rows), SoftmaxCrossEntropy()(logits, rows.labels))


def accuracy(logits: Array, rows: Rows) -> float:
    """The fraction of rows whose largest logit is that of the true label."""
    return float((logits.argmax(axis=-1) == rows.labels).mean())


def largest_difference(outputs: Array, others: Array) -> float:
    """The largest absolute difference between two arrays of outputs."""
    return float(np.abs(outputs - others).max())


def dylora_ranks(*, sorted_start: bool) -> RankSchedule | SortedStart:
    """The rank schedule of DyLoRA: one drawn rank per step, or a sorted start."""
    return SortedStart() if sorted_start else shared_rank


def train(
    model: Layer,
    rows: Rows,
    budget: Budget,
    rng: np.random.Generator,
    callbacks: Callbacks,
    tasks: Sequence[str] | None = None,
    ranks: RankSchedule | SortedStart = shared_rank,
) -> float:
    """Train with Adam; the learning rate decays linearly to zero.

    Returns
    -------
    float
        The training time in seconds.
    """
    start = time.perf_counter()
    fit(
        model,
        rows,
        SoftmaxCrossEntropy(),
        Adam(budget.learning_rate),
        budget.epochs,
        budget.batch_size,
        tasks=tasks,
        rng=rng,
        schedule=LinearDecay(),
        rank_schedule=ranks,
        callbacks=callbacks,
    )
    return time.perf_counter() - start
