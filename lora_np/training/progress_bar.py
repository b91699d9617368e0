"""`ProgressBar`: a callback that shows a training run on one line of a terminal."""

from __future__ import annotations

import sys
from typing import Any, TextIO, final

from .._validation import text
from .history import Progress


@final
class ProgressBar:
    """A callback of `fit` that shows steps, losses and the time left on one line, which disappears at the end.

    If the file is not a terminal, nothing is written. Requires tqdm, the extra ``progress``.

    Parameters
    ----------
    label : str, default ""
        Shown in front of the bar.
    file : text file, optional
        Standard error by default.

    Raises
    ------
    ImportError
        If tqdm is not installed.

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
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]
        except ImportError:
            raise ImportError('ProgressBar needs tqdm: pip install "lora_np[progress]"') from None
        self.label = label
        self.file = file
        self._new = tqdm
        self._bar: Any = None

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        file = sys.stderr if self.file is None else self.file
        if not file.isatty():
            return
        if self._bar is None or progress.step <= self._bar.n:  # a new run
            self._bar = self._new(desc=self.label or None, total=progress.steps, leave=False, file=file)
        losses = {"loss": progress.loss, "validation": progress.validation_loss}
        shown = {name: f"{loss:.4g}" for name, loss in losses.items() if loss is not None}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(progress.step - self._bar.n)
        if progress.step == progress.steps:
            self._bar.close()
