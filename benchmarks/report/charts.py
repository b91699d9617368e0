"""Results as SVG charts; equal results give identical files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..groups import Group, Row
from .key_ratios import PEER, KeyRatio
from .tables import columns, is_ours, quantity

# Okabe and Ito's colours, distinguishable for colour-blind readers; a candidate has the same one on every chart.
COLOURS = {
    "lora_np": "#0072B2",
    "lora_np fast": "#56B4E9",
    "lora_np max": "#004266",
    "PEFT": "#D55E00",
    "transformers": "#CC79A7",
    "torch by hand": "#E69F00",
    "JAX jit": "#009E73",
    "NumPy textbook": "#999999",
}
OTHERS = ("#CC79A7", "#777777", "#BBBBBB")

STYLE = {
    "svg.hashsalt": "lora_np",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Axes]:
    """Context manager: the axes of a new figure, which is written on exit."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot()
        figure.savefig(
            path, format=path.suffix[1:], metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        )


def colour(name: str, position: int) -> str:
    return COLOURS.get(name, OTHERS[position % len(OTHERS)])


def draw(group: Group, rows: Sequence[Row], path: Path) -> None:
    """Write a line chart for a curve, a bar chart for any other group."""
    (draw_curves if group.axis else draw_bars)(group, rows, path)


def draw_curves(group: Group, rows: Sequence[Row], path: Path) -> None:
    """Plot medians over the growing quantity, on logarithmic axes: a slope of 1 is proportional growth."""
    with picture(path, 7, 4.2) as axes:
        for position, name in enumerate(columns(rows)):
            points = [(row.x, m.median) for row in rows if (m := row.values.get(name)) is not None]
            if points:
                xs, ys = zip(*points, strict=True)
                line = "-" if is_ours(name) else "--"
                width = 2.2 if is_ours(name) else 1.3
                axes.loglog(
                    xs, ys, line, marker="o", markersize=4, linewidth=width, color=colour(name, position), label=name
                )
        axes.set_xlabel(group.axis)
        axes.set_ylabel("time" if group.unit == "s" else "peak memory")
        axes.set_xticks([row.x for row in rows], labels=[row.label for row in rows])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, group.unit, short=True)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")


def draw_bars(group: Group, rows: Sequence[Row], path: Path) -> None:
    """Ratios to the reference, which is the line at 1."""
    names = [name for name in columns(rows) if name != group.reference]
    thickness = 0.8 / max(1, len(names))
    with picture(path, 8, 1.1 + 0.17 * len(rows) * (len(names) + 1)) as axes:
        for position, name in enumerate(names):
            places, ratios = [], []
            for number, row in enumerate(rows):
                measure, reference = row.values.get(name), row.values[group.reference]
                if measure is not None and reference is not None:
                    places.append(number + (position - (len(names) - 1) / 2) * thickness)
                    ratios.append(measure.ratio_to(reference))
            # Bars start at 1, where a candidate equals the reference: left is better.
            lengths = [ratio - 1 for ratio in ratios]
            axes.barh(places, lengths, 0.9 * thickness, left=1, color=colour(name, position), label=name)
            for place, ratio in zip(places, ratios, strict=True):
                side = {"ha": "left", "xytext": (3, 0)} if ratio >= 1 else {"ha": "right", "xytext": (-3, 0)}
                axes.annotate(
                    f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}",
                    (ratio, place),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                    **side,
                )
        axes.margins(y=0.01)
        axes.set_yticks(range(len(rows)), labels=[row.label.replace(", ", "\n", 1) for row in rows])
        axes.invert_yaxis()
        ratio_axis(axes)
        axes.set_xlabel(f"relative to {group.reference} (lower is better)")
        if names:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize="small")


def draw_key_ratios(ratios: Sequence[KeyRatio], path: Path) -> None:
    """Write the README's chart: the time or memory of lora_np relative to the peer."""
    with picture(path, 8, 0.9 + 0.36 * len(ratios)) as axes:
        places = range(len(ratios))
        axes.barh(places, [ratio.plain for ratio in ratios], 0.62, color=COLOURS["lora_np"], label="lora_np")
        packed = [place for place in places if ratios[place].best < ratios[place].plain]
        if packed:
            best = [ratios[place].best for place in packed]
            label = "with packed weights"
            axes.plot(best, packed, "D", color="white", markeredgecolor="black", markersize=6, label=label)
            axes.legend(frameon=False, loc="lower right")
        for place, ratio in enumerate(ratios):
            text = percent(ratio.plain) + (f" ({percent(ratio.best)})" if place in packed else "")
            axes.annotate(text, (ratio.plain, place), textcoords="offset points", xytext=(6, 0), va="center")
        axes.axvline(1, color=COLOURS[PEER], linewidth=2)
        axes.annotate(PEER, (1, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color=COLOURS[PEER])
        axes.set_xlim(0, max(1.05, 1.2 * max(ratio.plain for ratio in ratios)))
        axes.set_yticks(places, labels=[ratio.label for ratio in ratios])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"relative to {PEER} (lower is better)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))


def percent(ratio: float) -> str:
    return f"{100 * ratio:.{0 if ratio >= 0.0995 else 1}f}%"


def ratio_axis(axes: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers and a line at 1."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5) * 0.8, max(high, 1.3) * 1.25)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))  # labels that do not overlap
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
