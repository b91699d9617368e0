"""The number of BLAS threads of a command, which must be set before NumPy is imported."""

import os
import sys
from collections.abc import Sequence

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MOST = 8
"""More threads gain little for the matrices of an encoder, and slow down whatever else the machine does."""


def choose_threads(words: Sequence[str]) -> None:
    """Set the number for a command, given its words, unless the environment does or NumPy is imported already.

    The digits of the demo and the layers of gradcheck are so small that one thread is the fastest.
    """
    if "numpy" in sys.modules or any(name in os.environ for name in (*VARIABLES, "OMP_NUM_THREADS")):
        return
    is_small = words[:1] == ["gradcheck"] or (words[:1] == ["demo"] and words[1:2] != ["text"])
    count = 1 if is_small else min(_processors(), MOST)
    os.environ.update(dict.fromkeys(VARIABLES, str(count)))


def _processors() -> int:
    """The processors that this process may use: in a container, often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
