"""What the verbs have in common."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    name: str
    summary: str
    example: str
    """Command lines, without indentation."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Takes the parsed arguments, returns the exit code."""

    def add_to(self, add_parser: Callable[..., argparse.ArgumentParser]) -> None:
        """Add the verb by the ``add_parser`` of argparse's subparsers."""
        lines = "\n".join(f"  {line}" for line in self.example.splitlines())
        parser = add_parser(
            self.name,
            help=self.summary,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            epilog=f"example:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_arguments(parser)
        parser.set_defaults(run=self.run)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, and nothing else")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """The option ``--seed``."""
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of everything random, 0 or above (default: 0)")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or above, got {text!r}")
    return int(text)


def print_json(values: Any) -> None:
    """Print plain JSON."""
    print(json.dumps(values, indent=2, allow_nan=False))
