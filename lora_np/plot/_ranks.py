"""Ranks: what each one selects, what it costs, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .._typing import Array
from .._validation import integer, positive_int, real_array
from ..adapters import DyLoRAAdapter
from ..errors import ArgumentError
from ._style import COLOURS, IDLE, INK, MOST_TICKS, as_text, axes_or_new, finish, line_style

LEAST_SPREAD = 0.2
"""If the qualities differ by less than this fraction of the largest one, their axis does not start at zero."""
PERCENT_TOP = 103.0
"""Above 100, for the markers."""
MOST_RANKS = 10
"""Up to this many ranks are labelled individually."""
MOST_STRIPS = 32
"""Up to this many components are drawn individually; with more, only the blocks between active ranks."""


def rank_quality(
    curves: Mapping[str, Mapping[int, float]], *, quality: str = "accuracy in %", ax: Axes | None = None
) -> Axes:
    """Plot quality against rank, with one line per training method.

    Parameters
    ----------
    curves : mapping of str to (mapping of int to float)
        The quality at each rank, by name of the method.
    quality : str, default "accuracy in %"
        The label of the vertical axis. If it contains "%", the axis ends at 100.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If `curves` or a curve is empty, if a rank is not a positive integer, or if a quality is not a real number.

    Notes
    -----
    The vertical axis starts at zero, unless the qualities are so close together that they could not be told apart; then a
    note says so.
    """
    lines = {name: _points(f"curves[{name!r}]", points) for name, points in curves.items()}
    if not lines:
        raise ArgumentError("curves must hold at least one curve, got none")
    ax = axes_or_new(ax)
    for i, (name, (ranks, values)) in enumerate(lines.items()):
        ax.plot(ranks, values, label=as_text(name), **line_style(i))
    every_rank = sorted({rank for ranks, _ in lines.values() for rank in ranks})
    if len(every_rank) > MOST_RANKS:
        every_rank = [1 << i for i in range(every_rank[-1].bit_length())]
    ax.set_xscale("log", base=2)
    ax.set_xticks(every_rank, [str(rank) for rank in every_rank])
    ax.minorticks_off()
    ax.set(xlabel="rank in use", ylabel=quality)
    finish(ax)
    _limit(ax, np.concatenate([values for _, values in lines.values()]), is_percent="%" in quality)
    ax.legend(frameon=False)
    return ax


def _limit(ax: Axes, values: Array, *, is_percent: bool) -> None:
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() < 0:
        return
    low, high = ax.get_ylim()
    is_percent = is_percent and finite.max() <= 100
    spread = np.ptp(finite)
    if 0 < spread < LEAST_SPREAD * finite.max():
        ax.text(0.01, 0.01, "axis does not start at 0", transform=ax.transAxes, color=INK, fontsize="x-small")
        high = min(high, PERCENT_TOP) if is_percent else high
    else:
        low, high = 0.0, PERCENT_TOP if is_percent else high
    ax.set_ylim(low, high, auto=True)


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
    ax = axes_or_new(ax)
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
    ax = axes_or_new(ax)
    places = np.arange(len(ranks))
    for i, (name, values) in enumerate(shares.items()):
        bars = ax.bar(places + 0.4 * i - 0.2, values, 0.38, label=name, color=COLOURS[i])
        if len(ranks) <= MOST_RANKS:
            ax.bar_label(bars, [f"{value:.2g} %" for value in values], fontsize="small", padding=2)
    ax.margins(y=0.1)
    ticks = places[:: -(-len(ranks) // MOST_TICKS)]
    ax.set_xticks(ticks, [str(rank) for rank in ranks[ticks]])
    ax.set(xlabel="rank in use", ylabel=f"percent of the base ({weights:,} parameters)")
    finish(ax)
    ax.legend(frameon=False)
    return ax


def _points(name: str, points: Mapping[int, float]) -> tuple[list[int], Array]:
    """The ranks of a curve, ascending, and the quality at each."""
    if not isinstance(points, Mapping) or not points:
        raise ArgumentError(f"{name} must map at least one rank to its quality, got {points!r}")
    ranks = sorted(positive_int(f"each rank of {name}", rank) for rank in points)
    return ranks, real_array(name, [points[rank] for rank in ranks], float)
