"""Plots of adapters and trainings: each function draws into the given axes, or into new ones, and returns them.

Requires matplotlib (``pip install "lora_np[plot]"``), whose global state is left alone. To save a plot, call
``ax.figure.savefig(path)``; to show it in a notebook, run ``%matplotlib inline`` and evaluate ``ax.figure``.
"""

from __future__ import annotations

from ..errors import NotSupportedError

try:
    from ._data_flow import data_flow
    from ._history import history
    from ._ranks import budget, rank_quality, rank_slices
    from ._spectra import spectra
    from ._style import COLOURS
    from ._tasks import task_matrix
except ImportError as error:
    raise NotSupportedError('lora_np.plot needs matplotlib: pip install "lora_np[plot]"') from error

__all__ = ["rank_slices", "data_flow", "budget", "rank_quality", "spectra", "task_matrix", "history", "COLOURS"]
