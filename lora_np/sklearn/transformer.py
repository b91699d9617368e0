"""A transformer, whose features come from an adapted network."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import column_or_1d

from .._typing import Array
from .._validation import one_of
from ..functions.activations import relu
from ..training.optimizers import Adam
from .objectives import Classes, Objective, Samples, Values, weights_of
from .onetask import OneTaskEstimator
from .trained import store


@final
class LoRATransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OneTaskEstimator):
    """Features of a frozen network, adapted so that a linear head can predict y from them.

    `fit` adds a linear head to the network and trains it first, with the given base frozen; then it trains the adapters
    through the head. `transform` returns the inputs of the head, which is dropped after training.

    Parameters
    ----------
    objective : {"auto", "classes", "values"}, default "auto"
        Whether y contains labels, or numbers to approximate. ``"auto"`` treats a single column of whole numbers, strings or
        booleans as labels.
    **parameters
        The parameters of `LoRAClassifier` except `class_weight` and `warm_start`. Without a base, the features are the
        outputs of the last hidden layer.

    Attributes
    ----------
    model_ : Layer
        The adapted network without the head, from X to features.
    active_ranks_, loss_curve_, n_features_in_, feature_names_in_
        As in `LoRAClassifier`.
    """

    _keeps_head = False

    def __init__(
        self,
        base: Any = None,
        *,
        hidden_layer_sizes: Any = (64,),
        activation: Any = relu,
        adapter: str = "standard",
        rank: int = 4,
        alpha: float | None = -1.0,
        active_ranks: Any = None,
        sorted_start: Any = None,
        targets: Any = None,
        optimizer: Any = Adam,
        learning_rate: float = 0.01,
        epochs: int = 20,
        base_epochs: int = 20,
        batch_size: int = 32,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        random_state: Any = None,
        verbose: bool = False,
        objective: str = "auto",
    ) -> None:
        store(self, locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the head (without a base, the whole network), then the adapters.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, values)
        sample_weight : array-like, shape (samples,), optional
            As in `LoRAClassifier.fit`.

        Raises
        ------
        ArgumentError
            If a parameter is invalid or does not fit the samples.
        NonFiniteError
            If training diverges.
        """
        X, y = self._validated(X, y, reset=True, multi_output=True)
        objective, y = self._objective(y)
        self._train(Samples(X, y, objective, weights=weights_of(sample_weight, len(X))), self.epochs)
        return self

    def _objective(self, y: Array) -> tuple[Objective, Array]:
        one_of("objective", self.objective, ("auto", "classes", "values"))
        kind = self.objective
        if kind == "auto":
            kind = "classes" if type_of_target(y) in ("binary", "multiclass") else "values"
        if kind == "classes":
            y = column_or_1d(y)
            return Classes(np.unique(y)), y
        return Values(y.shape[1:]), y.astype(np.float64)

    def transform(self, X: Any) -> Array:
        """The features of each sample, shape (samples, outputs of the base)."""
        return self._outputs(X)

    @property
    def _n_features_out(self) -> int:
        return self.model_.output_size

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
