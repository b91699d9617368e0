"""Results as a JSON file."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .groups import Row
from .harness import Measure

VERSION = 1


@dataclass(frozen=True)
class Results:
    """The measurements, and the machine they were made on."""

    machine: dict[str, str]
    groups: dict[str, list[Row]]

    def save(self, path: Path) -> None:
        """Write the results, with one row per line."""
        groups = [f"{json.dumps(name)}: [{_lines(map(_row, rows))}]" for name, rows in self.groups.items()]
        machine = json.dumps(self.machine, ensure_ascii=False)
        path.write_text(f'{{"version": {VERSION},\n"machine": {machine},\n"groups": {{{_lines(groups)}}}}}\n')

    @classmethod
    def load(cls, path: Path) -> Self:
        content: dict[str, Any] = json.loads(path.read_text())
        if content.get("version") != VERSION:
            raise ValueError(f"{path} must hold results of version {VERSION}, got {content.get('version')!r}")
        groups = {
            name: [
                Row(row["label"], {n: r and Measure(tuple(r)) for n, r in row["values"].items()}, row["x"]) for row in rows
            ]
            for name, rows in content["groups"].items()
        }
        return cls(content["machine"], groups)


def _lines(items: Iterable[str]) -> str:
    return "\n" + ",\n".join(items) + "\n"


def _row(row: Row) -> str:
    """The seconds or bytes of each round, with five significant digits."""
    values = {name: measure and [float(f"{value:.5g}") for value in measure.rounds] for name, measure in row.values.items()}
    return json.dumps({"label": row.label, "x": row.x, "values": values}, ensure_ascii=False)
