"""The base class of the estimators: parameters, training, prediction, and files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.validation import check_is_fitted, validate_data

from .._typing import Array, Generator
from .._validation import non_negative_float, positive_int
from ..adapters import LoRAAdapterBase
from ..errors import ArgumentError, InvalidOperationError
from ..layers import AffineLayer, Layer, Sequential
from ..models.adapting import apply_lora
from ..models.finding import has_adapters
from ..training.history import History
from ..training.sorted_start import SortedStart
from . import files, networks
from .names import activation_of, alpha_of
from .objectives import Samples
from .scaling import warn_unless_scaled
from .sparse import SparseRows, predict
from .stopping import Stopping, held_out_fraction, split
from .trained import TO_THE_END, TrainedEstimator


class LoRAEstimator(TrainedEstimator, ABC):
    """A frozen network with low-rank adapters, which `fit` trains.

    A subclass chooses the adapters: see `_factory`.

    Attributes
    ----------
    model_ : Layer
        The adapted network, from X to logits, values or features.
    loss_curve_ : array of float
        The mean loss of each epoch of adapter training.
    validation_loss_curve_ : array of float
        The loss on the held-out samples after each of these epochs; empty without early stopping.
    n_features_in_, feature_names_in_
        As in scikit-learn.
    """

    _keeps_head = True
    """Whether the head is part of `model_`."""

    @abstractmethod
    def _factory(self, samples: Samples, rng: Generator) -> Callable[[AffineLayer], LoRAAdapterBase]:
        """The function that builds the adapter of a dense layer."""

    # ---------------------------------------------------------------- training

    def _train(self, samples: Samples, epochs: int) -> None:
        """Build the network, train its missing parts, adapt it, train the adapters; attributes are set only at the end."""
        self._check_parameters()
        warn_unless_scaled(samples.X)
        optimizer = self._new_optimizer()
        rng, order = self._generator().spawn(2)  # initial parameters do not depend on the number of samples
        samples, stopping = self._stopping(samples, order)
        network = self._network(samples, rng, order)
        exclude = None if self._keeps_head else networks.HEAD
        model = apply_lora(network, self._factory(samples, rng), self.targets, exclude)
        ranks = self._ranks()
        history = self._descend("adapters", model, samples, optimizer, epochs, order, None, ranks, stopping)
        self.model_ = model if self._keeps_head else model.children()[networks.BASE]
        self.loss_curve_, self.validation_loss_curve_ = np.empty(0), np.empty(0)
        self._note(history)
        self._optimizer, self._rng = optimizer, order

    def _check_partial_fit(self) -> bool:
        """Whether this is the first call; raises ArgumentError if parameters need all samples at once."""
        if self.early_stopping:
            raise ArgumentError("early_stopping must be False for partial_fit, which trains for one epoch")
        return not hasattr(self, "model_")

    def _continue(self, samples: Samples) -> None:
        """Train the adapters for one more epoch, with the optimizer of the last call."""
        self._check_adapters("partial_fit")
        self._optimizer.learning_rate = self.learning_rate
        self._note(self._descend_further(samples, 1, TO_THE_END))

    def _train_further(self, samples: Samples) -> None:
        """Train the adapters of an earlier fit as a new one would, with a new optimizer."""
        self._check_parameters()
        self._check_adapters("fit with warm_start")
        self._optimizer = self._new_optimizer()
        samples, stopping = self._stopping(samples, self._rng)
        self._note(self._descend_further(samples, self.epochs, stopping))

    def _descend_further(self, samples: Samples, epochs: int, stopping: Stopping) -> History:
        ranks = self._ranks()
        ranks = ranks.then if isinstance(ranks, SortedStart) else ranks
        return self._descend("adapters", self.model_, samples, self._optimizer, epochs, self._rng, None, ranks, stopping)

    def _check_adapters(self, method: str) -> None:
        if not has_adapters(self.model_):
            raise InvalidOperationError(
                f"{method} needs adapters, but they have been merged; fit without warm_start trains new ones"
            )

    @property
    def _is_warm(self) -> bool:
        """Whether `fit` continues the training of an earlier one."""
        return self.warm_start and hasattr(self, "model_")

    def _stopping(self, samples: Samples, rng: Generator) -> tuple[Samples, Stopping]:
        """The samples to train on, and when the training ends."""
        patience, tolerance = self.n_iter_no_change, self.tol
        if not self.early_stopping:
            return samples, Stopping(patience, tolerance)
        samples, held_out = split(samples, self.validation_fraction, rng)
        return samples, Stopping(patience, tolerance, held_out)

    def _note(self, history: History) -> None:
        """Append the losses of the adapters' training to those of earlier calls."""
        self.loss_curve_ = np.append(self.loss_curve_, history.epoch_losses)
        self.validation_loss_curve_ = np.append(self.validation_loss_curve_, history.validation_losses)

    @property
    def n_iter_(self) -> int:
        """The number of epochs of adapter training, over all calls."""
        return len(self.loss_curve_)

    @property
    def loss_(self) -> float:
        """The mean loss of the last epoch."""
        return float(self.loss_curve_[-1])

    @property
    def best_loss_(self) -> float:
        """The lowest mean loss of an epoch or, with early stopping, the lowest loss on the held-out samples."""
        curve = self.validation_loss_curve_ if len(self.validation_loss_curve_) else self.loss_curve_
        return float(curve.min())

    def _network(self, samples: Samples, rng: Generator, order: Generator) -> Sequential:
        """The network to adapt: the base, if its outputs fit; otherwise, a new head or a new network is trained first."""
        inputs, outputs = samples.X.shape[1], samples.objective.outputs
        if self.base is None:
            activation = activation_of(self.activation)
            base = networks.hidden_layers(inputs, self.hidden_layer_sizes, activation, samples.X.dtype, rng)
        else:
            base = networks.own_copy(self.base, inputs)
            if self._keeps_head and base.output_size == outputs:
                return base
        samples.check_enough("the base" if self.base is None else "a head for the base")
        network = networks.with_head(base, outputs, rng, freeze_base=self.base is not None)
        # The tasks share this network, so it is trained on all samples, whatever their task.
        self._descend("base", network, replace(samples, tasks=None), self._new_optimizer(), self.base_epochs, order)
        return network

    def _begin_training(self) -> None:
        """Create the optimizer and the random generator that `_continue` needs."""
        self._optimizer, self._rng = self._new_optimizer(), self._generator()

    def _check_parameters(self) -> None:
        for name in ("epochs", "base_epochs", "batch_size", "n_iter_no_change"):
            positive_int(name, getattr(self, name))
        non_negative_float("tol", self.tol)
        held_out_fraction(self.validation_fraction)
        alpha_of(self.alpha)
        activation_of(self.activation)

    # ---------------------------------------------------------------- data

    def _validated(self, X: Any, *y: Any, reset: bool, **checks: Any) -> Any:
        """X, or X and y, checked by scikit-learn, in the dtype of the network; a new network takes that of a float X."""
        network = self.base if reset else self.model_
        dtype = network.dtype if isinstance(network, Layer) else (np.float64, np.float32)
        data = validate_data(self, X, *y, reset=reset, dtype=dtype, accept_sparse="csr", **checks)
        X, *rest = data if y else (data,)
        X = SparseRows(X) if issparse(X) else X
        return (X, *rest) if y else X

    def _outputs(self, X: Any) -> Array:
        """The outputs of the network for X."""
        check_is_fitted(self, "model_")
        return predict(self.model_, self._validated(X, reset=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ---------------------------------------------------------------- files

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Save the fitted estimator to an npz file, without pickle; `lora_np.load_layer` loads only `model_` from it.

        Parameters
        ----------
        file : path or binary stream
            A path is replaced only when the new file is complete.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        NotSupportedError
            If a parameter or a label cannot be represented in JSON, such as an optimizer that lora_np does not provide.

        Notes
        -----
        Not saved are the states of the optimizer and of the random generator, and a `random_state` that is an object.
        """
        check_is_fitted(self, "model_")
        files.save(self, file)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> Self:
        """Load a fitted estimator that `save` wrote.

        If a base was given, the parameter `base` is a copy of the one inside `model_`. `partial_fit` continues with a new
        optimizer state.

        Raises
        ------
        FormatError
            If the file is damaged, or does not contain an estimator of this class.
        """
        return files.load(cls, file, cls._begin_training)
