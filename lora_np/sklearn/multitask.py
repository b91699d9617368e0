"""Many tasks on one network: a classifier and a regressor that are told the task of each sample."""

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
from ..models.adapting import merge_in_place, select_task
from ..training.optimizers import Adam
from . import files
from .estimator import LoRAEstimator
from .networks import choice_of_outputs, rank_and_alpha
from .objectives import Classes, Samples, Values, all_classes
from .onetask import LoRAClassifier, LoRARegressor

DEFAULT_TASK = "default"
"""The task of all samples where `task` is left out."""


class ManyTasksEstimator(LoRAEstimator):
    """An estimator with a branch for each task at each layer; `MultiLoRAClassifier` describes the parameters."""

    def __init__(
        self,
        base: Any = None,
        *,
        hidden_layer_sizes: Any = (64,),
        activation: Any = relu,
        rank: int = 4,
        alpha: float = -1.0,
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
        rank, alpha = rank_and_alpha(layer, self.rank, self.alpha)
        adapter = MultiLoRAAdapter(layer, tasks[0], rank, alpha, rng=rng)
        for task in tasks[1:]:
            adapter.add_task(task, rank, alpha)
        return adapter

    def _train(self, samples: Samples, epochs: int) -> None:
        super()._train(samples, epochs)
        self.tasks_ = samples.task_names

    def _continue(self, samples: Samples) -> None:
        """One more epoch for the branches of the tasks present, with new branches for new tasks."""
        new = tuple(name for name in samples.task_names if name not in self.tasks_)
        for adapter in self.model_.walk().values():
            if isinstance(adapter, MultiLoRAAdapter):
                for task in new:
                    if task not in adapter:  # it is there when an earlier call added it, and then diverged
                        adapter.add_task(task, *rank_and_alpha(adapter, self.rank, self.alpha))
        super()._continue(samples)
        self.tasks_ += new

    def _known_tasks(self, task: Any, samples: int) -> tuple[str, ...]:
        """The task of each sample, for which there must be a branch."""
        if task is None and len(self.tasks_) == 1:
            return self.tasks_ * samples
        known = ", ".join(map(repr, self.tasks_))
        if task is None:
            raise ArgumentError(f"task must name the task of each sample: there are {known}")
        names = task_names(task, samples)
        unknown = [name for name in names if name not in self.tasks_]
        if unknown:
            raise ArgumentError(f"task must hold tasks that were fitted, which are {known}; no adapter for {unknown[0]!r}")
        return names

    def _routed_outputs(self, X: Any, task: Any) -> tuple[Array, tuple[str, ...]]:
        check_is_fitted(self, "model_")
        X = self._validated(X, reset=False)
        tasks = self._known_tasks(task, len(X))
        return self.model_.predict(X, tasks=tasks), tasks

    def _merged_model(self, task: Any) -> Layer:
        """The network with the branches of one task merged into it."""
        check_is_fitted(self, "model_")
        (name,) = self._known_tasks([task], 1)
        model = self.model_.clone()
        select_task(model, name)
        merge_in_place(model)
        return model


def task_names(task: Any, samples: int) -> tuple[str, ...]:
    """The task of each sample as a string; the default one where there is none."""
    if task is None:
        return (DEFAULT_TASK,) * samples
    names = np.asarray(task, dtype=object)
    if names.shape != (samples,):
        raise ArgumentError(f"task must have a name for each of {samples} samples, got shape {names.shape}")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ArgumentError(f"task must hold strings that are not blank, got {name!r}")
    return tuple(map(str, names))


@final
class MultiLoRAClassifier(ClassifierMixin, ManyTasksEstimator):
    """A classifier for several tasks that share a frozen network.

    Every task has the outputs of all classes, and may have labels of its own: a prediction for a task is one of the classes
    that this task had in training, and the probabilities of the others are zero.

    `task` is metadata: an array-like with the name of each sample's task. Left out of `fit`, it is one task named
    ``"default"``; left out of predictions, it is the only task that there is. Inside a Pipeline, and in `cross_validate`,
    it is routed once ``sklearn.set_config(enable_metadata_routing=True)`` and `set_fit_request`, `set_score_request` and so
    on have asked for it.

    Parameters
    ----------
    base : Layer, optional
        What all tasks share, as in `LoRAClassifier`; its outputs are the classes of all tasks. What is trained first, the
        head or the network, is trained on the samples of all tasks alike.
    rank : int, default 4
        Of each task's branch at each dense layer; a layer that is smaller takes its full rank, with the same scaling.
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

    def fit(self, X: Any, y: Any, task: Any = None) -> Self:
        """Train the adapters of all tasks, and before them the network if there is none.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,)
            Labels.
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.

        Raises
        ------
        ArgumentError
            A parameter breaks its rule, or does not fit the samples.
        NonFiniteError
            The training diverged.
        """
        X, y = self._validated(X, y, reset=True)
        check_classification_targets(y)
        classes = Classes(np.unique(y))
        samples = Samples(X, y, classes, task_names(task, len(X)))
        self._train(samples, self.epochs)
        self.classes_, self.task_classes_ = classes.labels, samples.labels_by_task()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, task: Any = None) -> Self:
        """Train the adapters of the tasks present for one epoch more; a new task gets adapters of its own.

        The first call builds the network, and trains what it lacks, as `fit` does: a base is best given.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,)
            Labels.
        classes : array-like, shape (classes,)
            All labels that will ever be there, of any task; needed at the first call.
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.
        """
        is_first = not hasattr(self, "model_")
        X, y = self._validated(X, y, reset=is_first)
        objective = all_classes(classes, None if is_first else self.classes_)
        samples = Samples(X, y, objective, task_names(task, len(X)))
        if is_first:
            self._train(samples, epochs=1)
            self.classes_, self.task_classes_ = objective.labels, {}
        else:
            self._continue(samples)
        for name, labels in samples.labels_by_task().items():
            self.task_classes_[name] = np.union1d(self.task_classes_.get(name, labels), labels)
        return self

    def predict_proba(self, X: Any, task: Any = None) -> Array:
        """The probability of each class, shape (samples, classes); zero for those that the sample's task does not have.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        task : array-like of str, shape (samples,), optional
        """
        logits, tasks = self._routed_outputs(X, task)
        has = {name: np.isin(self.classes_, labels) for name, labels in self.task_classes_.items()}
        return softmax(np.where([has[name] for name in tasks], logits, -np.inf))

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
        """A fitted classifier for one task, with the same predictions, whose network has no adapters."""
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

    def fit(self, X: Any, y: Any, task: Any = None) -> Self:
        """Train the adapters of all tasks, and before them the network if there is none.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, values)
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.

        Raises
        ------
        ArgumentError
            A parameter breaks its rule, or does not fit the samples.
        NonFiniteError
            The training diverged.
        """
        X, y = self._validated(X, y, reset=True, multi_output=True, y_numeric=True)
        objective = Values(y.shape[1:])
        self._train(Samples(X, y, objective, task_names(task, len(X))), self.epochs)
        self.output_shape_ = objective.shape
        return self

    def partial_fit(self, X: Any, y: Any, task: Any = None) -> Self:
        """Train the adapters of the tasks present for one epoch more; a new task gets adapters of its own.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,) or (samples, values)
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.
        """
        is_first = not hasattr(self, "model_")
        X, y = self._validated(X, y, reset=is_first, multi_output=True, y_numeric=True)
        objective = Values(y.shape[1:] if is_first else self.output_shape_)
        samples = Samples(X, y, objective, task_names(task, len(X)))
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
        outputs, _ = self._routed_outputs(X, task)
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
        """A fitted regressor for one task, with the same predictions, whose network has no adapters."""
        return files.twin(self, LoRARegressor, self._merged_model(task), active_ranks_=())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
