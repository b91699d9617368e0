"""The record of a training run, and its state as callbacks see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..base import Layer
from ..run import Ranked, Run


@dataclass(frozen=True)
class Progress:
    """The state of a training run after a step, as passed to callbacks."""

    model: Layer
    epoch: int
    """Counted from 1."""
    epochs: int
    step: int
    """Counted from 1, over all epochs."""
    steps: int
    loss: float
    """The objective on this step's batch, before the step."""
    validation_loss: float | None = None
    """After the last step of an epoch, the loss on the validation data, if there are any."""

    @property
    def is_epoch_end(self) -> bool:
        """Whether this was the last step of an epoch."""
        return self.step * self.epochs == self.epoch * self.steps


@dataclass(repr=False)
class History:
    """The record of a training run, which `fit` returns."""

    step_losses: list[float] = field(default_factory=list)
    """The objective on each step's batch, before the step."""
    epoch_losses: list[float] = field(default_factory=list)
    """The mean objective of each epoch, over its rows or labels, weighted if they have weights."""
    ranks: list[tuple[int, ...]] = field(default_factory=list)
    """The training ranks of each step, one per DyLoRA adapter; none for adapters with a rank per row."""

    validation_losses: list[float] = field(default_factory=list)
    """The loss on the validation data after each epoch; empty without them."""

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 1, with the lowest finite validation loss; None if there is none."""
        finite = [(loss, epoch) for epoch, loss in enumerate(self.validation_losses, 1) if math.isfinite(loss)]
        return min(finite)[1] if finite else None

    def __repr__(self) -> str:
        shown = [f"epochs={len(self.epoch_losses)}", f"steps={len(self.step_losses)}"]
        if self.epoch_losses:
            shown.append(f"loss={self.epoch_losses[0]:.4g} -> {self.epoch_losses[-1]:.4g}")
        if (best := self.best_epoch) is not None:
            shown.append(f"best_validation_loss={self.validation_losses[best - 1]:.4g} (epoch {best})")
        return f"History({', '.join(shown)})"

    def add_step(self, loss: float, adapters: Sequence[Ranked], run: Run | None) -> None:
        """Record a step: its loss, and the ranks that its pass used."""
        ranks = [] if run is None else [adapter.rank_in(run) for adapter in adapters]
        self.step_losses.append(loss)
        self.ranks.append(tuple(rank for rank in ranks if not isinstance(rank, np.ndarray)))
