"""`SortedStart`: a warm-up at the highest rank, after which the components are sorted, before nested dropout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from .._typing import Generator
from .._validation import function
from ..base import Layer
from ..errors import ArgumentError
from ..run import LAST_QUANTILE, Draw, Rank, Ranked
from .nested_dropout import RankSchedule, current_tasks, rank_per_row, ranked
from .optimizers import Optimizer
from .sorting import checked_warmup, sort_components, trained_branches, warmup_length


@final
@dataclass(frozen=True)
class SortedStart:
    """Train at the highest rank first, then sort the components, and continue with another rank schedule.

    The warm-up finds the directions that matter most, as a LoRA of the highest rank does. `sort_components` then puts them
    in order, without changing the function at the highest rank, so that nested dropout starts from ordered components.
    ``docs/dylora-quality.md`` reports what this gains.

    Parameters
    ----------
    warmup : float or int, default 1/24
        The length of the warm-up: a fraction of all steps, in (0, 1), or a number of steps, at least 1.
    then : callable, default `rank_per_row`
        The rank schedule after the warm-up.

    Notes
    -----
    The optimizer's state of the sorted factors is discarded, because their elements no longer mean the same.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Adam, DenseLayer, DyLoRAAdapter, MeanSquaredError, fit
    >>> from lora_np.training import LinearDecay, SortedStart
    >>> x = np.random.default_rng(0).normal(size=(64, 8))
    >>> adapter = DyLoRAAdapter(DenseLayer(8, 8, rng=1), 4, [1, 2, 4], rng=2)
    >>> options = {"rank_schedule": SortedStart(), "schedule": LinearDecay()}
    >>> history = fit(adapter, (x, x), MeanSquaredError(), Adam(0.02), epochs=60, batch_size=16, rng=3, **options)
    >>> history.ranks[:10], history.ranks[10:12]  # 240 steps, 10 of them at the highest rank; then each row has its own
    ([(4,), (4,), (4,), (4,), (4,), (4,), (4,), (4,), (4,), (4,)], [(), ()])
    """

    warmup: float = 1 / 24
    then: RankSchedule = rank_per_row

    def __post_init__(self) -> None:
        object.__setattr__(self, "warmup", checked_warmup(self.warmup))
        if isinstance(self.then, SortedStart):
            raise ArgumentError(f"then must be a rank schedule without a sorted start, got {self.then!r}")
        function("then", self.then)


@final
class StepRanks:
    """The ranks of each step of a training run: those of a rank schedule, which may have a sorted start.

    Parameters
    ----------
    schedule : callable, or SortedStart
    model : Layer
    optimizer : Optimizer
    steps : int
        The number of steps of the run.
    tasks : iterable of str or None, optional
        The tasks of the rows; by default, the current task of each layer. The components of other tasks are not sorted.

    Raises
    ------
    ArgumentError, InvalidOperationError
        If a sorted start does not fit the model or the number of steps.
    """

    def __init__(
        self,
        schedule: RankSchedule | SortedStart,
        model: Layer,
        optimizer: Optimizer,
        steps: int,
        tasks: Iterable[str | None] | None = None,
    ) -> None:
        self.adapters: list[Ranked] = ranked(model)
        self.start = 0
        """The number of warm-up steps."""
        if isinstance(schedule, SortedStart):
            self._tasks = current_tasks(model) if tasks is None else set(tasks)
            if not trained_branches(model, self._tasks):
                raise ArgumentError(
                    f"rank_schedule must not be a SortedStart: {model.layer_name} has no DyLoRA adapters and no tasks with "
                    "ranks to train"
                )
            self.start, schedule = warmup_length(schedule.warmup, steps), schedule.then
        function("rank_schedule", schedule)
        self.schedule: RankSchedule = schedule
        self._sorted = model, optimizer
        self._is_warmup = False

    def begin(self, step: int) -> None:
        """Prepare a step, counted from 0: sort the components if it is the first one after the warm-up."""
        self._is_warmup = step < self.start
        if 0 < self.start == step:
            sort_components(*self._sorted, tasks=self._tasks)

    def draw(self, rng: Generator, rows: int) -> Rank | None:
        """The rank of the step, or of a part of its rows."""
        return Draw(LAST_QUANTILE) if self._is_warmup else self.schedule(self.adapters, rng, rows)
