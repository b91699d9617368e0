#!/usr/bin/env python3
"""Write the measured tables of README.md, and its picture, from the committed results of the demo and of the benchmarks.

    python -m lora_np demo --json > docs/demo.json     # measures again
    python scripts/make_readme.py

Two runs write identical files. The tests hold the tables to the results.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report.charts import percent
from benchmarks.report.key_ratios import key_ratios
from benchmarks.report.tables import markdown
from benchmarks.results import Results
from lora_np._archive import atomic_file

ROOT = Path(__file__).resolve().parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "readme.svg"
DEMO, BENCHMARKS = ROOT / "docs" / "demo.json", ROOT / "docs" / "benchmarks" / "results.json"

COLUMNS = {
    "training step, batch 256, 1024 × 1024": "training step, batch 256, 1024 × 1024",
    "mixed batch, 64 tasks": "mixed batch of 64 tasks",
    "cold start, time": "cold start, time",
    "cold start, memory": "cold start, memory",
}
"""The key ratios in the README, and their headings."""


def main() -> None:
    with atomic_file(README) as file:
        file.write(with_tables(README.read_text(encoding="utf-8")).encode())
    draw(curves(), PICTURE)
    print(README, PICTURE)


def with_tables(text: str) -> str:
    """The text of the README with new tables."""
    for name, table in {"demo": demo_table(), "benchmarks": benchmark_table()}.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        text = re.sub(f"{start}.*?{end}", f"{start}\n{table}\n{end}", text, flags=re.DOTALL)
    return text


def ranks() -> Mapping[str, Any]:
    """The demo's comparison of ranks."""
    return json.loads(DEMO.read_text(encoding="utf-8"))["ranks"]


def curves() -> dict[str, dict[int, float]]:
    """The accuracy at each rank, by method."""
    results = ranks()
    methods = (value for value in results.values() if isinstance(value, dict))
    return {
        curve["method"]: dict(zip(results["ranks"], (score["accuracy"] for score in curve["scores"]), strict=True))
        for curve in methods
    }


def demo_table() -> str:
    """The accuracy of each method at each rank, and the number of its training runs."""
    results = ranks()
    runs = {value["method"]: len(value["seconds"]) for value in results.values() if isinstance(value, dict)}
    header = ["", *(f"rank {rank}" for rank in results["ranks"]), "training runs"]
    body = [[name, *(f"{value:.1%}" for value in row.values()), str(runs[name])] for name, row in curves().items()]
    return markdown(header, body)


def benchmark_table() -> str:
    """The best ratios to PEFT."""
    measured = {ratio.label: percent(ratio.best) for ratio in key_ratios(Results.load(BENCHMARKS))}
    return markdown(list(COLUMNS.values()), [[measured[label] for label in COLUMNS]], left=0)


# ---------------------------------------------------------------- the picture

INK, FROZEN = "#7a848e", "#9aa5af"
"""Grey that can be read on white and on black."""

METHODS = {
    "DyLoRA": ("#2f8fd0", "o", "-"),
    "one LoRA per rank": ("#2aa876", "s", "-"),
    "rank-8 LoRA, truncated by SVD": ("#d98324", "^", "--"),
    "rank-8 LoRA, truncated": ("#d65f4a", "v", "--"),
}
COMPONENTS = ("#1f6fb2", "#2f8fd0", "#58a9dc", "#58a9dc", *("#8fc4e6",) * 4)
"""The first component, the second, two more up to rank 4, four more up to rank 8."""


def draw(accuracies: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """LoRA as matrices on the left; on the right, the accuracy at each rank. The background is transparent."""
    import matplotlib
    from matplotlib.figure import Figure

    look = {"svg.hashsalt": "lora_np", "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK}
    look |= {"xtick.color": INK, "ytick.color": INK, "font.size": 11, "axes.titlesize": 12}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(9.6, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
        draw_matrices(left)
        draw_curves(right, accuracies)
        with atomic_file(path) as file:
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})


def draw_matrices(ax: Any) -> None:
    """W + s A B, with the components of A and B in colour."""
    from matplotlib.patches import Rectangle

    ax.set(xlim=(0, 13.2), ylim=(-1.9, 6.4), aspect="equal", title="LoRA trains the coloured numbers only")
    ax.axis("off")
    ax.add_patch(Rectangle((0.2, 0.6), 4.6, 4.6, facecolor=FROZEN, alpha=0.25, edgecolor=INK))
    ax.text(2.5, 2.9, "W\nfrozen", ha="center", va="center")
    ax.text(5.55, 2.9, "+ s", ha="center", va="center", fontsize=14)
    width = 0.24
    for k, colour in enumerate(COMPONENTS):
        ax.add_patch(Rectangle((6.3 + k * width, 0.6), width, 4.6, facecolor=colour, edgecolor="white", linewidth=0.5))
        ax.add_patch(
            Rectangle((8.5, 5.2 - (k + 1) * width), 4.6, width, facecolor=colour, edgecolor="white", linewidth=0.5)
        )
    ax.text(6.3 + 4 * width, 5.45, "A", ha="center")
    ax.text(10.8, 5.45, "B", ha="center")
    ax.text(8.7, -0.6, "DyLoRA: each of these\nslices works alone", va="center")
    for level, rank in enumerate((1, 2, 4, 8)):
        y = 0.2 - 0.55 * level
        ax.plot([6.3, 6.3 + rank * width], [y, y], color=COMPONENTS[rank - 1], linewidth=3, solid_capstyle="butt")
        ax.text(6.15, y, f"rank {rank}", ha="right", va="center", fontsize=9)


def draw_curves(ax: Any, accuracies: Mapping[str, Mapping[int, float]]) -> None:
    """The accuracy of each method at each rank."""
    for method, (colour, marker, style) in METHODS.items():
        row = accuracies[method]
        places = range(len(row))
        values = [100 * value for value in row.values()]
        ax.plot(places, values, style, color=colour, marker=marker, linewidth=2, label=method)
    ax.set(ylim=(0, 103), xlabel="rank", ylabel="test accuracy (%)", title="The same digits, at every rank")
    ax.set_xticks(places, labels=[str(rank) for rank in row])
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right", fontsize=9.5, labelcolor="linecolor", handlelength=1.6)


if __name__ == "__main__":
    main()
