"""Charts and tables of the results, for docs/dylora-quality.md."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..report.charts import STYLE
from ..report.tables import markdown
from .ways import BALANCED, LORA, QUARTER, RANKS, ROW, SORTED, SORTED_LORA, STEP, SVD

Found = Mapping[str, Any]
"""The results of one set, by way."""
BLUE, ORANGE, RED, GREEN, PINK, SKY, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#777777"
CURVES = {
    SORTED: (BLUE, "o", "-"),
    STEP: (SKY, "s", "-"),
    LORA: (GREY, "v", "--"),
    QUARTER: (ORANGE, "^", "--"),
    SVD: (RED, "D", ":"),
}
"""The ways on the first chart: colour, marker and line."""
SHOWN = (
    SORTED,
    BALANCED,
    ROW,
    f"{STEP}, beta2 .95",
    f"{ROW}, beta2 .95",
    f"{ROW}, optimizer reset",
    f"{SORTED}, 2:1:1:1",
    "sorted start, then a rank per step",
    QUARTER,
    LORA,
    SORTED_LORA,
    SVD,
)
"""The ways on the chart of gains."""
COLOURS = (BLUE, RED, GREEN, ORANGE, GREY, PINK)
"""Of the sets, in their order."""


def scores(found: Found, way: str) -> np.ndarray:
    """Shape (seeds, ranks)."""
    return np.array(found[way]["scores"])


def difference(found: Found, way: str, other: str) -> tuple[float, float]:
    """The mean over ranks and seeds of one way minus another, and its standard error over seeds."""
    each = (scores(found, way) - scores(found, other)).mean(axis=1)
    return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))


def overall(results: Mapping[str, Found], way: str, other: str) -> tuple[float, float, float]:
    """The mean difference over all sets, its standard error, and the difference on the worst set."""
    means, errors = zip(*(difference(found, way, other) for found in results.values() if way in found), strict=True)
    return float(np.mean(means)), float(np.linalg.norm(errors) / len(errors)), min(means)


def split(results: Mapping[str, Found]) -> tuple[dict[str, Found], dict[str, Found]]:
    """The short trainings, and those of four times the length."""
    long = {name: found for name, found in results.items() if name.endswith(", 48 epochs")}
    return {name: found for name, found in results.items() if name not in long}, long


# ---------------------------------------------------------------- charts


def draw(results: Mapping[str, Found], folder: Path) -> None:
    """Write the charts."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        short, _ = split(results)
        _draw_ranks(short, folder / "ranks.svg")
        _draw_gains(short, folder / "gains.svg")
        _draw_warmup(short, folder / "warmup.svg")


def _save(figure: Figure, path: Path) -> None:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    smaller = re.sub(r'(?<=\.\d\d)\d+|(?<=<g) id="[^"]*"|(?<=\n) +', "", drawn.getvalue())  # and no different to the eye
    path.write_text(smaller, encoding="utf-8")


def _draw_ranks(results: Mapping[str, Found], path: Path) -> None:
    """The score at each rank, one panel for each set."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    panels = figure.subplots(2, math.ceil(len(results) / 2), squeeze=False).ravel()
    for axes, (name, found) in zip(panels, results.items(), strict=False):
        for way, (colour, marker, line) in CURVES.items():
            if way in found:
                mean = scores(found, way).mean(axis=0)
                axes.plot(mean, color=colour, marker=marker, linestyle=line, markersize=4, label=way)
        axes.set_title(name, fontsize=10)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xticks(range(len(RANKS)), [str(rank) for rank in RANKS])
        axes.set_xlabel("rank")
        axes.set_ylabel("R² (%)" if name.startswith("regression") else "accuracy (%)")
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    _save(figure, path)


def _draw_gains(results: Mapping[str, Found], path: Path) -> None:
    """The mean over ranks of each way minus the default, a mark for each set."""
    ways = SHOWN
    figure = Figure(figsize=(9, 0.9 + 0.27 * len(ways)), layout="constrained")
    axes = figure.subplots()
    for i, (name, found) in enumerate(results.items()):
        places = [place for place, way in enumerate(ways) if way in found]
        means, errors = zip(*(difference(found, ways[place], STEP) for place in places), strict=True)
        shifted = [place + 0.6 * (i / len(results) - 0.4) for place in places]
        axes.errorbar(
            means,
            shifted,
            xerr=errors,
            fmt="o",
            markersize=3.5,
            color=COLOURS[i % len(COLOURS)],
            label=name.partition(",")[0],
        )
    axes.set_yticks(range(len(ways)), ways, fontsize="small")
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xticks([-20, -10, -5, -2, 0, 2, 5, 10, 20], ["-20", "-10", "-5", "-2", "0", "2", "5", "10", "20"])
    axes.axvline(0, color="black", linewidth=1)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_xlabel("mean over ranks, minus that of a rank per step (percent points; right is better)")
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize="small")
    _save(figure, path)


def _draw_warmup(results: Mapping[str, Found], path: Path) -> None:
    """The mean over ranks by the length of the warm-up, minus that without one."""
    lengths = {"1/96": f"{SORTED}, warm-up 1/96", "1/24": SORTED} | {
        share: f"{SORTED}, warm-up {share}" for share in ("1/12", "1/6", "1/3")
    }
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, (name, found) in zip(itertools.cycle(COLOURS), results.items(), strict=False):
        known = [place for place, way in enumerate(lengths.values()) if way in found]
        if len(known) > 1:
            means, errors = zip(*(difference(found, list(lengths.values())[place], ROW) for place in known), strict=True)
            axes.errorbar(known, means, errors, color=colour, marker="o", markersize=4, label=name.partition(",")[0])
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_xlabel("warm-up, as a fraction of the steps")
    axes.set_ylabel("gain over no sorted start (points)")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    _save(figure, path)


# ---------------------------------------------------------------- tables


def _signed(pair: tuple[float, float]) -> str:
    return f"{pair[0]:+.1f} ± {pair[1]:.1f}"


def summary(results: Mapping[str, Found]) -> str:
    """For each way, the mean over ranks minus that of the default on each set, and the rule for the default."""
    ways = dict.fromkeys(way for found in results.values() for way in found if way != STEP)
    header = ["minus a rank per step", "cost", *results, "mean", "worst"]
    body = []
    for way in ways:
        cells = [_signed(difference(found, way, STEP)) if way in found else "" for found in results.values()]
        mean, error, worst = overall(results, way, STEP)
        cost = next(found[way]["cost"] for found in results.values() if way in found)
        last = [_signed((mean, error)), f"{worst:+.1f}"] if all(cells) else ["", ""]
        body.append([way, f"{cost:g}", *cells, *last])
    return markdown(header, body)


def pairs(results: Mapping[str, Found], comparisons: Sequence[tuple[str, str]]) -> str:
    """The mean over ranks of one way minus another on each set."""
    body = []
    for way, other in comparisons:
        known = {name: found for name, found in results.items() if way in found and other in found}
        cells = [_signed(difference(found, way, other)) if name in known else "" for name, found in results.items()]
        body.append([f"{way}, minus {other}", *cells])
    return markdown(["", *results], body)


def details(found: Found) -> str:
    """The score at each rank, and the losses."""
    header = ["", "rate", *(f"rank {rank}" for rank in RANKS), "mean", *(f"loss {rank}" for rank in RANKS)]
    body = []
    for way, result in found.items():
        each, losses = scores(found, way), np.array(result["losses"]).mean(axis=0)
        errors = each.std(axis=0, ddof=1) / math.sqrt(len(each))
        rates = result["rates"] if len(set(result["rates"])) > 1 else result["rates"][:1]
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in zip(each.mean(axis=0), errors, strict=True)]
        shown = ", ".join(f"{rate:g}" for rate in rates)
        body.append([way, shown, *cells, f"{each.mean():.1f}", *(f"{loss:.3f}" for loss in losses)])
    return markdown(header, body)


COMPARISONS = (
    (SORTED, STEP),
    (SORTED, ROW),
    (SORTED, BALANCED),
    (SORTED, QUARTER),
    (SORTED, LORA),
    (STEP, QUARTER),
    (STEP, LORA),
)


def blocks(results: Mapping[str, Found]) -> Iterator[tuple[str, str]]:
    """The generated parts of the page, by name."""
    short, long = split(results)
    yield "pairs", pairs(short, COMPARISONS)
    yield "long pairs", pairs(long, [(way, other) for way, other in COMPARISONS if other != BALANCED and other != ROW])
    yield "summary", summary(short)
    for name, found in results.items():
        yield name, details(found)


def write(results: Mapping[str, Found], docs: Path) -> None:
    """Draw the charts, and replace the generated tables in the page."""
    draw(results, docs / "dylora-quality")
    page = docs / "dylora-quality.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def filled(page: str, results: Mapping[str, Found]) -> str:
    """The page with its generated tables, each between the comments ``<!-- NAME -->`` and ``<!-- end -->``."""
    for name, table in blocks(results):
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, rf"\g<1>\n{table}\n\n\g<2>", page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page must have one part named {name!r}, got {count}")
    return page
