"""Results as text tables."""

import math
from collections.abc import Sequence

from lora_np.terminal.table import table

from ..groups import Group, Row
from ..harness import Measure
from ..peers import ALL

MISSING = "not installed"


def columns(rows: Sequence[Row]) -> list[str]:
    """The candidates of all rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def quantity(value: float, unit: str, *, short: bool = False) -> str:
    """A number with three significant digits (at most three if `short`) and a suitable unit."""
    steps = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")), "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))}[unit]
    factor, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / factor:.3g} {name}" if short else f"{digits(value / factor)} {name}"


def digits(value: float) -> str:
    """Three significant digits, with at most four decimals."""
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{min(max(decimals, 0), 4)}f}"


def ratio(measure: Measure, reference: Measure) -> str:
    """The ratio and its spread, which requires more than one round."""
    spread = f" ±{digits(measure.spread_to(reference))[:4]}" if len(measure.rounds) > 1 else ""
    return digits(measure.ratio_to(reference)) + spread


def cells(group: Group, row: Row, names: Sequence[str]) -> list[str]:
    reference = row.values[group.reference]
    assert reference is not None
    texts = [row.label]
    for name in names:
        measure = row.values.get(name)
        if name not in row.values:
            texts.append("")
        elif measure is None:
            texts.append(MISSING)
        else:
            texts.append(quantity(measure.median, group.unit) if name == group.reference else ratio(measure, reference))
    return texts


def lines(group: Group, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the reference itself, and all other candidates relative to it."""
    names = sorted(columns(rows), key=lambda name: name != group.reference)
    header = [names[0], *(f"{name} / {names[0]}" for name in names[1:])]
    return [group.axis or "case", *header], [cells(group, row, names) for row in rows]


def text(group: Group, rows: Sequence[Row]) -> str:
    """The table of a group for the terminal."""
    if not rows:
        return f"{group.title}: not measured on this system"
    header, body = lines(group, rows)
    names = [name.partition(" / ")[0] for name in header]
    return f"{group.title} (relative to: {names[1]})\n{table(names, body)}"


def markdown(header: Sequence[str], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    rule = ["---" if index < left else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *body))


def exponents(rows: Sequence[Row]) -> dict[str, float]:
    """The exponent p of growth like xᵖ, between the last two points of each candidate."""
    found = {}
    for name in columns(rows):
        points = [(row.x, measure.median) for row in rows if row.x and (measure := row.values.get(name)) is not None]
        if len(points) > 1:
            (x0, y0), (x1, y1) = points[-2:]
            found[name] = math.log(y1 / y0) / math.log(x1 / x0)
    return found


def is_ours(name: str) -> bool:
    return name.split()[0] == "lora_np"


def faster_peers(group: Group, rows: Sequence[Row]) -> list[tuple[float, list[str]]]:
    """The cases in which a peer is ahead of lora_np by default: the ratio, and the cells of a table row."""
    found = []
    for row in rows:
        mine = row.values.get("lora_np")
        for peer in ALL:
            its = row.values.get(peer)
            if mine is not None and its is not None and (behind := mine.ratio_to(its)) > 1:
                best = min(m.ratio_to(its) for name, m in row.values.items() if m is not None and is_ours(name))
                label = f"{group.axis} {row.label}" if group.axis else row.label
                found.append(
                    (behind, [group.title, label, peer, digits(behind), digits(best), group.reason(row.label, peer)])
                )
    return found
