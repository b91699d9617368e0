"""The command line: one file for each verb."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import ArgumentError, GradientError, InvalidOperationError, NonFiniteError, NotSupportedError
from .demo.command import DEMO
from .gradcheck import GRADCHECK

VERBS = (DEMO, GRADCHECK)

REPORTED = (ArgumentError, GradientError, InvalidOperationError, NonFiniteError, NotSupportedError, OSError)
"""Errors that a user can do something about: one line instead of a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the arguments name.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the program's name; those of the process if left out.

    Returns
    -------
    int
        The exit code: 0, or 1 where a check failed or an error occurred, which standard error tells in one line.

    Raises
    ------
    SystemExit
        With code 2 where the arguments are wrong, and 0 after ``--help`` and ``--version``.
    """
    parser = argparse.ArgumentParser(
        prog="lora-np", description="LoRA, DyLoRA and MultiLoRA in NumPy, with gradients derived by hand and checked."
    )
    parser.add_argument("--version", action="version", version=f"lora-np {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_to(verbs.add_parser)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except REPORTED as error:
        print(f"lora-np: error: {error}", file=sys.stderr)
        return 1
