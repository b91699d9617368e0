"""The command line, with one module for each command."""

import argparse
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import ArgumentError, GradientError, InvalidOperationError, NonFiniteError, NotSupportedError
from ._streams import any_text, discard_output
from ._text import printable
from .classify import CLASSIFY
from .combine import COMBINE
from .convert import CONVERT
from .demo import DEMO
from .diff import DIFF
from .embed import EMBED
from .gradcheck import GRADCHECK
from .inspect import INSPECT
from .merge import MERGE, UNMERGE
from .truncate import TRUNCATE
from .vectors import VECTORS

VERBS = (DEMO, GRADCHECK, INSPECT, MERGE, UNMERGE, TRUNCATE, COMBINE, CONVERT, DIFF, VECTORS, EMBED, CLASSIFY)

REPORTED = (ArgumentError, GradientError, InvalidOperationError, NonFiniteError, NotSupportedError, OSError)
"""Errors that the user can fix; they are reported in one line, without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the program name; those of the process if left out.

    Returns
    -------
    int
        The exit code: 0, or 1 if a check failed or an error was reported on standard error.

    Raises
    ------
    SystemExit
        If the arguments are invalid, with code 2; after ``--help`` and ``--version``, with code 0.
    """
    parser = argparse.ArgumentParser(
        prog="lora-np", description="LoRA, DyLoRA and MultiLoRA in NumPy, with hand-derived, numerically checked gradients."
    )
    parser.add_argument("--version", action="version", version=f"lora-np {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in VERBS:
        verb.add_to(verbs.add_parser)
    arguments, more = parser.parse_known_args(argv)
    if more and ("texts" not in arguments or any(text.startswith("-") for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # argparse ends a list of positional arguments at the first option
        arguments.texts += more
    try:
        with any_text():
            return int(arguments.run(arguments))
    except BrokenPipeError:
        discard_output()
        return 1
    except REPORTED as error:
        print(f"lora-np: error: {printable(str(error))}", file=sys.stderr)
        return 1
