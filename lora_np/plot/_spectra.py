"""Singular values: lines for a few layers, a heat map for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from .._typing import Array
from .._validation import real_array
from ..base import Layer
from ..errors import ArgumentError
from ..factors.surgery import spectrum
from ..layers.lora import LoRALayer
from ._style import IDLE, MOST_TICKS, ORDER, as_text, axes_or_new, finish, line_style

MOST_LINES = 8
"""Up to this many layers are drawn as lines; more, as the rows of a heat map."""
QUANTITY = "singular value of ΔW"
ROUNDING = 64
"""Singular values below this many rounding units of the largest one count as zero."""


def spectra(layers: Layer | Mapping[str, LoRALayer | Array], *, ax: Axes | None = None) -> Axes:
    """Plot the singular values of ``ΔW = s A B``: what each component contributes, and what truncation would lose.

    Parameters
    ----------
    layers : Layer, or mapping of str to LoRALayer or array
        For a layer or model, all low-rank layers inside it are plotted, by dotted path. In a mapping, known singular values
        may be given instead of a layer: in descending order, shape (k,).
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If `layers` holds no low-rank layer, if an element is neither a LoRALayer nor singular values, or if factors are not
        finite.

    Notes
    -----
    Up to 8 layers are drawn as lines; more, as a heat map with one row per layer. The scale is logarithmic, so singular
    values that are zero up to rounding are omitted.
    """
    if isinstance(layers, Layer):
        layers = {path: layer for path, layer in layers.walk().items() if isinstance(layer, LoRALayer)}
    labels = [as_text(name) for name in layers]
    curves = [_singular_values(f"layers[{name!r}]", layer) for name, layer in layers.items()]
    if not curves:
        raise ArgumentError("layers must hold at least one LoRALayer, got none")
    ax = axes_or_new(ax)
    (_draw_lines if len(curves) <= MOST_LINES else _draw_heat_map)(ax, labels, curves)
    ax.set_xlabel("component")
    return ax


def _draw_lines(ax: Axes, labels: Sequence[str], curves: Sequence[Array]) -> None:
    for i, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        ax.plot(np.arange(1, len(curve) + 1), curve, label=label, markersize=4, **line_style(i))
    if any(np.isfinite(curve).any() for curve in curves):  # those of a new adapter are all zero
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(QUANTITY)
    finish(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")


def _draw_heat_map(ax: Axes, labels: Sequence[str], curves: Sequence[Array]) -> None:
    """One row per layer; components that a layer lacks, or that are zero, are grey."""
    count, widest = len(curves), max(map(len, curves))
    grid = np.full((count, widest), np.nan)
    for row, curve in zip(grid, curves, strict=True):
        row[: len(curve)] = curve
    scale = LogNorm() if np.isfinite(grid).any() else None
    ax.set_facecolor(IDLE)
    image = ax.imshow(
        grid, cmap=ORDER, norm=scale, aspect="auto", interpolation="nearest", extent=(0.5, widest + 0.5, count, 0)
    )
    ticks = np.unique(np.linspace(0, count - 1, min(MOST_TICKS, count)).round().astype(int))
    ax.set_yticks(ticks + 0.5, [labels[tick] for tick in ticks], fontsize="x-small")
    if len(ticks) < count:
        ax.set_ylabel(f"{len(ticks)} of {count} layers named")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, pad=0.02, label=QUANTITY)


def _singular_values(name: str, layer: LoRALayer | Array) -> Array:
    """The singular values to plot: NaN instead of zero."""
    if isinstance(layer, LoRALayer):
        try:
            sigma = spectrum(layer)
        except ArgumentError as error:
            raise ArgumentError(f"{name}: {error}") from None
    else:
        sigma = real_array(name, layer, float)
    if sigma.ndim != 1 or not sigma.size:
        raise ArgumentError(f"{name} must be a LoRALayer or its singular values, shape (k,), got shape {sigma.shape}")
    return np.where(sigma > ROUNDING * np.finfo(sigma.dtype).eps * sigma[0], sigma, np.nan)
