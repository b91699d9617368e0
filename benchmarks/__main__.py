"""python -m benchmarks: measure, and show the results as tables, JSON, charts and a documentation page."""

import argparse
import importlib.util
import sys
from pathlib import Path

from . import machine

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    machine.pin(as_avx2="--avx2" in sys.argv)
    # Imported only now, because they import NumPy.
    from .cases import GROUPS
    from .groups import Settings
    from .peers import ALL, NUMPY_ONLY
    from .report import tables
    from .results import Results

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(": ")[2])
    parser.add_argument("--peers", action="store_true", help="also measure PEFT, transformers, torch and JAX, if installed")
    known = ", ".join(group.name for group in GROUPS)
    parser.add_argument("--only", metavar="NAMES", help=f"measure only these, separated by commas: {known}")
    parser.add_argument("--rounds", type=int, default=11, help="number of rounds (default: 11)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds, to check that everything runs")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a folder with a BERT encoder, such as scripts/get_minilm makes (default: random weights of the same sizes)",
    )
    parser.add_argument(
        "--clock",
        choices=("cpu", "wall"),
        default="cpu",
        help="cpu: processor time, for shared machines; wall: elapsed time, for idle ones (default: cpu)",
    )
    parser.add_argument(
        "--avx2", action="store_true", help="measure as on a processor without AVX-512, for lora_np, NumPy and the peers"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results as JSON")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="write a chart of each group")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        nargs="?",
        const=DOCS,
        help="write the page benchmarks.md with its charts and results (default folder: docs)",
    )
    parser.add_argument("--results", type=Path, metavar="PATH", help="show the results in this file instead of measuring")
    parser.add_argument("--beside", type=Path, metavar="PATH", help="results of another machine, for --docs to show beside")
    arguments = parser.parse_args()
    names = [group.name for group in GROUPS] if arguments.only is None else arguments.only.split(",")
    unknown = set(names) - {group.name for group in GROUPS}
    if unknown:
        parser.error(f"--only must name groups among {known}; got {', '.join(unknown)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    if (arguments.svg or arguments.docs) and importlib.util.find_spec("matplotlib") is None:
        parser.error('charts need matplotlib: pip install "lora_np[plot]"')
    chosen = [group for group in GROUPS if group.name in names]

    if arguments.results:
        results = Results.load(arguments.results)
        for group in chosen:
            print(tables.text(group, results.groups.get(group.name, [])), end="\n\n")
    else:
        rounds = 2 if arguments.quick else arguments.rounds
        known_peers = ALL if arguments.peers else NUMPY_ONLY
        settings = Settings(known_peers, rounds, arguments.quick, clock=arguments.clock, model=arguments.model)
        weights = "random" if arguments.model is None else arguments.model.resolve().name
        run = {"weights of the encoder": weights, "rounds": str(rounds), "clock": arguments.clock}
        results = Results(machine.describe() | run, {})
        for group in chosen:
            results.groups[group.name] = list(group.rows(settings))
            print(tables.text(group, results.groups[group.name]), end="\n\n", flush=True)
            if arguments.json:
                results.save(arguments.json)  # after each group, in case a long run is interrupted

    if arguments.svg:
        from .report import charts

        arguments.svg.mkdir(parents=True, exist_ok=True)
        for group in chosen:
            if results.groups.get(group.name):
                charts.draw(group, results.groups[group.name], arguments.svg / f"{group.name}.svg")
    if arguments.docs:
        from .report.page import write_page

        beside = None if arguments.beside is None else Results.load(arguments.beside)
        write_page(results, GROUPS, arguments.docs, beside)
        results.save(arguments.docs / "benchmarks" / "results.json")
        if beside is not None:
            beside.save(arguments.docs / "benchmarks" / "beside.json")


if __name__ == "__main__":
    sys.exit(main())
