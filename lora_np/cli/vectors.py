"""``lora-np vectors``: write conformance vectors, or check a program against them."""

import argparse
from dataclasses import asdict

from ..conformance import TOLERANCE, Report, check_program, load_vectors, write_vectors
from ..terminal.table import table
from ._options import positive_seconds, tolerance
from ._output import add_force, new_output
from ._text import counted, plain, printable
from .verb import Verb, add_json, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "-o", "--output", metavar="OUT", help="the folder to write: JSON, its schema, and the arrays as safetensors"
    )
    goal.add_argument(
        "--check",
        metavar="COMMAND",
        help="the program to check, with its arguments: it reads one JSON case per line from standard input and writes "
        "one JSON result per line to standard output",
    )
    add_force(parser)
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=TOLERANCE,
        metavar="T",
        help=f"the largest relative error that passes (default: {TOLERANCE:g})",
    )
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=60.0,
        metavar="S",
        help="the time limit for all cases together, in seconds (default: 60)",
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    return _write(arguments) if arguments.check is None else _check(arguments)


def _write(arguments: argparse.Namespace) -> int:
    with new_output(arguments.output, folder=True, force=arguments.force) as place:
        names = write_vectors(place)
    count = len(load_vectors())
    if arguments.json:
        print_json({"output": arguments.output, "files": names, "cases": count})
    else:
        print(f"{printable(arguments.output)}: {counted(count, 'case')} in {', '.join(names)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    report = check_program(arguments.check, tolerance=arguments.tolerance, timeout=arguments.timeout)
    if arguments.json:
        cases = [plain(asdict(verdict)) for verdict in report.verdicts]
        print_json({"ok": report.ok, "tolerance": arguments.tolerance, "problems": report.problems, "cases": cases})
    else:
        _print(report)
    return 0 if report.ok else 1


def _print(report: Report) -> None:
    rows = [
        [verdict.case, verdict.result, printable(verdict.detail), "" if verdict.error is None else f"{verdict.error:.1e}"]
        for verdict in report.verdicts
    ]
    print(table(["case", "result", "array", "largest error"], rows, left=3))
    print("".join(f"\n{printable(problem)}" for problem in report.problems))
    print(f"{report.count('pass')} passed, {report.count('FAIL')} failed, {report.count('skip')} skipped")


VECTORS = Verb(
    name="vectors",
    summary="write conformance vectors for implementations in other languages, or check a program against them",
    example='lora-np vectors --output vectors\nlora-np vectors --check "node my-lora.js"',
    add_arguments=_add_arguments,
    run=_run,
)
