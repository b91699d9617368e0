"""A verb: one command of the command line."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._options import seed


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    name: str
    summary: str
    example: str
    """One or more command lines."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Takes the parsed arguments and returns the exit code."""
    error_code: int = 1
    """The exit code after a reported error."""

    def add_to(self, add_parser: Callable[..., argparse.ArgumentParser]) -> None:
        """Add the verb with the ``add_parser`` method of argparse's subparsers."""
        lines = "\n".join(f"  {line}" for line in self.example.splitlines())
        parser = add_parser(
            self.name,
            help=self.summary,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_arguments(parser)
        parser.set_defaults(verb=self)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of text")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--seed``."""
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="the random seed, at least 0 (default: 0)")


def print_json(values: Any) -> None:
    """Print values that JSON can represent; see `plain`."""
    print(json.dumps(values, indent=2, allow_nan=False))
