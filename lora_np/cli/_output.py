"""Output files and folders: written completely or not at all, and overwritten only with ``--force``."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator

from ..errors import ArgumentError, InvalidOperationError, NotSupportedError


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options ``--output`` and ``--force``."""
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=what)
    add_force(parser)


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--force``."""
    parser.add_argument(
        "--force", action="store_true", help="overwrite existing files; other files in an output folder are kept"
    )


@contextlib.contextmanager
def new_output(target: str, *, folder: bool, force: bool) -> Iterator[str]:
    """Context manager: a temporary path next to the target, moved to the target if the block succeeds.

    Parameters
    ----------
    target : str
        The path to write.
    folder : bool
        Whether the block writes a folder instead of a file.
    force : bool
        Whether to overwrite existing files. Other files in an existing folder are kept.

    Yields
    ------
    str
        The temporary path. In errors raised by the block, it is replaced by the target.

    Raises
    ------
    ArgumentError
        If the target exists and `force` is False, if it is a file instead of a folder or vice versa, or if its parent
        folder does not exist.
    """
    target = os.path.normpath(target)
    parent, name = os.path.split(os.path.abspath(target))
    if os.path.lexists(target):
        if not force:
            raise ArgumentError(f"{target}: already exists; use --force to overwrite")
        if folder != os.path.isdir(target):
            raise ArgumentError(f"{target}: is a {'file, not a folder' if folder else 'folder, not a file'}")
    if not os.path.isdir(parent):
        raise ArgumentError(f"{target}: the folder {parent} does not exist")
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as temporary:
        place = os.path.join(temporary, name)
        try:
            yield place
        except (ArgumentError, InvalidOperationError, NotSupportedError) as error:
            raise type(error)(str(error).replace(place, target)) from error
        except OSError as error:
            # The error names no file if the disk is full, and otherwise perhaps a temporary one: name the target instead.
            if error.errno is None or not str(error.filename or temporary).startswith(temporary):
                raise
            raise OSError(error.errno, error.strerror, target) from error
        _move(place, target)


def _move(place: str, target: str) -> None:
    """Move a file or folder to its target; an existing folder is merged with the new one."""
    if os.path.isdir(place) and os.path.isdir(target):
        # JSON files come last: an index must not name weights that are not there yet.
        for name in sorted(os.listdir(place), key=lambda name: name.endswith(".json")):
            _move(os.path.join(place, name), os.path.join(target, name))
    else:
        os.replace(place, target)
