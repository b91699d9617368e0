"""docs/benchmarks.md, all of whose numbers come from the results."""

from collections.abc import Sequence
from pathlib import Path

from ..groups import Group, Row
from ..results import Results
from . import charts
from .key_ratios import PEER, key_ratios
from .tables import digits, exponents, faster_peers, lines, markdown

INTRODUCTION = """\
# Benchmarks

This page is written by a program: every number on it was measured, on the machine at its end.

```
python -m benchmarks                 # NumPy alone
python -m benchmarks --peers --docs  # with PEFT, torch and JAX where they are installed; writes this page
```

Two more run by themselves: `python -m benchmarks.merge_checkpoint` (merging into a checkpoint of 1 GB, against copying
the file) and `python -m benchmarks.import_time` (the import of lora_np beyond that of NumPy).

How it is measured:

- All candidates of a case get the same numbers and must give the same results (to 1e-4 of the largest element of each
  array, for steps also in what they change A and B by), or nothing is timed. Nothing is timed on zeros.
- Then they take turns within one process, on one core with one thread, all in float32: in each round every candidate, each
  round beginning with another one. A ratio is taken within each round; the tables show the median of the rounds and, after
  ±, half the distance between their quartiles.
- lora_np is called through its public methods, with all their checks. The peers are written as their users write them, and
  nothing is done to slow them down; where a choice had to be made, it is the faster one.
- Ratios carry over to similar machines; times do not.

*lora_np* is the library as it comes. *lora_np fast* and *lora_np max*, where they appear, have packed their frozen weights
(`layer.pack(memory="fast")`, `"max"`), which costs one or two more copies of them. *NumPy textbook* is LoRA in NumPy as the
formulas stand in a textbook, *torch by hand* a hand-written torch module with autograd, *JAX jit* a compiled pure function.
"""


def write_page(results: Results, groups: Sequence[Group], folder: Path) -> None:
    """Write the page and its pictures into a folder: benchmarks.md and benchmarks/*.svg."""
    pictures = folder / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION]
    ratios = list(key_ratios(results))
    if ratios:
        charts.draw_key_ratios(ratios, pictures / "readme.svg")
        parts.append(in_short([(r.label, r.plain, r.best) for r in ratios]))
    measured = [(group, results.groups[group.name]) for group in groups if results.groups.get(group.name)]
    for group, rows in measured:
        charts.draw(group, rows, pictures / f"{group.name}.svg")
    parts += [section(group, rows) for group, rows in measured if not group.axis]
    curves = [(group, rows) for group, rows in measured if group.axis]
    if curves:
        parts.append(growth(curves))
    parts += [bad_news(measured), machine(results)]
    (folder / "benchmarks.md").write_text("\n".join(parts))


def in_short(ratios: Sequence[tuple[str, float, float]]) -> str:
    header = ["", f"lora_np / {PEER}", f"best variant / {PEER}"]
    body = [[label, digits(plain), digits(best)] for label, plain, best in ratios]
    picture = f"![What lora_np takes of the time and the memory of {PEER}](benchmarks/readme.svg)"
    return f"## In short\n\n{picture}\n\n{markdown(header, body)}\n\nThe sections below say what each line is.\n"


def section(group: Group, rows: Sequence[Row]) -> str:
    picture = f"![{group.title}](benchmarks/{group.name}.svg)"
    return f"## {group.title}\n\n{group.text}\n\n{markdown(*lines(group, rows))}\n\n{picture}\n"


def growth(curves: Sequence[tuple[Group, Sequence[Row]]]) -> str:
    """Charts, and the exponents between the last two points."""
    parts = [
        "## How the cost grows\n",
        "Both axes are logarithmic: a straight line of slope p is growth like xᵖ. The tables give p between the last two "
        "points: 1 is growth in proportion, 0 none.\n",
    ]
    for group, rows in curves:
        parts += [f"### {group.title}\n", f"{group.text}\n", f"![{group.title}](benchmarks/{group.name}.svg)\n"]
        slopes = exponents(rows)
        if slopes:
            # A slope that rounds to zero has no sign.
            parts.append(
                markdown([group.axis, *slopes], [["p", *(f"{slope + 0.0:.2f}" for slope in slopes.values())]]) + "\n"
            )
    return "\n".join(parts)


def bad_news(measured: Sequence[tuple[Group, Sequence[Row]]]) -> str:
    """Every case in which another one is ahead."""
    found = [line for group, rows in measured for _, line in sorted(faster_peers(group, rows), reverse=True)]
    text = "## Where others are ahead\n\nEvery case above in which a peer takes less than lora_np as it comes"
    if not found:
        return f"{text}: none.\n"
    header = ["", "case", "peer", "lora_np / peer", "best variant / peer", "why"]
    return f"{text}, by a ratio of medians above 1, however little:\n\n{markdown(header, found, left=3)}\n"


def machine(results: Results) -> str:
    body = [[name, value] for name, value in results.machine.items()]
    return f"## The machine\n\n{markdown(['', ''], body, left=2)}\n"
