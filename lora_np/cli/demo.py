"""``lora-np demo``: train, adapt, share, merge and save small models of handwritten digits."""

import argparse
from functools import partial
from pathlib import Path

from ..demo.command import run
from ..demo.settings import Settings
from ..errors import ArgumentError
from .verb import Verb, add_json, add_seed, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_seed(parser)
    add_json(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("lora_np_demo"),
        metavar="DIR",
        help="directory for the trained models and the figures (default: ./lora_np_demo)",
    )
    parser.add_argument("--no-plots", action="store_true", help="save no figures")


def _run(arguments: argparse.Namespace) -> int:
    _make(arguments.output)
    say = _discard if arguments.json else partial(print, flush=True)
    results = run(Settings(seed=arguments.seed), arguments.output, plots=not arguments.no_plots, say=say)
    if arguments.json:
        print_json(results.as_json())
    return 0 if results.ok else 1


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArgumentError(f"--output must be a directory, but it is a file or inside one: {directory}") from None


def _discard(text: str) -> None:
    """Print nothing."""


DEMO = Verb(
    name="demo",
    summary="train, adapt, share, merge and save small models of handwritten digits, in about half a minute",
    example="lora-np demo --output out\nlora-np demo --seed 7 --json > numbers.json",
    add_arguments=_add_arguments,
    run=_run,
)
