"""A JSON header and named arrays in one ``.npz`` file: no pickle, and never half a file.

The file is an ordinary uncompressed npz (numpy.load reads its arrays); the header is the entry ``lora_np.json``. What reads
and writes it is imported when a file is read or written: programs that use none start faster.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from ._typing import Array
from .errors import FormatError

HEADER = "lora_np.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time of day, so that equal contents give equal bytes


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that appears under its name only when all of it is written.

    Parameters
    ----------
    path : path
        An existing file of this name is replaced at the end, or left as it is when an error occurs.
    """
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write(file: str | os.PathLike[str] | BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a header and arrays; equal contents give equal bytes."""
    import json
    import zipfile

    if isinstance(file, str | os.PathLike):
        with atomic_file(file) as stream:
            write(stream, header, arrays)
        return
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
        archive.writestr(zipfile.ZipInfo(HEADER, EPOCH), text.encode())
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), content.getvalue())


def read(file: str | os.PathLike[str] | BinaryIO) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what `write` wrote.

    Raises
    ------
    FormatError
        The file is damaged, or something else than such an archive.
    """
    import json
    import zipfile

    label = os.fspath(file) if isinstance(file, str | os.PathLike) else "the stream"
    try:
        with zipfile.ZipFile(file) as archive:
            header = json.loads(archive.read(HEADER))
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
                if name != HEADER
            }
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise FormatError(f"{label} is not a lora_np file: {error}") from error
    if not isinstance(header, dict) or header.get("format") != "lora_np":
        raise FormatError(f"{label} is not a lora_np file: its header does not say so")
    if header.get("version") != 1:
        raise FormatError(f"{label} has format version {header.get('version')!r}; this lora_np reads version 1")
    return header, arrays
