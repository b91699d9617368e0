"""``lora-np exercises``: write the backward pass of each layer, and have it marked."""

import argparse
from pathlib import Path

from ..exercises import marked, write_exercises
from ..terminal.table import table
from ._text import counted, printable
from .verb import Verb, add_json, print_json

FOLDER = "lora_np_exercises"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        default=FOLDER,
        metavar="DIR",
        help=f"the folder of the exercises; missing files are written, others stay as they are (default: ./{FOLDER})",
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    written = write_exercises(folder)
    marks = list(marked(folder))
    wrong, right = ([mark for mark in marks if mark.result == result] for result in ("wrong", "right"))
    if arguments.json:
        print_json({"written": written, "exercises": [mark._asdict() for mark in marks]})
        return int(bool(wrong))
    if written:
        print(f"Written to {printable(str(folder))}: {', '.join(written)}\n")
    print(table(["file", "exercise", "result"], [[mark.file, mark.title, mark.result] for mark in marks], left=3))
    print("".join(f"\n{mark.file}: {printable(mark.detail)}" for mark in wrong))
    print(f"{len(right)} of {counted(len(marks), 'exercise')} right.")
    if len(right) < len(marks):
        print(f"Write the function vjp in each open file, then run this again: lora-np exercises {printable(str(folder))}")
    return int(bool(wrong))


EXERCISES = Verb(
    name="exercises",
    summary="write the gradients of LoRA and other layers by hand, and have them marked",
    example="lora-np exercises\nlora-np exercises my-solutions",
    add_arguments=_add_arguments,
    run=_run,
)
