"""What estimators that train have in common: their optimizer, their random state, and the progress that they show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from .._typing import Array, Generator
from ..base import Layer
from ..training.fit import fit
from ..training.history import History, Progress
from ..training.nested_dropout import RankSchedule, shared_rank
from ..training.optimizers import Optimizer
from ..training.schedules import Schedule
from ..training.sorted_start import SortedStart
from .names import optimizer_of
from .objectives import Samples
from .stopping import Stopping

Callbacks: TypeAlias = tuple[Callable[[Progress], None], ...]


TO_THE_END = Stopping()


def store(estimator: BaseEstimator, arguments: Mapping[str, Any]) -> None:
    """Store the arguments of a constructor as they are, each under its name, as scikit-learn requires."""
    for name, value in arguments.items():
        if name != "self":
            setattr(estimator, name, value)


class TrainedEstimator(BaseEstimator):
    """An estimator with the parameters `optimizer`, `learning_rate`, `batch_size`, `random_state` and `verbose`.

    Attributes
    ----------
    model_ : Layer
    loss_curve_ : array of float
        The mean loss of each epoch of adapter training.
    """

    model_: Layer
    loss_curve_: Array

    def _descend(
        self,
        label: str,
        model: Layer,
        samples: Samples,
        optimizer: Optimizer,
        epochs: int,
        rng: Generator,
        schedule: Schedule | None = None,
        rank_schedule: RankSchedule | SortedStart = shared_rank,
        stopping: Stopping = TO_THE_END,
    ) -> History:
        """Train a model on the samples."""
        data, loss, tasks = (samples.X, samples.targets), samples.objective.loss, samples.tasks
        callbacks = _on_terminal(label) if self.verbose else ()
        return fit(
            model,
            data,
            loss,
            optimizer,
            epochs,
            self.batch_size,
            tasks=tasks,
            weights=samples.weights,
            rng=rng,
            schedule=schedule,
            rank_schedule=self._drawn(rank_schedule, rng),
            callbacks=callbacks,
            **stopping.of_fit(),
        )

    def _drawn(self, ranks: RankSchedule | SortedStart, rng: Generator) -> RankSchedule | SortedStart:
        """The rank schedule as `fit` takes it, given the generator of the sample order."""
        return ranks

    def _ranks(self) -> RankSchedule | SortedStart:
        """The rank schedule of a new training run."""
        return shared_rank

    def _new_optimizer(self) -> Optimizer:
        return optimizer_of(self.optimizer, self.learning_rate)

    def _generator(self) -> Generator:
        """A generator for `random_state` as in scikit-learn, except that None does not mean NumPy's global generator."""
        if self.random_state is None:
            return np.random.default_rng()
        return np.random.default_rng(check_random_state(self.random_state).randint(2**31, size=4))


def _on_terminal(label: str) -> Callbacks:
    """Callbacks that show each epoch and its last loss on one line of the terminal; none without a terminal."""
    return (partial(_show, label),) if sys.stderr.isatty() else ()


def _show(label: str, progress: Progress) -> None:
    if progress.is_epoch_end:
        line = f"{label}: epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.4g}"
        print(f"\r{line:60}", end="\n" if progress.epoch == progress.epochs else "", file=sys.stderr, flush=True)
