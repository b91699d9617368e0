"""Write the table of adapter files in docs/files.md: inspect, merge, convert and write again each kind in tests/io/kinds.

    python scripts/adapter_table.py

The numbers are the largest differences to the weights that the tool of each kind has merged (make_adapter_kinds.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.io.kinds import KINDS, PAGE, markdown, results

START, END = "<!-- the table of adapter_table.py -->\n\n", "\n<!-- its end -->"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    table = markdown(map(results, KINDS))
    PAGE.write_text(before + START + table + END + after, encoding="utf-8")
    print(f"{PAGE}: {len(KINDS)} kinds")


if __name__ == "__main__":
    main()
