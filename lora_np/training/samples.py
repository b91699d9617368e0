"""Training data: checked arrays with one row per sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from .._validation import last_axis, real_array, row_weights, sequence
from ..base import Layer
from ..errors import ArgumentError
from ..functions.losses import Loss
from ..run import Rank
from .rows import RowsOnDemand


class Samples(NamedTuple):
    """Checked training data, with one row per sample."""

    inputs: Array | RowsOnDemand
    targets: Array
    tasks: Array | None
    weights: Array | None
    """The weight of each row, the largest of which is 1."""
    terms: Array
    """The number of terms of the loss of each row, times its weight."""
    scale: float
    """The number by which the weights were divided."""

    def forward(self, model: Layer, rows: Any, rank: Rank | None = None) -> Callable[[], Array]:
        """A function that runs the forward pass over the given rows."""
        return partial(model.forward, self.inputs[rows], tasks=None if self.tasks is None else self.tasks[rows], rank=rank)

    def target(self, rows: Any) -> tuple[Array, Array | None]:
        """The targets and the weights of the given rows, as a loss takes them."""
        return self.targets[rows], None if self.weights is None else self.weights[rows]

    def digest(self) -> str:
        """A digest of the data, equal only for equal data."""
        digest = hashlib.blake2b(digest_size=16)
        inputs = np.asarray(self.inputs)
        for array in (inputs, self.targets, self.weights):
            if array is not None:
                digest.update(f"{array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        digest.update(repr(None if self.tasks is None else self.tasks.tolist()).encode())
        return digest.hexdigest()

    def predict(self, model: Layer, batch_size: int) -> Array:
        """The predictions for all rows, computed in batches."""
        return predict_in_batches(model, self.inputs, self.tasks, batch_size)


def predict_in_batches(model: Layer, inputs: Array | RowsOnDemand, tasks: Any, batch_size: int) -> Array:
    """The predictions of a model for all rows, each with its task unless `tasks` is None."""
    pieces = [slice(start, start + batch_size) for start in range(0, len(inputs), batch_size)]
    return np.concatenate([model.predict(inputs[piece], tasks=None if tasks is None else tasks[piece]) for piece in pieces])


def checked_samples(
    model: Layer, loss: Loss, data: tuple[Any, Any], tasks: Iterable[str | None] | None, weights: Any = None
) -> Samples:
    """Check the data against the model and the loss, and convert the arrays.

    Rows with weight 0, and rows whose labels are all ignored, are left out.
    """
    try:
        inputs, targets = data
    except (TypeError, ValueError):
        raise ArgumentError("data must be a pair (inputs, targets)") from None
    if isinstance(inputs, RowsOnDemand):
        last_axis("inputs", inputs, model.input_size)
    else:
        inputs = model.check_input(inputs, name="inputs")
    targets = real_array("targets", targets)
    if inputs.ndim < 2 or targets.ndim < 1 or len(inputs) != len(targets) or not len(inputs):
        raise ArgumentError(
            "data must have the same, non-zero number of rows in inputs and targets, "
            f"got shapes {inputs.shape} and {targets.shape}"
        )
    row_tasks = None
    if tasks is not None:
        names = sequence("tasks", tasks, "names or None")
        model.new_run(inputs, tasks=names)
        row_tasks = np.array(names, dtype=object)
    # Check all targets at once, against placeholder predictions: only their shape matters.
    loss.check(np.broadcast_to(np.zeros((), model.dtype), model._output_shape(inputs)), targets)
    terms, scale = loss.terms(targets), 1.0
    if weights is not None:
        weights = row_weights("weights", weights, len(inputs))
        scale = float(weights.max()) or 1.0
        weights = weights / scale
        terms = terms * weights
    return _counted(Samples(inputs, targets, row_tasks, weights, terms, scale))


def _counted(samples: Samples) -> Samples:
    """The samples without those that have no part in the training, as if they were not there."""
    kept = samples.terms > 0
    if kept.all():
        return samples
    if not kept.any():
        raise ArgumentError("weights must contain a number greater than 0 for a row with a label, got only zeros")
    tasks = None if samples.tasks is None else samples.tasks[kept]
    weights = None if samples.weights is None else samples.weights[kept]
    return Samples(samples.inputs[kept], samples.targets[kept], tasks, weights, samples.terms[kept], samples.scale)
