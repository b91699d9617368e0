"""A JSON header and named arrays in one ``.npz`` file: no pickle, and never half a file.

The file is an ordinary uncompressed npz (numpy.load reads its arrays); the header is the entry ``lora_np.json``. What reads
and writes it is imported when a file is read or written: programs that use none start faster.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ._typing import Array
from .errors import ArgumentError, FormatError

if TYPE_CHECKING:
    import zipfile

HEADER = "lora_np.json"
_numbers = itertools.count(1)

EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time of day, so that equal contents give equal bytes


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that appears under its name only when all of it is written.

    Parameters
    ----------
    path : path
        An existing file of this name is replaced at the end, or left as it is when an error occurs.
    """
    temporary = f"{os.fspath(path)}.{os.getpid()}-{next(_numbers)}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write(file: str | os.PathLike[str] | BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a header and arrays; equal contents give equal bytes.

    Raises
    ------
    ArgumentError
        A name that no file can hold: it has a zero byte, half a surrogate pair, or more than 65,000 bytes.
    """
    import json
    import zipfile

    for name in arrays:
        if not _is_storable(name):
            raise ArgumentError(f"a file cannot hold an array of this name: {name[:80]!r}")
    if isinstance(file, str | os.PathLike):
        with atomic_file(file) as stream:
            write(stream, header, arrays)
        return
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
        archive.writestr(zipfile.ZipInfo(HEADER, EPOCH), text.encode())
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), content.getvalue())


def read(file: str | os.PathLike[str] | BinaryIO) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what `write` wrote.

    Raises
    ------
    FormatError
        The file is damaged, or something else than such an archive.
    """
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as stream:
            return _read(stream, os.fspath(file))
    return _read(file, "the stream")


def _read(file: BinaryIO, label: str) -> tuple[dict[str, Any], dict[str, Array]]:
    import json
    import zipfile

    try:
        with zipfile.ZipFile(file) as archive:
            header = json.loads(archive.read(HEADER))
            arrays = {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist() if name != HEADER}
    except Exception as error:  # a damaged file makes zipfile, its decompressors and NumPy raise almost anything
        raise FormatError(f"{label} is not a lora_np file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != "lora_np":
        raise FormatError(f"{label} is not a lora_np file: its header does not say so")
    if header.get("version") != 1:
        raise FormatError(f"{label} has format version {header.get('version')!r}; this lora_np reads version 1")
    return header, arrays


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)


def _is_storable(name: str) -> bool:
    try:
        return "\0" not in name and len(name.encode()) < 65_000
    except UnicodeEncodeError:
        return False
