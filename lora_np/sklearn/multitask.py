"""Estimators for several tasks on one network: a classifier and a regressor that are given the task of each sample."""

from __future__ import annotations

from typing import Any, Self, final

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets

from .._typing import Array
from ..functions.activations import softmax
from ..layers import Sequential
from . import files
from .many_tasks import ManyTasksEstimator, task_names
from .networks import choice_of_outputs
from .objectives import Samples, Values, all_classes, log_softmax, weights_of
from .onetask import LoRAClassifier, LoRARegressor


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
    rank : int or mapping of str to int, default 4
        The rank of each branch, or one for each task, ``{"sentiment": 4, "ner": 8}``, which may contain tasks that
        `partial_fit` adds later. A smaller layer uses its full rank, with the same scaling.
    hidden_layer_sizes, activation, alpha, targets, optimizer, learning_rate
        As in `LoRAClassifier`.
    epochs, base_epochs, batch_size, early_stopping, validation_fraction, n_iter_no_change, tol, random_state, verbose
        As in `LoRAClassifier`. Held-out samples have the same shares of tasks and classes.
    warm_start : bool, default False
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

    classes_: Array
    task_classes_: dict[str, Array]

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
        X, y = self._validated(X, y, reset=not self._is_warm)
        check_classification_targets(y)
        classes = all_classes(np.unique(y), self.classes_ if self._is_warm else None)
        samples = Samples(X, y, classes, task_names(task, len(X)), weights_of(sample_weight, len(X)))
        if self._is_warm:
            self._train_further(samples)
        else:
            self._train(samples, self.epochs)
            self.classes_, self.task_classes_ = classes.labels, {}
        self._add_labels(samples)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, task: Any = None, sample_weight: Any = None) -> Self:
        """Train the adapters of the tasks present for one more epoch; a new task gets new adapters.

        The first call also builds the network and trains its missing parts, as `fit` does, so it is best to give a base.

        Parameters
        ----------
        X : array-like, shape (samples, features)
        y : array-like, shape (samples,)
            Labels.
        classes : array-like, shape (classes,), optional
            All labels that can ever occur, in any task; required in the first call.
        task : array-like of str, shape (samples,), optional
            The name of each sample's task.
        sample_weight : array-like, shape (samples,), optional
            As in `LoRAClassifier.fit`.
        """
        is_first = self._check_partial_fit()
        X, y = self._validated(X, y, reset=is_first)
        objective = all_classes(classes, None if is_first else self.classes_)
        samples = Samples(X, y, objective, task_names(task, len(X)), weights_of(sample_weight, len(X)))
        if is_first:
            self._train(samples, epochs=1)
            self.classes_, self.task_classes_ = objective.labels, {}
        else:
            self._continue(samples)
        self._add_labels(samples)
        return self

    def _add_labels(self, samples: Samples) -> None:
        for name, labels in samples.labels_by_task().items():
            self.task_classes_[name] = np.union1d(self.task_classes_.get(name, labels), labels)

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
        learned = {"classes_": labels, "multilabel_": False, "active_ranks_": ()}
        return files.twin(self, LoRAClassifier, Sequential([model, chosen]), **learned).set_params(rank=self._rank_of(task))


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

    output_shape_: tuple[int, ...]

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
        X, y = self._validated(X, y, reset=not self._is_warm, multi_output=True, y_numeric=True)
        objective = Values(self.output_shape_ if self._is_warm else y.shape[1:])
        samples = Samples(X, y, objective, task_names(task, len(X)), weights_of(sample_weight, len(X)))
        if self._is_warm:
            self._train_further(samples)
        else:
            self._train(samples, self.epochs)
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
        is_first = self._check_partial_fit()
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
        return files.twin(self, LoRARegressor, self._merged_model(task), active_ranks_=()).set_params(
            rank=self._rank_of(task)
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
