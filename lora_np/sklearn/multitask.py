"""Estimators for several tasks on one network: a classifier and a regressor that are given the task of each sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self, final

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from .._typing import Array, Generator
from ..adapters import LoRAAdapterBase, MultiLoRAAdapter
from ..errors import ArgumentError
from ..functions.activations import relu, softmax
from ..layers import AffineLayer, Layer, Sequential
from ..models.adapting import merge_in_place
from ..models.finding import select_task
from ..training.optimizers import Adam
from . import files
from .estimator import LoRAEstimator
from .names import alpha_of
from .networks import choice_of_outputs, rank_and_alpha
from .objectives import Classes, Samples, Values, all_classes, log_softmax, weights_of
from .onetask import LoRAClassifier, LoRARegressor

DEFAULT_TASK = "default"
"""The task of all samples if `task` is omitted."""


class ManyTasksEstimator(LoRAEstimator):
    """An estimator with one branch per task in each layer; `MultiLoRAClassifier` describes the parameters."""

    def __init__(
        self,
        base: Any = None,
        *,
        hidden_layer_sizes: Any = (64,),
        activation: Any = relu,
        rank: int = 4,
        alpha: float | None = -1.0,
        targets: Any = None,
        optimizer: Any = Adam,
        learning_rate: float = 0.01,
        epochs: int = 20,
        base_epochs: int = 20,
        batch_size: int = 32,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.base = base
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.base_epochs = base_epochs
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def _factory(self, samples: Samples, rng: Generator) -> Callable[[AffineLayer], LoRAAdapterBase]:
        return partial(self._multi, tasks=samples.task_names, rng=rng)

    def _multi(self, layer: AffineLayer, tasks: tuple[str, ...], rng: Generator) -> LoRAAdapterBase:
        rank, alpha = rank_and_alpha(layer, self.rank, alpha_of(self.alpha))
        adapter = MultiLoRAAdapter(layer, tasks[0], rank, alpha, rng=rng)
        for task in tasks[1:]:
            adapter.add_task(task, rank, alpha)
        return adapter

    def _train(self, samples: Samples, epochs: int) -> None:
        super()._train(samples, epochs)
        self.tasks_ = samples.task_names

    def _continue(self, samples: Samples) -> None:
        """Train the branches of the tasks present for one more epoch; new tasks get new branches."""
        new = tuple(name for name in samples.task_names if name not in self.tasks_)
        for adapter in self.model_.walk().values():
            if isinstance(adapter, MultiLoRAAdapter):
                for task in new:
                    if task not in adapter:  # present if an earlier call added it, then diverged
                        adapter.add_task(task, *rank_and_alpha(adapter, self.rank, alpha_of(self.alpha)))
        super()._continue(samples)
        self.tasks_ += new

    def _known_tasks(self, task: Any, samples: int) -> tuple[str, ...]:
        """The task of each sample, which must have a branch."""
        if task is None and len(self.tasks_) == 1:
            return self.tasks_ * samples
        known = ", ".join(map(repr, self.tasks_))
        if task is None:
            raise ArgumentError(f"task must be one of {known} for each sample, got None")
        names = task_names(task, samples)
        unknown = [name for name in names if name not in self.tasks_]
        if unknown:
            raise ArgumentError(f"task must be one of {known} for each sample, got {unknown[0]!r}")
        return names

    def _outputs_and_tasks(self, X: Any, task: Any) -> tuple[Array, tuple[str, ...]]:
        check_is_fitted(self, "model_")
        X = self._validated(X, reset=False)
        tasks = self._known_tasks(task, len(X))
        return self.model_.predict(X, tasks=tasks), tasks

    def _merged_model(self, task: Any) -> Layer:
        """The network with the branches of one task merged into its weights."""
        check_is_fitted(self, "model_")
        (name,) = self._known_tasks([task], 1)
        model = self.model_.clone()
        select_task(model, name)
        merge_in_place(model)
        return model


def task_names(task: Any, samples: int) -> tuple[str, ...]:
    """The task of each sample as a string; by default, the default task."""
    if task is None:
        return (DEFAULT_TASK,) * samples
    names = np.asarray(task, dtype=object)
    if names.shape != (samples,):
        raise ArgumentError(f"task must have shape ({samples},), one name per sample, got {names.shape}")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ArgumentError(f"task must contain strings that are not blank, got {name!r}")
    return tuple(map(str, names))


@final
class MultiLoRAClassifier(ClassifierMixin, ManyTasksEstimator):
    """A classifier for several tasks that share a frozen network.

    The network has one output for each class of any task, but tasks may have different labels: a prediction is one of the
    classes that its task had in training, and the probabilities of the others are zero.

    `task` is metadata: an array-like with the name of each sample's task. If it is omitted from `fit`, all samples belong
    to one task named ``"default"``; it may be omitted from predictions if there is only one task. In a Pipeline, and in
    `cross_validate`, it is routed after ``sklearn.set_config(enable_metadata_routing=True)`` to the methods that request it
    (`set_fit_request`, `set_score_request` and so on).

    Parameters
    ----------
    base : Layer, optional
        The network that the tasks share, as in `LoRAClassifier`; its outputs are the classes of all tasks. The parts that
        are trained first are trained on the samples of all tasks.
    rank : int, default 4
        The rank of each branch; a smaller layer uses its full rank, with the same scaling.
    hidden_layer_sizes, activation, alpha, targets, optimizer, learning_rate
        As in `LoRAClassifier`.
    epochs, base_epochs, batch_size, random_state, verbose
        As in `LoRAClassifier`.

    Attributes
    ----------
    tasks_ : tuple of str
        The tasks that have adapters.
    classes_ : array
        The classes of all tasks, ascending.
    task_classes_ : dict of arrays
        The classes of each task.
    model_, loss_curve_, n_features_in_, feature_names_in_
        As in `LoRAClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import load_digits
    >>> from lora_np.sklearn import MultiLoRAClassifier
    >>> images, digits = load_digits()
    >>> X, y = np.tile(images.reshape(-1, 64), (2, 1)), np.concatenate([digits, digits % 2])
    >>> task = np.repeat(["digit", "odd"], len(digits))
    >>> classifier = MultiLoRAClassifier(epochs=2, base_epochs=5, random_state=0).fit(X, y, task=task)
    >>> classifier.task_classes_["odd"]
    array([0, 1])
    >>> classifier.score(X, y, task=task) > 0.95
    True
    """

    def fit(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> Self:
        """Train the missing parts of the network, then the adapters of all tasks.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,)
            Labels.
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.
        sample_weight : array-like, shape (samples,), optional
            As in `LoRAClassifier.fit`.

        Raises
        ------
        ArgumentError
            If a parameter is invalid or does not fit the samples.
        NonFiniteError
            If training diverges.
        """
        X, y = self._validated(X, y, reset=True)
        check_classification_targets(y)
        classes = Classes(np.unique(y))
        samples = Samples(X, y, classes, task_names(task, len(X)), weights_of(sample_weight, len(X)))
        self._train(samples, self.epochs)
        self.classes_, self.task_classes_ = classes.labels, samples.labels_by_task()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, task: Any = None, sample_weight: Any = None) -> Self:
        """Train the adapters of the tasks present for one more epoch; a new task gets new adapters.

        The first call also builds the network and trains its missing parts, as `fit` does, so it is best to give a base.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,)
            Labels.
        classes : array-like, shape (classes,)
            All labels that can ever occur, in any task; required in the first call.
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.
        sample_weight : array-like, shape (samples,), optional
            As in `LoRAClassifier.fit`.
        """
        is_first = not hasattr(self, "model_")
        X, y = self._validated(X, y, reset=is_first)
        objective = all_classes(classes, None if is_first else self.classes_)
        samples = Samples(X, y, objective, task_names(task, len(X)), weights_of(sample_weight, len(X)))
        if is_first:
            self._train(samples, epochs=1)
            self.classes_, self.task_classes_ = objective.labels, {}
        else:
            self._continue(samples)
        for name, labels in samples.labels_by_task().items():
            self.task_classes_[name] = np.union1d(self.task_classes_.get(name, labels), labels)
        return self

    def predict_proba(self, X: Any, task: Any = None) -> Array:
        """The probability of each class, shape (samples, classes); zero for classes that the sample's task does not have.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        task : array-like of str, shape (samples,), optional
        """
        return softmax(self._logits(X, task))

    def _logits(self, X: Any, task: Any) -> Array:
        """The logits of the classes that each sample's task has; -∞ for the others."""
        logits, tasks = self._outputs_and_tasks(X, task)
        has = {name: np.isin(self.classes_, labels) for name, labels in self.task_classes_.items()}
        return np.where([has[name] for name in tasks], logits, -np.inf)

    def predict_log_proba(self, X: Any, task: Any = None) -> Array:
        """The logarithms of the probabilities; -∞ for classes that the sample's task does not have.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        task : array-like of str, shape (samples,), optional
        """
        return log_softmax(self._logits(X, task))

    def predict(self, X: Any, task: Any = None) -> Array:
        """The most probable class of each sample.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        task : array-like of str, shape (samples,), optional
        """
        best = self.predict_proba(X, task).argmax(axis=1)
        return self.classes_[best]

    def score(self, X: Any, y: Any, sample_weight: Any = None, task: Any = None) -> float:
        """The accuracy over all samples.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,)
        sample_weight : array-like, shape (samples,), optional
        task : array-like of str, shape (samples,), optional
        """
        return float(accuracy_score(y, self.predict(X, task), sample_weight=sample_weight))

    def merge(self, task: str) -> LoRAClassifier:
        """A fitted classifier for one task, with the same predictions and no adapters."""
        model, labels = self._merged_model(task), self.task_classes_[task]
        chosen = choice_of_outputs(len(self.classes_), np.flatnonzero(np.isin(self.classes_, labels)), model.dtype)
        return files.twin(self, LoRAClassifier, Sequential([model, chosen]), classes_=labels, active_ranks_=())


@final
class MultiLoRARegressor(RegressorMixin, ManyTasksEstimator):
    """A regressor for several tasks that share a frozen network; y has the same shape for all of them.

    The parameters, and `task`, are those of `MultiLoRAClassifier`; the loss is the mean squared error.

    Attributes
    ----------
    tasks_ : tuple of str
        The tasks that have adapters.
    output_shape_, model_, loss_curve_, n_features_in_, feature_names_in_
        As in `LoRARegressor`.
    """

    def fit(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> Self:
        """Train the missing parts of the network, then the adapters of all tasks.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, values)
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.
        sample_weight : array-like, shape (samples,), optional
            As in `LoRAClassifier.fit`.

        Raises
        ------
        ArgumentError
            If a parameter is invalid or does not fit the samples.
        NonFiniteError
            If training diverges.
        """
        X, y = self._validated(X, y, reset=True, multi_output=True, y_numeric=True)
        objective = Values(y.shape[1:])
        self._train(Samples(X, y, objective, task_names(task, len(X)), weights_of(sample_weight, len(X))), self.epochs)
        self.output_shape_ = objective.shape
        return self

    def partial_fit(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> Self:
        """Train the adapters of the tasks present for one more epoch; a new task gets new adapters.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, values)
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.
        sample_weight : array-like, shape (samples,), optional
            As in `LoRAClassifier.fit`.
        """
        is_first = not hasattr(self, "model_")
        X, y = self._validated(X, y, reset=is_first, multi_output=True, y_numeric=True)
        objective = Values(y.shape[1:] if is_first else self.output_shape_)
        samples = Samples(X, y, objective, task_names(task, len(X)), weights_of(sample_weight, len(X)))
        if is_first:
            self._train(samples, epochs=1)
            self.output_shape_ = objective.shape
        else:
            self._continue(samples)
        return self

    def predict(self, X: Any, task: Any = None) -> Array:
        """The values of each sample, in the shape of y.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        task : array-like of str, shape (samples,), optional
        """
        outputs, _ = self._outputs_and_tasks(X, task)
        return Values(self.output_shape_).decode(outputs)

    def score(self, X: Any, y: Any, sample_weight: Any = None, task: Any = None) -> float:
        """The coefficient of determination R² over all samples.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, values)
        sample_weight : array-like, shape (samples,), optional
        task : array-like of str, shape (samples,), optional
        """
        return float(r2_score(y, self.predict(X, task), sample_weight=sample_weight))

    def merge(self, task: str) -> LoRARegressor:
        """A fitted regressor for one task, with the same predictions and no adapters."""
        return files.twin(self, LoRARegressor, self._merged_model(task), active_ranks_=())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
