"""What the estimators share: the parameters, training, prediction, and files."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .._typing import Array, Generator
from .._validation import finite_float, positive_int
from ..adapters import LoRAAdapterBase
from ..errors import ArgumentError, InvalidOperationError
from ..functions.activations import Activation
from ..layers import AffineLayer, Layer, Sequential
from ..models.adapting import apply_lora, has_adapters
from ..training.fit import Progress, fit
from ..training.optimizers import Optimizer
from . import files, networks
from .objectives import Samples


class LoRAEstimator(BaseEstimator, ABC):
    """A frozen network, and the low-rank adapters that `fit` trains.

    A subclass says which adapters: `_factory`.

    Attributes
    ----------
    model_ : Layer
        The adapted network, from X to logits, values or features.
    loss_curve_ : array of float
        The mean loss of each epoch that trained the adapters.
    n_features_in_, feature_names_in_
        As in scikit-learn.
    """

    model_: Layer
    loss_curve_: Array
    _keeps_head = True
    """Whether the head belongs to `model_`."""

    @abstractmethod
    def _factory(self, samples: Samples, rng: Generator) -> Callable[[AffineLayer], LoRAAdapterBase]:
        """What makes the adapter of a dense layer."""

    # ---------------------------------------------------------------- training

    def _train(self, samples: Samples, epochs: int) -> None:
        """Build the network, train what it lacks, adapt it, train the adapters; nothing is kept before all is done."""
        self._check_parameters()
        optimizer, rng = self._new_optimizer(), self._generator()
        network = self._network(samples, rng)
        exclude = None if self._keeps_head else networks.HEAD
        model = apply_lora(network, self._factory(samples, rng), self.targets, exclude)
        losses = self._descend("adapters", model, samples, optimizer, epochs, rng)
        self.model_ = model if self._keeps_head else model.children()[networks.BASE]
        self.loss_curve_ = np.array(losses)
        self._optimizer, self._rng = optimizer, rng

    def _continue(self, samples: Samples) -> None:
        """One more epoch for the adapters."""
        if not has_adapters(self.model_):
            raise InvalidOperationError("partial_fit needs adapters, and they are merged; fit trains new ones")
        self._optimizer.learning_rate = self.learning_rate
        losses = self._descend("adapters", self.model_, samples, self._optimizer, 1, self._rng)
        self.loss_curve_ = np.append(self.loss_curve_, losses)

    def _network(self, samples: Samples, rng: Generator) -> Sequential:
        """What is to be adapted: the given base if its outputs fit; otherwise a head, or all of it, is trained first."""
        inputs, outputs = samples.X.shape[1], samples.objective.outputs
        if self.base is None:
            base = networks.hidden_layers(inputs, self.hidden_layer_sizes, self.activation, rng)
        else:
            base = networks.own_copy(self.base, inputs)
            if self._keeps_head and base.output_size == outputs:
                return base
        samples.check_enough("the base" if self.base is None else "a head for the base")
        network = networks.with_head(base, outputs, rng, freeze_base=self.base is not None)
        # What all tasks share is trained on all samples alike.
        self._descend("base", network, replace(samples, tasks=None), self._new_optimizer(), self.base_epochs, rng)
        return network

    def _descend(
        self, label: str, model: Layer, samples: Samples, optimizer: Optimizer, epochs: int, rng: Generator
    ) -> list[float]:
        data, loss, tasks = (samples.X, samples.targets), samples.objective.loss, samples.tasks
        callbacks = _on_terminal(label) if self.verbose else ()
        return fit(
            model, data, loss, optimizer, epochs, self.batch_size, tasks=tasks, rng=rng, callbacks=callbacks
        ).epoch_losses

    def _begin_training(self) -> None:
        """What `_continue` needs, new."""
        self._optimizer, self._rng = self._new_optimizer(), self._generator()

    def _check_parameters(self) -> None:
        for name in ("rank", "epochs", "base_epochs", "batch_size"):
            positive_int(name, getattr(self, name))
        finite_float("alpha", self.alpha)
        if not isinstance(self.activation, Activation):
            raise ArgumentError(f"activation must be an Activation such as lora_np.relu, got {self.activation!r}")

    def _new_optimizer(self) -> Optimizer:
        optimizer = self.optimizer(self.learning_rate) if callable(self.optimizer) else None
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"optimizer must make an Optimizer of a learning rate, as lora_np.Adam does, got {self.optimizer!r}"
            )
        return optimizer

    def _generator(self) -> Generator:
        """A generator by scikit-learn's rules for `random_state`, but None does not stand for the global one."""
        if self.random_state is None:
            return np.random.default_rng()
        return np.random.default_rng(check_random_state(self.random_state).randint(2**31, size=4))

    # ---------------------------------------------------------------- data

    def _validated(self, X: Any, *y: Any, reset: bool, **checks: Any) -> Any:
        """X, or X and y, as scikit-learn checks them, in the dtype of the network."""
        dtype = self.base.dtype if isinstance(self.base, Layer) else np.float64
        return validate_data(self, X, *y, reset=reset, dtype=dtype if reset else self.model_.dtype, **checks)

    def _outputs(self, X: Any) -> Array:
        """What the network gives for X."""
        check_is_fitted(self, "model_")
        return self.model_.predict(self._validated(X, reset=False))

    # ---------------------------------------------------------------- files

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the fitted estimator to an npz file, without pickle; `lora_np.load_layer` reads `model_` alone from it.

        Parameters
        ----------
        file : path or binary stream
            A path is replaced only when the new file is complete.

        Raises
        ------
        NotFittedError
            There is nothing to save yet.
        NotSupportedError
            A parameter or a label that JSON cannot hold, such as an optimizer that is not one of lora_np.

        Notes
        -----
        The state of the optimizer and of the random generator is not saved, nor a `random_state` that is an object.
        """
        check_is_fitted(self, "model_")
        files.save(self, file)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> Self:
        """The fitted estimator that `save` wrote.

        Where a base was given, the parameter `base` is the one inside `model_`. A `partial_fit` goes on with a new state of
        the optimizer.

        Raises
        ------
        FormatError
            The file is damaged, or does not hold an estimator of this class.
        """
        return files.load(cls, file, cls._begin_training)


def _on_terminal(label: str) -> tuple[Callable[[Progress], None], ...]:
    """Callbacks that show the epoch and its last loss in one line of a terminal; none where there is no terminal."""
    return (partial(_show, label),) if sys.stderr.isatty() else ()


def _show(label: str, progress: Progress) -> None:
    if progress.is_epoch_end:
        line = f"{label}: epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.4g}"
        print(f"\r{line:60}", end="\n" if progress.epoch == progress.epochs else "", file=sys.stderr, flush=True)
