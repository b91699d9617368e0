"""Pictures of adapters: each function draws into the axes that it is given, or into new ones, and returns them.

Needs matplotlib, which ``pip install "lora_np[plot]"`` brings. Its global state is not touched: `ax.figure.savefig` writes
a picture, and a notebook shows one that is the last value of a cell through ``ax.figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._validation import ascending_ranks, integer, real_array
from .adapters.base import LoRAAdapterBase
from .adapters.dylora import DyLoRAAdapter
from .adapters.multilora import MultiLoRAAdapter
from .errors import ArgumentError, NotSupportedError
from .layers.base import Layer
from .layers.lora import LoRALayer
from .surgery import spectrum

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise NotSupportedError('lora_np.plot needs matplotlib: pip install "lora_np[plot]"') from error

COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart; markers and lines say the same once more."""
MARKERS = "osv^Dp*"
LINES = ("-", "--", ":", "-.", "-", "--", ":")
FROZEN, TRAINED, IDLE = "#5f6b76", COLOURS[0], "#e4e9ee"
WHITE_BELOW = 0.5
"""Of the scale: text on darker colours is white."""


def rank_quality(
    curves: Mapping[str, Mapping[int, float]], *, quality: str = "accuracy in %", ax: Axes | None = None
) -> Axes:
    """Quality by rank: one line for each way of training.

    Parameters
    ----------
    curves : mappings from rank to quality, by name
    quality : str
        What the numbers are, for the axis.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        There is no curve, or one without a rank.
    """
    if not curves or not all(curves.values()):
        raise ArgumentError(f"curves must hold at least one, each with a rank, got {curves!r}")
    ax = _axes(ax)
    for i, (name, points) in enumerate(curves.items()):
        ranks = ascending_ranks(f"ranks of {name}", sorted(points), max(points))
        ax.plot(ranks, [points[rank] for rank in ranks], label=name, **_style(i))
    every_rank = sorted({rank for points in curves.values() for rank in points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(every_rank, [str(rank) for rank in every_rank])
    ax.minorticks_off()
    ax.set(xlabel="rank in use", ylabel=quality)
    _finish(ax)
    ax.legend(frameon=False)
    return ax


def spectra(layers: Layer | Mapping[str, LoRALayer], *, ax: Axes | None = None) -> Axes:
    """The singular values of ``ΔW = s A B``, by component: how much each adds, and what a cut would lose.

    Parameters
    ----------
    layers : Layer, or low-rank layers by name
        A model stands for every low-rank layer inside it, by its dotted path.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        There is no low-rank layer.
    """
    if isinstance(layers, Layer):
        layers = {path or "layer": layer for path, layer in layers.walk().items() if isinstance(layer, LoRALayer)}
    if not layers:
        raise ArgumentError("layers must hold at least one LoRALayer, got none")
    ax = _axes(ax)
    for i, (name, layer) in enumerate(layers.items()):
        sigma = spectrum(layer)
        ax.plot(np.arange(1, len(sigma) + 1), np.where(sigma > 0, sigma, np.nan), label=name, **_style(i))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="component", ylabel="singular value of ΔW")
    if any(np.isfinite(line.get_ydata()).any() for line in ax.lines):  # a new adapter's are all zero
        ax.set_yscale("log")
    _finish(ax)
    ax.legend(frameon=False)
    return ax


def rank_slices(adapter: DyLoRAAdapter, *, rank: int | None = None, ax: Axes | None = None) -> Axes:
    """What a rank is: the first columns of A and the first rows of B, drawn.

    Parameters
    ----------
    adapter : DyLoRAAdapter
    rank : int, optional
        One of its active ranks; the deployment rank if left out.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        Another layer, or a rank that is not active.
    """
    if not isinstance(adapter, DyLoRAAdapter):
        raise ArgumentError(f"adapter must be a DyLoRAAdapter, got {adapter!r}")
    rank = adapter.current_deployment_rank if rank is None else integer("rank", rank)
    if rank not in adapter.active_ranks:
        raise ArgumentError(f"rank must be one of the active ranks {adapter.active_ranks}, got {rank}")
    ax = _drawing(ax)
    full, side = adapter.max_rank, 10.0
    strip = max(side / full / 2, 0.35)
    thick = strip * full
    left = thick + 1.2  # of B
    for i in range(full):
        block = next((j for j, active in enumerate(adapter.active_ranks) if i < active), len(adapter.active_ranks))
        colour = COLOURS[block % len(COLOURS)] if i < rank else IDLE
        ax.add_patch(Rectangle((i * strip, 0), strip, side, facecolor=colour, edgecolor="white"))
        ax.add_patch(Rectangle((left, side - (i + 1) * strip), side, strip, facecolor=colour, edgecolor="white"))
    blocks = ", ".join(f"1..{active}" for active in adapter.active_ranks)
    ax.text(thick / 2, -0.4, f"A  ({adapter.input_size}, {full})", ha="center", va="top")
    ax.text(left + side / 2, side - thick - 0.4, f"B  ({full}, {adapter.output_size})", ha="center", va="top")
    ax.text(left + side / 2, 0.6, f"active ranks: components {blocks}", ha="center", color="#555555", fontsize="small")
    ax.set_title(f"rank {rank}:  ΔW = s A[:, :{rank}] B[:{rank}, :]")
    ax.set(xlim=(-0.5, left + side + 0.5), ylim=(min(-1.2, side - thick - 1.2), side + 0.3))
    ax.set_aspect("equal")
    return ax


def task_matrix(
    values: Any, rows: Sequence[str], columns: Sequence[str], *, quality: str = "accuracy", ax: Axes | None = None
) -> Axes:
    """A quality for each pair: an adapter (row) on a task (column), each from 0 to 1, as colours and numbers.

    Parameters
    ----------
    values : array, shape (len(rows), len(columns))
        Fractions, 0..1.
    rows, columns : sequences of str
    quality : str
        What the numbers are.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        Another shape, or numbers that are no fractions.
    """
    matrix = real_array("values", values, float)
    if matrix.shape != (len(rows), len(columns)):
        raise ArgumentError(f"values must have shape {(len(rows), len(columns))}, got {matrix.shape}")
    if not ((matrix >= 0) & (matrix <= 1)).all():
        raise ArgumentError(f"values must lie between 0 and 1, got {matrix.min():g}..{matrix.max():g}")
    ax = _axes(ax)
    ax.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if value < WHITE_BELOW else "black"
        ax.text(column, row, f"{100 * value:.0f} %", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(columns)), list(columns))
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_title(quality)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def budget(adapter: DyLoRAAdapter, *, ax: Axes | None = None) -> Axes:
    """Parameters and operations of the branch at each active rank, in percent of the base's.

    Parameters
    ----------
    adapter : DyLoRAAdapter
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        Another layer.
    """
    if not isinstance(adapter, DyLoRAAdapter):
        raise ArgumentError(f"adapter must be a DyLoRAAdapter, got {adapter!r}")
    base, full = adapter.base_layer, adapter.max_rank
    weights = sum(array.size for array in base.named_parameters(frozen=True).values())
    ranks = np.array(adapter.active_ranks)
    parameters = 100 * ranks * (adapter.input_size + adapter.output_size) / weights
    operations = 100 * ranks / full * adapter.lora_layer.estimate_flops() / base.estimate_flops()
    ax = _axes(ax)
    places = np.arange(len(ranks))
    for shift, name, values, colour in [(-0.2, "parameters", parameters, 0), (0.2, "operations of a row", operations, 1)]:
        bars = ax.bar(places + shift, values, 0.38, label=name, color=COLOURS[colour])
        ax.bar_label(bars, [f"{value:.2g} %" for value in values], fontsize="small", padding=2)
    ax.set_xticks(places, [str(rank) for rank in ranks])
    ax.set(xlabel="rank in use", ylabel=f"percent of the base ({weights:,} parameters)")
    _finish(ax)
    ax.legend(frameon=False)
    return ax


def data_flow(adapter: LoRAAdapterBase, *, ax: Axes | None = None) -> Axes:
    """The way of the data through an adapter, with the shape of every array; what trains is drawn in colour.

    Parameters
    ----------
    adapter : an adapter whose branch is a LoRALayer: Standard, DyLoRA or MultiLoRA
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        Another layer.
    """
    if not isinstance(adapter, LoRAAdapterBase) or not isinstance(adapter.lora_layer, LoRALayer):
        raise ArgumentError(f"adapter must have a LoRALayer as its branch, got {adapter!r}")
    rank = adapter.current_deployment_rank if isinstance(adapter, DyLoRAAdapter) else adapter.rank
    task = f" of {adapter.current_task!r}" if isinstance(adapter, MultiLoRAAdapter) else ""
    cut = f"first {rank} of " if rank < adapter.rank else ""
    n, m = adapter.input_size, adapter.output_size
    scaling = adapter.lora_layer.scaling_at(rank)
    ax = _drawing(ax)
    base = "frozen" if adapter.is_base_layer_frozen else "trains"
    _box(ax, (3.6, 3.0), 4.8, f"{type(adapter.base_layer).__name__}\n({n}, {m}), {base}", FROZEN)
    _box(ax, (2.6, 0.5), 2.6, f"A{task}\n{cut}({n}, {adapter.rank})" if cut else f"A{task}\n({n}, {rank})", TRAINED)
    _box(ax, (6.8, 0.5), 2.6, f"B{task}\n{cut}({adapter.rank}, {m})" if cut else f"B{task}\n({rank}, {m})", TRAINED)
    for start, end, text in [
        ((0.6, 2.2), (3.6, 3.6), ""),
        ((0.6, 2.2), (2.6, 1.1), ""),
        ((5.2, 1.1), (6.8, 1.1), f"h  (…, {rank})\n× s = {scaling:g}"),
        ((8.4, 3.6), (10.5, 2.4), ""),
        ((9.4, 1.1), (10.5, 2.0), ""),
        ((11.1, 2.2), (12.1, 2.2), ""),
    ]:
        ax.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="#444444", shrinkA=2, shrinkB=2)
        )
        if text:
            ax.text((start[0] + end[0]) / 2, start[1] + 0.25, text, ha="center", va="bottom", fontsize="small")
    ax.text(0.4, 2.2, f"x\n(…, {n})", ha="right", va="center")
    ax.text(10.8, 2.2, "+", ha="center", va="center", fontsize="xx-large", weight="bold")
    ax.text(12.2, 2.2, f"y\n(…, {m})", ha="left", va="center")
    ax.set_title(f"{type(adapter).__name__}:  y = base(x) + s (x A) B")
    ax.set(xlim=(-1.0, 13.6), ylim=(0.0, 4.6))
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is None:
        return Figure(figsize=(6.4, 4.2), layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise ArgumentError(f"ax must be matplotlib axes, got {ax!r}")
    return ax


def _drawing(ax: Axes | None) -> Axes:
    ax = _axes(ax)
    ax.set_axis_off()
    return ax


def _style(i: int) -> dict[str, Any]:
    i %= len(COLOURS)
    return {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[i]}


def _finish(ax: Axes) -> None:
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _box(ax: Axes, corner: tuple[float, float], width: float, text: str, colour: str) -> None:
    x, y = corner
    ax.add_patch(FancyBboxPatch(corner, width, 1.2, boxstyle="round,pad=0.05", facecolor=colour, edgecolor="none"))
    ax.text(x + width / 2, y + 0.6, text, ha="center", va="center", color="white")
