"""A progress bar for interactive terminals."""

import sys
from collections.abc import Callable
from typing import TypeAlias

from ..training.history import Progress

Callbacks: TypeAlias = tuple[Callable[[Progress], None], ...]
"""The callbacks of a call to `lora_np.training.fit`."""

Listener: TypeAlias = Callable[[str], Callbacks]
"""Called with the label of a training run; returns its callbacks."""


def silent(label: str) -> Callbacks:
    """No callbacks: show nothing."""
    return ()


def bar(label: str) -> Callbacks:
    """Callbacks that show a progress bar on standard error; none if it is not a terminal or tqdm is not installed."""
    if not sys.stderr.isatty():
        return ()
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return ()
    shown = tqdm(desc=label, leave=False, file=sys.stderr)

    def advance(progress: Progress) -> None:
        shown.total = progress.steps
        shown.update()
        if progress.step == progress.steps:
            shown.close()

    return (advance,)
