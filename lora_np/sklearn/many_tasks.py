"""The base class of the estimators for several tasks on one network, and the names of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._typing import Array, Generator
from .._validation import positive_int
from ..adapters import LoRAAdapterBase, MultiLoRAAdapter
from ..errors import ArgumentError
from ..functions.activations import relu
from ..layers import AffineLayer, Layer
from ..models.adapting import merge_in_place
from ..models.finding import select_task
from ..training.history import History
from ..training.optimizers import Adam
from .estimator import LoRAEstimator
from .names import alpha_of
from .networks import rank_and_alpha
from .objectives import Samples
from .sparse import predict
from .stopping import Stopping
from .trained import store

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
        rank: int | Mapping[str, int] = 4,
        alpha: float | None = -1.0,
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

    def _factory(self, samples: Samples, rng: Generator) -> Callable[[AffineLayer], LoRAAdapterBase]:
        return partial(self._multi, tasks=samples.task_names, rng=rng)

    def _multi(self, layer: AffineLayer, tasks: tuple[str, ...], rng: Generator) -> LoRAAdapterBase:
        adapter = MultiLoRAAdapter(layer, tasks[0], *self._rank_and_alpha(layer, tasks[0]), rng=rng)
        for task in tasks[1:]:
            adapter.add_task(task, *self._rank_and_alpha(layer, task))
        return adapter

    def _check_ranks(self, samples: Samples) -> None:
        for task in samples.task_names:
            self._rank_of(task)

    def _rank_and_alpha(self, layer: Layer, task: str) -> tuple[int, float]:
        return rank_and_alpha(layer, self._rank_of(task), alpha_of(self.alpha))

    def _rank_of(self, task: str) -> int:
        """The rank of the branches of a task."""
        rank = self.rank
        if not isinstance(rank, Mapping):
            return positive_int("rank", rank)
        if task not in rank:
            raise ArgumentError(f"rank must contain each task, or be a number, got none for {task!r}")
        return positive_int(f"rank[{task!r}]", rank[task])

    def _train(self, samples: Samples, epochs: int) -> None:
        self._check_ranks(samples)
        super()._train(samples, epochs)
        self.tasks_ = samples.task_names

    def _descend_further(self, samples: Samples, epochs: int, stopping: Stopping) -> History:
        """Train the branches of the tasks present; new tasks get new branches."""
        self._check_ranks(samples)
        new = tuple(name for name in samples.task_names if name not in self.tasks_)
        for adapter in self.model_.walk().values():
            if isinstance(adapter, MultiLoRAAdapter):
                for task in new:
                    if task not in adapter:  # present if an earlier call added it, then diverged
                        adapter.add_task(task, *self._rank_and_alpha(adapter, task))
        history = super()._descend_further(samples, epochs, stopping)
        self.tasks_ += new
        return history

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
        return predict(self.model_, X, tasks), tasks

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
