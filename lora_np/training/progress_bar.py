"""`ProgressBar`: a callback that shows a training run on one line of a terminal."""

from __future__ import annotations

import math
import shutil
import sys
import time
from typing import TextIO, final

from .._validation import text
from .history import Progress

INTERVAL = 0.1
"""Seconds between two updates of the line."""

CELLS = 20
"""The length of a full bar."""


@final
class ProgressBar:
    """A callback of `fit` that shows the epoch, the losses and the time left on one line, and clears it at the end.

    If the file is not a terminal, nothing is written.

    Parameters
    ----------
    label : str, default ""
        Shown in front of the bar.
    file : text file, optional
        Standard error by default.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import SGD, DenseLayer, MeanSquaredError, fit
    >>> from lora_np.training import ProgressBar
    >>> data = np.ones((8, 2)), np.ones((8, 1))
    >>> history = fit(DenseLayer(2, 1, rng=0), data, MeanSquaredError(), SGD(0.1), 5, 4, callbacks=[ProgressBar("base")])
    """

    def __init__(self, label: str = "", file: TextIO | None = None) -> None:
        text("label", label)
        self.label = label
        self.file = file
        self._first = (0, 0.0)
        """The first step of the run that was seen, and its time."""
        self._step = self._updated = math.inf
        """The last step, and the time of the last update."""

    def __call__(self, progress: Progress) -> None:
        """Show a step, unless the last update is too recent."""
        file, now = sys.stderr if self.file is None else self.file, time.monotonic()
        if not file.isatty():
            return
        if progress.step <= self._step:  # a new run
            self._first, self._updated = (progress.step, now), -math.inf
        self._step = progress.step
        if progress.step < progress.steps and now - self._updated < INTERVAL:
            return
        self._updated = now
        width = shutil.get_terminal_size().columns - 1
        line = "" if progress.step == progress.steps else self._line(progress, now)[:width]
        file.write(f"\r{line:<{width}}\r")  # what is written next replaces it
        file.flush()

    def _line(self, progress: Progress, now: float) -> str:
        step, steps = progress.step, progress.steps
        bar = "#" * (CELLS * step // steps)
        parts = [
            f"{bar:.<{CELLS}} epoch {progress.epoch}/{progress.epochs}",
            f"step {step}/{steps}",
            f"loss {progress.loss:.4g}",
        ]
        if progress.validation_loss is not None:
            parts.append(f"validation loss {progress.validation_loss:.4g}")
        first, began = self._first
        if step > first:
            minutes, seconds = divmod(round((now - began) / (step - first) * (steps - step)), 60)
            parts.append(f"{minutes}:{seconds:02} left")
        return " ".join([*([self.label] if self.label else []), ", ".join(parts)])
