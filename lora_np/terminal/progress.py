"""A progress bar for interactive terminals."""

from collections.abc import Callable
from typing import TypeAlias

from ..training.history import Progress
from ..training.progress_bar import ProgressBar

Callbacks: TypeAlias = tuple[Callable[[Progress], None], ...]
"""The callbacks of a call to `lora_np.training.fit`."""

Listener: TypeAlias = Callable[[str], Callbacks]
"""Called with the label of a training run; returns its callbacks."""


def silent(label: str) -> Callbacks:
    """No callbacks: show nothing."""
    return ()


def bar(label: str) -> Callbacks:
    """Callbacks that show a progress bar on standard error, if it is a terminal and tqdm is installed."""
    try:
        return (ProgressBar(label),)
    except ImportError:
        return ()
