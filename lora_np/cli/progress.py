"""A progress bar for people; nothing for pipes."""

import sys
from collections.abc import Callable
from typing import TypeAlias

from ..training.fit import Progress

Listener: TypeAlias = Callable[[str], tuple[Callable[[Progress], None], ...]]
"""Takes the name of a training; returns callbacks for `lora_np.training.fit`."""


def silent(label: str) -> tuple[Callable[[Progress], None], ...]:
    """No callbacks."""
    return ()


def bar(label: str) -> tuple[Callable[[Progress], None], ...]:
    """Callbacks that draw a progress bar on a terminal; none where there is no terminal, or no tqdm."""
    if not sys.stderr.isatty():
        return ()
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return ()
    drawn = tqdm(desc=label, leave=False, file=sys.stderr)

    def advance(progress: Progress) -> None:
        drawn.total = progress.steps
        drawn.update()
        if progress.step == progress.steps:
            drawn.close()

    return (advance,)
