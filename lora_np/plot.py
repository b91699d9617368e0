"""Plots of adapters: each function draws into the given axes, or into new ones, and returns them.

Requires matplotlib (``pip install "lora_np[plot]"``), whose global state is left alone. To save a plot, call
``ax.figure.savefig(path)``; to show it in a notebook, run ``%matplotlib inline`` and evaluate ``ax.figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ._typing import Array
from ._validation import integer, positive_int, real_array
from .adapters import AdditiveAdapter, DyLoRAAdapter, MultiLoRAAdapter
from .base import Layer
from .errors import ArgumentError, NotSupportedError
from .factors.surgery import spectrum
from .layers.lora import LoRALayer

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise NotSupportedError('lora_np.plot needs matplotlib: pip install "lora_np[plot]"') from error

COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, suitable for colour-blind readers; markers and line styles are redundant with it."""
MARKERS = "osv^Dp*"
LINES = ("-", "--", ":", "-.")
ORDER = colormaps["cividis"]
FROZEN, TRAINED, IDLE, INK = "#5f6b76", COLOURS[0], "#e4e9ee", "#444444"
WHITE_BELOW = 0.5
"""Text on the colours of smaller values, which are darker, is white."""

MOST_NAMED = 14
"""Up to this many spectra are named in a legend; with more, the colour encodes the position."""
MOST_TICKS = 20
MOST_RANKS = 10
"""Up to this many ranks are labelled individually."""
MOST_STRIPS = 32
"""Up to this many components are drawn individually; with more, only the blocks between active ranks."""
MOST_LETTERS = 64
"""Longer names are shortened in the middle."""
ROUNDING = 64
"""Singular values below this many rounding units of the largest one count as zero."""


def rank_quality(
    curves: Mapping[str, Mapping[int, float]], *, quality: str = "accuracy in %", ax: Axes | None = None
) -> Axes:
    """Plot quality against rank, with one line per training method.

    Parameters
    ----------
    curves : mapping of str to (mapping of int to float)
        The quality at each rank, by name of the method.
    quality : str
        The label of the vertical axis.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If there is no curve, a curve is empty, a rank is not a positive integer, or a quality is not a real number.
    """
    lines = {name: _points(f"curves[{name!r}]", points) for name, points in curves.items()}
    if not lines:
        raise ArgumentError("curves must hold at least one curve, got none")
    ax = _axes(ax)
    for i, (name, (ranks, values)) in enumerate(lines.items()):
        ax.plot(ranks, values, label=_label(name), **_style(i))
    every_rank = sorted({rank for ranks, _ in lines.values() for rank in ranks})
    if len(every_rank) > MOST_RANKS:
        every_rank = [1 << i for i in range(every_rank[-1].bit_length())]
    ax.set_xscale("log", base=2)
    ax.set_xticks(every_rank, [str(rank) for rank in every_rank])
    ax.minorticks_off()
    ax.set(xlabel="rank in use", ylabel=quality)
    _finish(ax)
    ax.legend(frameon=False)
    return ax


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
        If there is no low-rank layer, an element is not a LoRALayer or its singular values, or factors are not finite.

    Notes
    -----
    The axis is logarithmic, so singular values that are zero up to rounding are omitted. Up to 14 layers are named in a
    legend; with more, the colour encodes the position of the layer, as a colour bar shows.
    """
    if isinstance(layers, Layer):
        layers = {path: layer for path, layer in layers.walk().items() if isinstance(layer, LoRALayer)}
    labels = [_label(name) for name in layers]
    curves = [_singular_values(f"layers[{name!r}]", layer) for name, layer in layers.items()]
    if not curves:
        raise ArgumentError("layers must hold at least one LoRALayer, got none")
    ax, many = _axes(ax), len(curves) > MOST_NAMED
    for i, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        style = {"color": ORDER(i / (len(curves) - 1)), "marker": ".", "linewidth": 0.8} if many else _style(i)
        ax.plot(np.arange(1, len(curve) + 1), curve, label=label, markersize=4, **style)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="component", ylabel="singular value of ΔW")
    if any(np.isfinite(curve).any() for curve in curves):  # those of a new adapter are all zero
        ax.set_yscale("log")
    _finish(ax)
    if many:
        _order_bar(ax, labels)
    else:
        ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
    return ax


def rank_slices(adapter: DyLoRAAdapter, *, rank: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw what a rank selects: the first columns of A and the first rows of B.

    Parameters
    ----------
    adapter : DyLoRAAdapter
    rank : int, optional
        An active rank. Defaults to the deployment rank.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If `adapter` is not a DyLoRAAdapter, or `rank` is not one of its active ranks.
    """
    if not isinstance(adapter, DyLoRAAdapter):
        raise ArgumentError(f"adapter must be a DyLoRAAdapter, got {adapter!r}")
    rank = adapter.current_deployment_rank if rank is None else integer("rank", rank)
    if rank not in adapter.active_ranks:
        raise ArgumentError(f"rank must be one of the active ranks {adapter.active_ranks}, got {rank}")
    ax = _axes(ax)
    ax.set_axis_off()
    full, side, thick = adapter.max_rank, 10.0, 5.0
    left = thick + 1.2  # of B
    edges = range(full + 1) if full <= MOST_STRIPS else sorted({0, *adapter.active_ranks, full})
    for start, end in pairwise(edges):
        block = sum(active <= start for active in adapter.active_ranks)
        colour = COLOURS[block % len(COLOURS)] if start < rank else IDLE
        at, width = start / full * thick, (end - start) / full * thick
        look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "linewidth": min(1.0, 10 / len(edges))}
        ax.add_patch(Rectangle((at, 0), width, side, **look))
        ax.add_patch(Rectangle((left, side - at - width), side, width, **look))
    ax.text(thick / 2, -0.4, f"A  ({adapter.input_size}, {full})", ha="center", va="top")
    ax.text(left + side / 2, side - thick - 0.4, f"B  ({full}, {adapter.output_size})", ha="center", va="top")
    active = [str(active) for active in adapter.active_ranks]
    named = active if len(active) <= MOST_RANKS else [*active[:3], "…", active[-1]]
    ax.text(left + side / 2, 0.6, f"active ranks: {', '.join(named)}", ha="center", color=INK, fontsize="small")
    ax.set_title(f"rank {rank}:  ΔW = s A[:, :{rank}] B[:{rank}, :]")
    ax.set(xlim=(-0.5, left + side + 0.5), ylim=(-1.2, side + 0.3))
    ax.set_aspect("equal")
    return ax


def task_matrix(
    values: Any, rows: Sequence[str], columns: Sequence[str], *, quality: str = "accuracy", ax: Axes | None = None
) -> Axes:
    """Plot the quality of each adapter (row) on each task (column) as a heat map with numbers.

    Parameters
    ----------
    values : array, shape (len(rows), len(columns))
        Fractions between 0 and 1.
    rows, columns : sequence of str
    quality : str
        The title.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If there are no rows or columns, the shape does not match them, or a value lies outside [0, 1].
    """
    matrix = real_array("values", values, float)
    if not rows or not columns:
        raise ArgumentError(f"rows and columns must each hold at least one name, got {rows!r} and {columns!r}")
    if matrix.shape != (len(rows), len(columns)):
        raise ArgumentError(f"values must have shape {(len(rows), len(columns))}, got {matrix.shape}")
    if not ((matrix >= 0) & (matrix <= 1)).all():
        raise ArgumentError(f"values must lie between 0 and 1, got {matrix.min():g}..{matrix.max():g}")
    ax = _axes(ax)
    ax.imshow(matrix, cmap=ORDER, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if value < WHITE_BELOW else "black"
        ax.text(column, row, f"{value:.1%}", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(columns)), [_label(name) for name in columns])
    ax.set_yticks(range(len(rows)), [_label(name) for name in rows])
    ax.set_title(quality)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def budget(adapter: DyLoRAAdapter, *, ax: Axes | None = None) -> Axes:
    """Plot what each active rank adds to the base, in percent: parameters, and operations per row.

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
        If `adapter` is not a DyLoRAAdapter, or its base layer has no parameters.
    """
    if not isinstance(adapter, DyLoRAAdapter):
        raise ArgumentError(f"adapter must be a DyLoRAAdapter, got {adapter!r}")
    base, branch = adapter.base_layer, adapter.lora_layer
    weights = sum(array.size for array in base.named_parameters(frozen=True).values())
    if not weights:
        raise ArgumentError(f"adapter must have a base layer with parameters, got {adapter!r}")
    ranks = np.array(adapter.active_ranks)
    added = ranks * (branch.estimate_flops() // branch.rank) + adapter.output_size  # the last term adds the two outputs
    shares = {
        "parameters": 100 * ranks * (adapter.input_size + adapter.output_size) / weights,
        "operations": 100 * added / base.estimate_flops(),
    }
    ax = _axes(ax)
    places = np.arange(len(ranks))
    for i, (name, values) in enumerate(shares.items()):
        bars = ax.bar(places + 0.4 * i - 0.2, values, 0.38, label=name, color=COLOURS[i])
        if len(ranks) <= MOST_RANKS:
            ax.bar_label(bars, [f"{value:.2g} %" for value in values], fontsize="small", padding=2)
    ax.margins(y=0.1)
    ticks = places[:: -(-len(ranks) // MOST_TICKS)]
    ax.set_xticks(ticks, [str(rank) for rank in ranks[ticks]])
    ax.set(xlabel="rank in use", ylabel=f"percent of the base ({weights:,} parameters)")
    _finish(ax)
    ax.legend(frameon=False)
    return ax


def data_flow(adapter: AdditiveAdapter, *, ax: Axes | None = None) -> Axes:
    """Draw the data flow through an adapter, with the shape of every array; trained parts are coloured.

    Parameters
    ----------
    adapter : StandardLoRAAdapter, DyLoRAAdapter or MultiLoRAAdapter
        DyLoRA is drawn at its deployment rank, MultiLoRA with its current task.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If `adapter` does not add a LoRALayer to its base layer.
    """
    if not isinstance(adapter, AdditiveAdapter) or not isinstance(adapter.lora_layer, LoRALayer):
        raise ArgumentError(f"adapter must add a LoRALayer to its base layer, got {adapter!r}")
    branch = adapter.lora_layer
    rank = adapter.current_deployment_rank if isinstance(adapter, DyLoRAAdapter) else branch.rank
    a, b = ("A", "B") if rank == branch.rank else (f"A[:, :{rank}]", f"B[:{rank}, :]")
    tasks = list(adapter.task_adapters) if isinstance(adapter, MultiLoRAAdapter) else []
    task = f" of {_label(repr(adapter.current_task))}" if isinstance(adapter, MultiLoRAAdapter) else ""
    n, m = adapter.input_size, adapter.output_size
    base, colour = ("frozen", FROZEN) if adapter.is_base_layer_frozen else ("trained", TRAINED)
    ax = _axes(ax)
    ax.set_axis_off()
    _box(ax, (3.6, 3.0), 4.8, f"{type(adapter.base_layer).__name__}\n({n}, {m}), {base}", colour)
    _box(ax, (2.6, 0.5), 2.6, f"{a}{task}\n({n}, {rank})", TRAINED, behind=len(tasks) - 1)
    _box(ax, (6.8, 0.5), 2.6, f"{b}{task}\n({rank}, {m})", TRAINED, behind=len(tasks) - 1)
    for start, end in [
        ((0.6, 2.2), (3.6, 3.6)),
        ((0.6, 2.2), (2.6, 1.1)),
        ((5.2, 1.1), (6.8, 1.1)),
        ((8.4, 3.6), (10.5, 2.4)),
        ((9.4, 1.1), (10.5, 2.0)),
        ((11.1, 2.2), (12.1, 2.2)),
    ]:
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=INK, shrinkA=2, shrinkB=2))
    ax.text(6.0, 1.35, f"h  (…, {rank})\n× s = {branch.scaling_at(rank):g}", ha="center", va="bottom", fontsize="small")
    ax.text(0.4, 2.2, f"x\n(…, {n})", ha="right", va="center")
    ax.text(10.8, 2.2, "+", ha="center", va="center", fontsize="xx-large", weight="bold")
    ax.text(12.2, 2.2, f"y\n(…, {m})", ha="left", va="center")
    ax.set_title(f"{type(adapter).__name__}:  y = base(x) + s (x {a}) {b}")
    ax.set(xlim=(-1.0, 13.6), ylim=(0.0, 4.6))
    return ax


def _points(name: str, points: Mapping[int, float]) -> tuple[list[int], Array]:
    """The ranks of a curve, ascending, and the quality at each."""
    if not isinstance(points, Mapping) or not points:
        raise ArgumentError(f"{name} must map at least one rank to its quality, got {points!r}")
    ranks = sorted(positive_int(f"each rank of {name}", rank) for rank in points)
    return ranks, real_array(name, [points[rank] for rank in ranks], float)


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


def _order_bar(ax: Axes, labels: Sequence[str]) -> None:
    """A colour bar that names some of the lines."""
    ticks = np.unique(np.linspace(0, len(labels) - 1, min(MOST_TICKS, len(labels))).round().astype(int))
    colours = ScalarMappable(Normalize(0, len(labels) - 1), ORDER)
    bar = ax.figure.colorbar(colours, ax=ax, pad=0.02)
    bar.set_ticks(ticks.tolist(), labels=[labels[tick] for tick in ticks], fontsize="x-small")
    bar.ax.invert_yaxis()
    bar.set_label(f"layers in their order, {len(ticks)} of {len(labels)} named", fontsize="small")


def _label(name: str) -> str:
    """A name that matplotlib shows as text: not as mathematics ($), not hidden from the legend (_), and not too long."""
    half = MOST_LETTERS // 2
    text = name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[-half:]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text or "(the layer itself)"


def _axes(ax: Axes | None) -> Axes:
    if ax is None:
        return Figure(figsize=(6.4, 4.2), layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise ArgumentError(f"ax must be matplotlib axes, got {ax!r}")
    return ax


def _style(i: int) -> dict[str, Any]:
    colour = i % len(COLOURS)
    return {"color": COLOURS[colour], "marker": MARKERS[colour], "linestyle": LINES[i % len(LINES)]}


def _finish(ax: Axes) -> None:
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _box(ax: Axes, corner: tuple[float, float], width: float, text: str, colour: str, *, behind: int = 0) -> None:
    """A box with text, and up to two idle ones behind it."""
    x, y = corner
    for shift in [*(0.14 * i for i in range(min(behind, 2), 0, -1)), 0.0]:
        face = IDLE if shift else colour
        place = (x + shift, y - shift)
        ax.add_patch(FancyBboxPatch(place, width, 1.2, boxstyle="round,pad=0.05", facecolor=face, edgecolor="white"))
    ax.text(x + width / 2, y + 0.6, text, ha="center", va="center", color="white")
