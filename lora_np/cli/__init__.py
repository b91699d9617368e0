"""The command line, with one module for each command."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from .._version import __version__
from ..errors import ArgumentError, GradientError, InvalidOperationError, NonFiniteError, NotSupportedError
from ._streams import any_text, discard_output
from ._text import as_options, printable
from ._threads import choose_threads
from .verb import Verb

VERBS = (
    "demo",
    "gradcheck",
    "inspect",
    "merge",
    "unmerge",
    "truncate",
    "combine",
    "convert",
    "extract",
    "diff",
    "vectors",
    "embed",
    "classify",
    "generate",
    "exercises",
    "completion",
)

MODULES = {"unmerge": "merge"}
"""The modules of verbs that share one with another verb."""

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
        The exit code: 0, or 1 if a check failed or an error was reported on standard error. ``diff`` exits with 1 if the
        adapters differ, and with 2 after an error.

    Raises
    ------
    SystemExit
        If the arguments are invalid, with code 2; after ``--help`` and ``--version``, with code 0.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    choose_threads(words)
    parser = _parser(words[:1])
    arguments, more = parser.parse_known_args(words)
    if more and ("texts" not in arguments or any(text.startswith("-") for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # argparse ends a list of positional arguments at the first option
        arguments.texts += more
    verb: Verb = arguments.verb
    try:
        with any_text():
            return int(verb.run(arguments))
    except BrokenPipeError:
        discard_output()
        return verb.error_code
    except REPORTED as error:
        print(f"lora-np: error: {printable(as_options(str(error)))}", file=sys.stderr)
        return verb.error_code


def load_verb(name: str) -> Verb:
    """The verb of a name, whose module is imported only now."""
    return getattr(import_module(f".{MODULES.get(name, name)}", __name__), name.upper())


def _parser(first: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line that begins with the given word: with the verb that it names, and all for help."""
    parser = argparse.ArgumentParser(
        prog="lora-np", description="LoRA, DyLoRA and MultiLoRA in NumPy, with hand-derived, numerically checked gradients."
    )
    parser.add_argument("--version", action="version", version=f"lora-np {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    named = first and not first[0].startswith("-")
    if named and first[0] not in VERBS:
        close = get_close_matches(first[0], VERBS, n=1)
        meant = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(VERBS)}"
        parser.error(f"unknown command {printable(first[0])!r}; {meant}")
    help_is_asked = first and first[0].startswith(("-h", "--h"))
    for name in first if named else VERBS if help_is_asked else ():
        load_verb(name).add_to(commands.add_parser)
    return parser
