"""`Descent`: a training step that guards the parameters against infinite and NaN values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from .._typing import Array, Parts
from .._validation import positive_float
from ..base import Layer, forget, pending, trained_by
from ..errors import NonFiniteError
from ..functions.losses import Loss
from ..run import Run
from .accumulation import summed
from .averaging import Portion, Weights, weights_of_passes
from .clipping import clipped
from .groups import NO_GROUPS, Groups
from .optimizers import Optimizer


@final
class Descent:
    """Gradient descent on a layer: forward, loss, backward, update.

    If the loss becomes infinite or NaN, the parameters are reset to those of the last finite loss.

    Parameters
    ----------
    layer : Layer
    loss : Loss
    optimizer : Optimizer
    clip_norm : float, optional
        The largest global norm of the gradients, greater than 0; see `clipped`.
    groups : Groups, optional
        Factors of the learning rate and of the weight decay of single parameters.
    """

    def __init__(
        self,
        layer: Layer,
        loss: Loss,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        groups: Groups = NO_GROUPS,
    ) -> None:
        self.layer = layer
        self.loss = loss
        self.optimizer = optimizer
        self.clip_norm = None if clip_norm is None else positive_float("clip_norm", clip_norm)
        self.groups = groups
        self.before: dict[str, Array] = {}
        """The arrays that the last step changed, with their values before it."""
        self.run: Run | None = None
        """The `Run` of the last step, with its tasks and rank."""

    def step(
        self,
        forward: Callable[[], Array],
        targets: Any,
        tasks: Array | None = None,
        row_weights: Array | None = None,
    ) -> float:
        """Take a step; returns the objective before it, which is the loss plus the layer's auxiliary loss.

        Given the task of each row, the loss is the sum of the mean losses of the tasks. With weights of the rows, means are
        weighted; see `Loss.value_and_gradient`.

        Raises
        ------
        NonFiniteError
            If the objective, a gradient or an update is not finite.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value, gradients, parts = self._differentiated(Portion(forward, targets, tasks, row_weights), None)
            objective = value + float(self.layer.compute_auxiliary_loss())
        self.descend(objective, gradients, parts)
        return objective

    def accumulated_step(self, passes: Sequence[Portion]) -> float:
        """Take one step on several passes, equal to a step on all of their rows at once; returns the objective before it.

        Raises
        ------
        NonFiniteError
            If the objective, a gradient or an update is not finite.
        """
        terms = [float(each.terms(self.loss).sum()) for each in passes]
        shares = [(n / sum(terms), each) for n, each in zip(terms, passes, strict=True)]
        weights = weights_of_passes([(fraction, each.terms_by_task(self.loss)) for fraction, each in shares])
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value, gradients, parts = summed(
                (fraction, *self._differentiated(each, own)) for (fraction, each), own in zip(shares, weights, strict=True)
            )
            objective = value + float(self.layer.compute_auxiliary_loss())
        self.descend(objective, gradients, parts)
        return objective

    def _differentiated(self, portion: Portion, weights: Weights | None) -> tuple[float, Mapping[str, Array], Parts]:
        """The loss of a pass and, if it is finite, its gradients and trained parts."""
        layer = self.layer
        value, dy = portion.differentiated(self.loss, weights)
        if not math.isfinite(value):
            return value, {}, {}
        layer.backward(dy, need_input_grad=False)
        gradients, parts, self.run = pending(layer)
        return value, gradients, parts

    def descend(self, objective: float, gradients: Mapping[str, Array], parts: Parts) -> None:
        """Update the parameters, given the objective and the gradients.

        Parameters
        ----------
        objective : float
        gradients : mapping of arrays by name
        parts : mapping of tuples of slices by name
            The trained part of each array that is not trained in full.

        Raises
        ------
        NonFiniteError
            If the objective, a gradient or an update is not finite.
        """
        if not math.isfinite(objective):
            self._go_back()
            raise NonFiniteError(f"the loss is {objective}")
        parameters = trained_by(self.layer, gradients)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._require_finite("gradient", gradients, objective)
            if self.clip_norm is not None:
                gradients = clipped({name: gradients[name] for name in parameters}, self.clip_norm)
            updates = self.groups.updates(self.optimizer, parameters, gradients, parts)
            self._require_finite("update", updates, objective)
        self.before = {name: p.copy() for name, p in parameters.items()}
        for name, p in parameters.items():
            p += updates[name]
        forget(self.layer)

    def _require_finite(self, kind: str, arrays: Mapping[str, Array], objective: float) -> None:
        for name, array in arrays.items():
            if not _is_finite(array):
                self.layer.reset_state()
                if kind == "update":
                    self.optimizer.reset()  # its moments are not finite either
                raise NonFiniteError(f"the {kind} of {name} is not finite, at a loss of {objective:g}")

    def _go_back(self) -> None:
        for name, array in self.before.items():
            self.layer.set_parameter(name, array)
        self.layer.reset_state()


def _is_finite(array: Array) -> bool:
    """Whether all elements are finite. If their sum is, so are they; only a sum that overflows needs a second look."""
    return math.isfinite(np.add.reduce(array, axis=None)) or bool(np.isfinite(array).all())
