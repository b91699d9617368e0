"""Estimators for one task: a classifier and a regressor."""

from __future__ import annotations

from typing import Any, Self, final

from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted

from .._typing import Array, Generator
from ..errors import ArgumentError
from ..functions.activations import relu
from ..models.adapting import merge_in_place
from ..training.nested_dropout import RankSchedule
from ..training.optimizers import Adam
from ..training.sorted_start import SortedStart
from . import files
from .draws import drawn_from
from .estimator import LoRAEstimator
from .objectives import Classes, Indicators, Samples, Values, labels_of, weights_of
from .one_adapter import OneAdapterEstimator
from .trained import store


class OneTaskEstimator(OneAdapterEstimator, LoRAEstimator):
    """An estimator with one adapter per layer; `LoRAClassifier` describes the parameters."""

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
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        store(self, locals())

    def _drawn(self, ranks: RankSchedule | SortedStart, rng: Generator) -> RankSchedule | SortedStart:
        """For DyLoRA, with a separate generator for the ranks."""
        return drawn_from(rng.spawn(1)[0], ranks) if self.adapter == "dylora" else ranks

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_adapter()

    def _train(self, samples: Samples, epochs: int) -> None:
        super()._train(samples, epochs)
        self.active_ranks_ = self._trained_ranks()

    def merge(self) -> Self:
        """A fitted estimator with the same predictions, whose adapters are merged into the weights of the network.

        Its parameter `base` is the merged network, so a new `fit` would adapt that network.
        """
        check_is_fitted(self, "model_")
        model = self.model_.clone()
        merge_in_place(model)
        return files.twin(self, type(self), model)


@final
class LoRAClassifier(ClassifierMixin, OneTaskEstimator):
    """A classifier: a frozen network, whose outputs are the logits of the classes, with trainable adapters.

    If y has several columns of 0 and 1, each sample can have any number of labels: the outputs are one logit for each, and
    the loss is the binary cross-entropy.

    Parameters
    ----------
    base : Layer, optional
        The network to adapt: any lora_np layer. It is copied, not changed. If it has one output per class (or value of y),
        these are the logits of the classes in ascending order. Otherwise, a linear head is added and trained first. Without
        a base, a network of dense layers is trained first, on the same samples.
    hidden_layer_sizes : sequence of int, default (64,)
        The hidden layers of the network that is trained if there is no base.
    activation : Activation or str, default relu
        The activation of these layers; the names are those of lora_np's activations, and ``"logistic"``.
    adapter : {"standard", "dylora", "dora"}, default "standard"
        LoRA, DyLoRA (which can be deployed at each of its ranks), or DoRA.
    rank : int, default 4
        The rank of each adapter; a smaller layer uses its full rank, with the same scaling.
    alpha : float or None, default -1
        The scaling is alpha / rank; None, or a negative alpha, means the rank.
    active_ranks : sequence of int, optional
        The ranks that DyLoRA trains, ascending, at most `rank`; all of them by default. The last one is deployed initially.
        Other adapters ignore this parameter.
    class_weight : dict or "balanced", optional
        The weight of each class, by which those of its samples are multiplied; ``"balanced"`` gives all classes the same
        total weight. By default, each class has weight 1.
    sorted_start : float or int, optional
        For DyLoRA: the fraction of the training steps, in (0, 1), or their number, at least 1, to train at the highest rank
        before the components are sorted, and each row trains at a separate rank; see `lora_np.training.SortedStart`. By
        default, each step trains at one drawn rank.
    targets : names, optional
        Which layers to adapt, as in `lora_np.apply_lora`; all dense layers by default.
    optimizer : {"sgd", "momentum", "adam", "adamw"} or callable, default Adam
        A callable returns an Optimizer for a learning rate, for example ``functools.partial(AdamW, weight_decay=0.1)``.
    learning_rate : float, default 0.01
    epochs : int, default 20
        Epochs of adapter training.
    base_epochs : int, default 20
        Epochs of training for the parts that are trained first: the head or, without a base, the whole network.
    batch_size : int, default 32
    early_stopping : bool, default False
        Whether to hold out samples, and to keep the adapters with the lowest loss on them.
    validation_fraction : float, default 0.1
        The fraction of the samples to hold out, in (0, 1), with the same shares of classes.
    n_iter_no_change : int, default 10
        Adapter training ends early after this number of epochs in a row whose loss, on the held-out samples or, without
        early stopping, in training, is not lower than the best one by more than `tol`.
    tol : float, default 1e-4
    warm_start : bool, default False
        Whether `fit` trains the adapters of an earlier fit further, with a new optimizer, instead of new ones.
    random_state : int, numpy.random.RandomState or None, default None
        With None, each fit is different. NumPy's global generator is never used.
    verbose : bool, default False
        Whether to show progress if standard error is a terminal.

    Attributes
    ----------
    classes_ : array
        The classes, ascending; if samples can have several labels, the number of each column of y.
    multilabel_ : bool
        Whether samples can have several labels.
    model_ : Layer
        The adapted network, from X to logits.
    active_ranks_ : tuple of int
        The ranks that can be deployed; empty unless `adapter` is ``"dylora"``.
    loss_curve_ : array of float
        The mean loss of each epoch of adapter training.
    validation_loss_curve_ : array of float
        The loss on the held-out samples after each of these epochs; empty without early stopping.
    n_iter_ : int
        The number of these epochs, over all calls.
    loss_, best_loss_ : float
        The last and the lowest mean loss of an epoch; with early stopping, the lowest loss on the held-out samples.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from lora_np.data import load_digits
    >>> from lora_np.sklearn import LoRAClassifier
    >>> images, labels = load_digits()
    >>> X = images.reshape(-1, 64)
    >>> classifier = LoRAClassifier(adapter="dylora", active_ranks=[1, 2, 4], random_state=0).fit(X[:300], labels[:300])
    >>> classifier.score(X[300:], labels[300:]) > 0.8
    True
    >>> classifier.set_deployment_rank(1).score(X[300:], labels[300:]) > 0.8
    True
    """

    classes_: Array

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
        class_weight: Any = None,
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
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        store(self, locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the missing parts of the network, then the adapters.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, labels)
            The label of each sample or, if samples can have several, 1 for each label that a sample has, otherwise 0.
        sample_weight : array-like, shape (samples,), optional
            The weight of each sample, not negative: losses are weighted means. Samples with weight 0 are not trained on.

        Raises
        ------
        ArgumentError
            If a parameter is invalid or does not fit the samples.
        NonFiniteError
            If training diverges.
        """
        X, y = self._validated(X, y, reset=not self._is_warm, multi_output=True)
        labels, y = labels_of(y, y, self._labels if self._is_warm else None)
        samples = Samples(X, y, labels, weights=self._weights(y, sample_weight))
        if self._is_warm:
            self._train_further(samples)
        else:
            self._train_from_start(samples, labels, self.epochs)
        return self

    def _train_from_start(self, samples: Samples, labels: Classes | Indicators, epochs: int) -> None:
        self._train(samples, epochs)
        self.classes_, self.multilabel_ = labels.labels, isinstance(labels, Indicators)

    @property
    def _labels(self) -> Classes | Indicators:
        """The meaning of the outputs."""
        return Indicators(len(self.classes_)) if self.multilabel_ else Classes(self.classes_)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train the adapters for one more epoch.

        The first call also builds the network and trains its missing parts, as `fit` does, so it is best to give a base.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, labels)
            As in `fit`.
        classes : array-like, shape (classes,), optional
            All labels that can ever occur; required in the first call if samples have one label.
        sample_weight : array-like, shape (samples,), optional
            As in `fit`.
        """
        is_first = self._check_partial_fit()
        if self.class_weight == "balanced":
            raise ArgumentError("class_weight must not be 'balanced' for partial_fit, which sees a part of the samples")
        X, y = self._validated(X, y, reset=is_first, multi_output=True)
        labels, y = labels_of(y, classes, None if is_first else self._labels)
        samples = Samples(X, y, labels, weights=self._weights(y, sample_weight))
        if is_first:
            self._train_from_start(samples, labels, epochs=1)
        else:
            self._continue(samples)
        return self

    def _weights(self, y: Array, sample_weight: Any) -> Array | None:
        """The product of the weights of samples and of their classes."""
        weights = weights_of(sample_weight, len(y))
        if self.class_weight is None:
            return weights
        if not isinstance(self.class_weight, dict) and self.class_weight != "balanced":
            raise ArgumentError(f"class_weight must be a dict, 'balanced' or None, got {self.class_weight!r}")
        if y.ndim > 1:
            raise ArgumentError(f"class_weight must be None if samples have several labels, got {self.class_weight!r}")
        by_class = compute_sample_weight(self.class_weight, y)
        weights_of(by_class, len(y))
        return by_class if weights is None else by_class * weights

    def decision_function(self, X: Any) -> Array:
        """The logits, shape (samples, classes); for two classes, the second minus the first, shape (samples,)."""
        logits = self._outputs(X)
        return self._labels.decision(logits)

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, shape (samples, classes)."""
        logits = self._outputs(X)
        return self._labels.probabilities(logits)

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithm of the probability of each class, shape (samples, classes); finite where probabilities are zero."""
        logits = self._outputs(X)
        return self._labels.log_probabilities(logits)

    def predict(self, X: Any) -> Array:
        """The most probable class of each sample; with several labels, whether each is more probable than not."""
        logits = self._outputs(X)
        return self._labels.decode(logits)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@final
class LoRARegressor(RegressorMixin, OneTaskEstimator):
    """A regressor: a frozen network, whose outputs are the values of y, with trainable adapters.

    The parameters are those of `LoRAClassifier`; the loss is the mean squared error.

    Attributes
    ----------
    output_shape_ : tuple of int
        The shape of y for one sample: ``()`` or ``(values,)``.
    model_, active_ranks_, loss_curve_, n_iter_, loss_, best_loss_, n_features_in_, feature_names_in_
        As in `LoRAClassifier`.
    """

    output_shape_: tuple[int, ...]

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the missing parts of the network, then the adapters.

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
        X, y = self._validated(X, y, reset=not self._is_warm, multi_output=True, y_numeric=True)
        objective = Values(self.output_shape_ if self._is_warm else y.shape[1:])
        samples = Samples(X, y, objective, weights=weights_of(sample_weight, len(X)))
        if self._is_warm:
            self._train_further(samples)
        else:
            self._train(samples, self.epochs)
            self.output_shape_ = objective.shape
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the adapters for one more epoch; the first call also builds the network and trains its missing parts.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, values)
        sample_weight : array-like, shape (samples,), optional
            As in `fit`.
        """
        is_first = self._check_partial_fit()
        X, y = self._validated(X, y, reset=is_first, multi_output=True, y_numeric=True)
        objective = Values(y.shape[1:] if is_first else self.output_shape_)
        samples = Samples(X, y, objective, weights=weights_of(sample_weight, len(X)))
        if is_first:
            self._train(samples, epochs=1)
            self.output_shape_ = objective.shape
        else:
            self._continue(samples)
        return self

    def predict(self, X: Any) -> Array:
        """The values of each sample, in the shape of y."""
        outputs = self._outputs(X)
        return Values(self.output_shape_).decode(outputs)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
