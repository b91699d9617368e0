"""Files and folders that a verb writes: whole or not at all, and over nothing that it was not told to replace."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator

from ..errors import ArgumentError, InvalidOperationError, NotSupportedError


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """The options ``--output`` and ``--force``."""
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=what)
    parser.add_argument(
        "--force", action="store_true", help="replace the files that are there already; other files in a folder stay"
    )


@contextlib.contextmanager
def new_output(target: str, *, folder: bool, force: bool) -> Iterator[str]:
    """A place beside the target, whose content gets the target's name when the block ends without an error.

    Parameters
    ----------
    target : str
        The path to write.
    folder : bool
        Whether a folder will be written, or a file.
    force : bool
        Whether to replace what is there: of a folder, the files that are written.

    Raises
    ------
    ArgumentError
        The target is there already, or cannot be written.
    """
    target = os.path.normpath(target)
    parent, name = os.path.split(os.path.abspath(target))
    if os.path.lexists(target):
        if not force:
            raise ArgumentError(f"{target}: it is there already; --force replaces it")
        if folder != os.path.isdir(target):
            raise ArgumentError(f"{target}: it is a {'file, not a folder' if folder else 'folder, not a file'}")
    if not os.path.isdir(parent):
        raise ArgumentError(f"{target}: there is no folder {parent} to write it into")
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as room:
        place = os.path.join(room, name)
        try:
            yield place
        except (ArgumentError, InvalidOperationError, NotSupportedError) as error:
            raise type(error)(str(error).replace(place, target)) from error
        except OSError as error:
            # A full disk does not say which file, and others name a file that is soon gone.
            if error.errno is None or not str(error.filename or room).startswith(room):
                raise
            raise OSError(error.errno, error.strerror, target) from error
        _move(place, target)


def _move(place: str, target: str) -> None:
    """Give files and folders their names; a folder that is there takes in what the new one holds."""
    if os.path.isdir(place) and os.path.isdir(target):
        for name in sorted(os.listdir(place), key=lambda name: name.endswith(".json")):  # what names the weights comes last
            _move(os.path.join(place, name), os.path.join(target, name))
    else:
        os.replace(place, target)
