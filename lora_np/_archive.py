"""A JSON header and named arrays in one ``.npz`` file, without pickle, and written atomically.

The file is an ordinary uncompressed npz file, whose arrays `numpy.load` can read; the header is the entry ``lora_np.json``.
The modules json and zipfile are imported on first use, which makes ``import lora_np`` faster.
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

EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed timestamp, so that equal contents produce identical bytes


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Context manager: write a file that appears under its name only once it is complete.

    Parameters
    ----------
    path : path
        The name of the file. An existing file is replaced at the end, or left unchanged if the block raises.
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
    """Write a header and arrays. Equal contents produce identical bytes.

    Raises
    ------
    ArgumentError
        If a name cannot be stored because it contains a zero byte or a lone surrogate, or has 65,000 bytes or more.
    """
    import json
    import zipfile

    for name in arrays:
        if not _is_storable(name):
            raise ArgumentError(f"array name cannot be stored in a file: {name[:80]!r}")
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
    """Read the header and arrays of a file written by `write`.

    Raises
    ------
    FormatError
        If the file is damaged or not such an archive.
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
    except Exception as error:  # on damaged files, zipfile, its decompressors and NumPy raise almost anything
        raise FormatError(f"{label} is not a lora_np file: {error}") from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != "lora_np":
        raise FormatError(f"{label} is not a lora_np file: the format in its header is {found!r}")
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
