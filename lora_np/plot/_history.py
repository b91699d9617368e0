"""The losses of a training run."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from .._typing import Array
from ..errors import ArgumentError
from ..training import History
from ._style import COLOURS, axes_or_new, finish

WINDOWS = 50
"""The running mean spans this fraction of all steps."""
WIDE_RANGE = 30.0
"""If the largest loss exceeds the smallest by more than this factor, the axis is logarithmic."""


def history(history: History, *, ax: Axes | None = None) -> Axes:
    """Plot the losses of a training run: of each step, their running mean, the mean of each epoch, and on validation data.

    Parameters
    ----------
    history : History
        The result of `fit`.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If `history` is not a History, or has no steps.

    Notes
    -----
    The mean of an epoch is drawn in its middle, the validation loss at its end, where it was measured. A star marks the
    epoch with the lowest validation loss. The running mean is centred and spans a fiftieth of the steps; at both ends it
    spans those that exist. If positive losses differ by more than a factor of 30, their axis is logarithmic.
    """
    if not isinstance(history, History):
        raise ArgumentError(f"history must be a History, got {history!r}")
    losses = np.array(history.step_losses, dtype=float)
    if not losses.size:
        raise ArgumentError(f"history must hold at least one step, got {history!r}")
    ax = axes_or_new(ax)
    first, second, third = COLOURS[:3]
    steps = np.arange(1, len(losses) + 1)
    window = len(losses) // WINDOWS
    is_smoothed = window > 1
    ax.plot(steps, losses, color=first, alpha=0.3 if is_smoothed else 1.0, linewidth=0.8, label="each step")
    if is_smoothed:
        ax.plot(steps, running_mean(losses, window), color=first, label=f"running mean of {window} steps")
    means, validation = np.array(history.epoch_losses, float), np.array(history.validation_losses, float)
    epoch = len(losses) / max(len(means), 1)  # in steps
    if means.size:
        middles = (np.arange(len(means)) + 0.5) * epoch + 0.5
        ax.plot(middles, means, "o", color=second, markersize=4, label="mean of each epoch")
    if validation.size:
        ends = epoch * np.arange(1, len(validation) + 1)
        ax.plot(ends, validation, "s--", color=third, markersize=4, label="validation")
    if (best := history.best_epoch) is not None:
        label = f"best: epoch {best}, {validation[best - 1]:.3g}"
        ax.plot(ends[best - 1], validation[best - 1], "*", color=third, markersize=14, markeredgecolor="black", label=label)
    shown = np.concatenate([losses, means, validation])
    shown = shown[np.isfinite(shown)]
    if shown.size and 0 < WIDE_RANGE * shown.min() < shown.max():
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel="loss")
    finish(ax)
    ax.legend(frameon=False)
    return ax


def running_mean(values: Array, window: int) -> Array:
    """The centred mean of the finite values in each window, which both ends cut off; NaN if there are none."""
    finite = np.isfinite(values)
    ones = np.ones(window)
    sums = np.convolve(np.where(finite, values, 0.0), ones, mode="same")
    counts = np.convolve(finite.astype(float), ones, mode="same").round()
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
