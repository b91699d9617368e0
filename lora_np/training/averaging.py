"""Averages by task: the sum of the mean losses of the tasks of a batch, instead of the mean loss of all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from .._typing import Array
from .._validation import one_of
from ..errors import ArgumentError
from ..functions.losses import Loss

Average: TypeAlias = Literal["batch", "task"]
"""Whether a loss is the mean over all rows of a batch, or the sum of the means over the rows of each task."""

Weights: TypeAlias = Mapping[str | None, float]
"""The factor of the mean loss of each task."""


class Portion(NamedTuple):
    """The rows of a step that one pass takes."""

    forward: Callable[[], Array]
    targets: Array
    tasks: Array | None = None
    """The task of each row, if each task's rows are averaged by themselves."""
    row_weights: Array | None = None
    """The weight of each row, if means are weighted."""

    def terms(self, loss: Loss) -> Array:
        """The number of terms of the loss of each row, times its weight."""
        terms = loss.terms(self.targets)
        return terms if self.row_weights is None else terms * self.row_weights

    def terms_by_task(self, loss: Loss) -> dict[str | None, float]:
        """The number of terms of the loss of each task, if rows are averaged by task."""
        return {} if self.tasks is None else sums_by_task(self.terms(loss), self.tasks)

    def differentiated(self, loss: Loss, weights: Weights | None = None) -> tuple[float, Array]:
        """Run the pass; returns its loss, and the gradient of that by the output. By default, tasks have the weight 1."""
        y = self.forward()
        if self.tasks is None:
            return loss.value_and_gradient(y, self.targets, self.row_weights)
        return loss_by_task(loss, y, self.targets, self.tasks, weights, self.row_weights)


def loss_by_task(
    loss: Loss,
    y: Array,
    targets: Any,
    tasks: Array,
    weights: Weights | None = None,
    row_weights: Array | None = None,
) -> tuple[float, Array]:
    """``Σ_t w_t L(y_t, targets_t)`` and its gradient by y, where y_t are the rows of task t; by default, w_t = 1."""
    value, dy = 0.0, np.zeros_like(y)
    for task, rows in rows_by_task(tasks).items():
        weight = 1.0 if weights is None else weights[task]
        own = None if row_weights is None else row_weights[rows]
        mean, gradient = loss.value_and_gradient(y[rows], targets[rows], own)
        value += weight * mean
        dy[rows] = weight * gradient
    return value, dy


def sums_by_task(terms: Array, tasks: Array) -> dict[str | None, float]:
    """The terms of the rows of each task, added up."""
    return {task: float(terms[rows].sum()) for task, rows in rows_by_task(tasks).items()}


def rows_by_task(tasks: Array) -> dict[str | None, Array]:
    """The indices of the rows of each task, in the order in which the tasks occur."""
    number: dict[str | None, int] = {}
    codes = np.array([number.setdefault(task, len(number)) for task in tasks.tolist()], np.intp)
    return {task: (codes == code).nonzero()[0] for task, code in number.items()}


def weights_of_passes(passes: Iterable[tuple[float, Mapping[str | None, float]]]) -> list[dict[str | None, float]]:
    """The weights of the tasks in each pass of a step, such that each task's rows are averaged over all of the passes.

    Parameters
    ----------
    passes : iterable of (fraction, terms)
        The fraction of the step by which the gradients of a pass are multiplied, and the number of terms of each task.
    """
    passes, totals = list(passes), dict[str | None, float]()
    for _, terms in passes:
        totals |= {task: totals.get(task, 0) + n for task, n in terms.items()}
    return [{task: n / totals[task] / fraction for task, n in terms.items()} for fraction, terms in passes]


def averages_by_task(average: Average, *, has_tasks: bool) -> bool:
    """Check an average, which requires tasks if it is by task."""
    if one_of("average", average, ("batch", "task")) == "task" and not has_tasks:
        raise ArgumentError("average must be 'batch' if no tasks are given, got 'task'")
    return average == "task"
