"""Generate docs/benchmarks.md from results."""

from collections.abc import Sequence
from pathlib import Path

from ..groups import Group, Row
from ..results import Results
from . import charts
from .key_ratios import PEER, key_ratios
from .tables import digits, exponents, faster_peers, lines, markdown

INTRODUCTION = """\
# Benchmarks

This page is generated: every number was measured, on the machine described at the end. Numbers are ratios, and lower is
better; the tables under the charts hold all of them.

*lora_np* is the library in its default configuration. *lora_np fast* and *lora_np max* have packed their frozen weights
(`layer.pack(memory="fast")`, `"max"`), which costs one or two additional copies of them. *NumPy textbook* is a literal
NumPy transcription of the LoRA formulas, *torch by hand* a hand-written torch module with autograd, *transformers* Hugging
Face's model, and *JAX jit* a compiled pure function. [Method](#method) describes how they are compared.
"""

METHOD = """\
## Method

- All candidates of a case receive the same numbers and are timed only if their results agree, to 1e-4 of the largest
  element of each array; for training steps, this includes the changes of A and B. Inputs and results are never zero.
- The candidates take turns within one process, on one core with one thread, all in float32: every round runs all of them,
  each time starting with a different one. Times are processor times, which other processes hardly disturb (`--clock wall`
  measures elapsed time). Ratios are computed within a round; the tables show the median over the rounds and, after ±, half
  the interquartile range.
- lora_np is called through its public methods, with all their checks. The peers are written the way their users write them;
  nothing slows them down deliberately, and if there was a choice, it is the faster one.
- Ratios carry over to similar machines; times do not.

```
python -m benchmarks                  # NumPy alone
python -m benchmarks.compare HEAD~10  # ratios of this checkout to an earlier commit
```

This page, with PEFT, torch and JAX, a pretrained encoder (without it, random weights of the same sizes), and the same
machine once more as without AVX-512:

```
scripts/get_minilm minilm
groups=step,forward,fit,mixed,mixed-step
python -m benchmarks --peers --avx2 --only $groups --json avx2.json
python -m benchmarks --model minilm --peers --docs --beside avx2.json
```

Two more are run separately: `python -m benchmarks.merge_checkpoint` (merging into a 1 GB checkpoint, compared with copying
the file) and `python -m benchmarks.import_time` (the processor time of imports and of `lora-np --version`).
"""


def write_page(results: Results, groups: Sequence[Group], folder: Path, beside: Results | None = None) -> None:
    """Write the page and its charts to a folder: benchmarks.md and benchmarks/*.svg.

    `beside` holds results of another machine, whose ratios are shown next to those of the first.
    """
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
    if beside is not None:
        parts.append(two_machines(results, beside, groups))
    parts += [bad_news(measured), METHOD, machine(results)]
    if beside is not None:
        parts.append(machine(beside, "The other machine"))
    (folder / "benchmarks.md").write_text("\n".join(parts))


def in_short(ratios: Sequence[tuple[str, float, float]]) -> str:
    header = ["", f"lora_np / {PEER}", f"best variant / {PEER}"]
    body = [[label, digits(plain), digits(best)] for label, plain, best in ratios]
    picture = f"![Time and memory of lora_np relative to {PEER}](benchmarks/readme.svg)"
    return f"## In short\n\n{picture}\n\n{folded(markdown(header, body))}\nThe sections below explain each line.\n"


def folded(table: str) -> str:
    """A table that a click opens."""
    return f"<details>\n<summary>The numbers</summary>\n\n{table}\n\n</details>\n"


def section(group: Group, rows: Sequence[Row]) -> str:
    picture = f"![{group.title}](benchmarks/{group.name}.svg)"
    return f"## {group.title}\n\n{group.text}\n\n{picture}\n\n{folded(markdown(*lines(group, rows)))}"


def growth(curves: Sequence[tuple[Group, Sequence[Row]]]) -> str:
    """Charts, and the exponents between the last two points."""
    parts = [
        "## Scaling\n",
        "Both axes are logarithmic: a straight line of slope p means growth like xᵖ. The tables list p between the last "
        "two points: 1 is proportional growth, 0 is none.\n",
    ]
    for group, rows in curves:
        parts += [f"### {group.title}\n", f"{group.text}\n", f"![{group.title}](benchmarks/{group.name}.svg)\n"]
        slopes = exponents(rows)
        if slopes:
            # A slope that rounds to zero has no sign.
            table = markdown([group.axis, *slopes], [["p", *(f"{slope + 0.0:.2f}" for slope in slopes.values())]])
            parts.append(folded(table))
    return "\n".join(parts)


def bad_news(measured: Sequence[tuple[Group, Sequence[Row]]]) -> str:
    """Every case in which a peer is ahead."""
    found = [line for group, rows in measured for _, line in sorted(faster_peers(group, rows), reverse=True)]
    text = (
        "## Where peers are ahead\n\nAll cases above in which a peer needs less than lora_np in its default configuration"
    )
    if not found:
        return f"{text}: none.\n"
    header = ["", "case", "peer", "lora_np / peer", "best variant / peer", "why"]
    return f"{text}, however small the difference:\n\n{markdown(header, found, left=3)}\n"


def two_machines(results: Results, beside: Results, groups: Sequence[Group]) -> str:
    """The ratios to the reference and to the peer on both machines, for every case that both measured."""
    body = []
    for group in groups:
        others = {row.label: row for row in beside.groups.get(group.name, [])}
        for row in results.groups.get(group.name, []):
            if group.unit == "s" and not group.axis and row.label in others:
                cells = [cell for each in (row, others[row.label]) for cell in _two_ratios(group, each)]
                body.append([group.title, row.label, *cells])
    names = [each.machine.get("BLAS of NumPy", "").rpartition("core ")[2] or "unknown core" for each in (results, beside)]
    header = ["", "case", *(f"{name}: lora_np / {to}" for name in names for to in ("reference", PEER))]
    text = (
        "Most processors have AVX2 but not AVX-512. The same cases on both kinds, by the name of the core for which "
        "OpenBLAS chose its kernels; the reference is that of the sections above."
    )
    return f"## AVX-512 and AVX2\n\n{text}\n\n{markdown(header, body, left=2)}\n"


def _two_ratios(group: Group, row: Row) -> list[str]:
    mine = row.values.get("lora_np")
    others = [None if group.reference == "lora_np" else row.values.get(group.reference), row.values.get(PEER)]
    return ["" if mine is None or its is None else digits(mine.ratio_to(its)) for its in others]


def machine(results: Results, title: str = "The machine") -> str:
    body = [[name, value] for name, value in results.machine.items()]
    return f"## {title}\n\n{markdown(['', ''], body, left=2)}\n"
