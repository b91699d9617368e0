"""A JSON header and named arrays in one ``.npz`` file, without pickle, and written atomically.

The file is an ordinary uncompressed npz file, whose arrays `numpy.load` can read; the header is the entry ``lora_np.json``.
The modules json and zipfile are imported on first use, which makes ``import lora_np`` faster.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ._typing import Array
from ._validation import file_path
from .errors import ArgumentError, FormatError

if TYPE_CHECKING:
    import zipfile

HEADER = "lora_np.json"

EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed timestamp, so that equal contents produce identical bytes


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Context manager: write a file that appears under its name only once it is complete and on the disk.

    Whatever interrupts it, a power failure too, the name refers to the old file or to the complete new one.

    Parameters
    ----------
    path : path
        The name of the file. An existing file is replaced at the end, or left unchanged if the block raises. The new file
        has the permissions of the old one. A symbolic link is followed: its target is replaced.

    Raises
    ------
    ArgumentError
        If the path names something other than a file, such as a device.
    OSError
        If the file cannot be written.
    """
    target = os.path.realpath(file_path("path", path))
    folder, mode = os.path.dirname(target), _permissions(target)
    temporary = os.path.join(folder, f".{os.urandom(8).hex()}.tmp")  # nobody can guess it and plant a link
    try:
        with _new_file(temporary, 0o666 if mode is None else mode, target) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)  # the umask may have removed some of its bits
        os.replace(temporary, target)
        _sync_folder(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Context manager: a folder of files that, if it is new, appears only once all of them are complete and on the disk.

    Parameters
    ----------
    folder : path
        The name of the folder. Missing parents are created.

    Yields
    ------
    str
        Where to write the files, with `atomic_file`. This is the folder itself if it exists: then they are replaced one by
        one. Otherwise it is a temporary folder beside it, which is renamed at the end, or removed if the block raises.

    Raises
    ------
    OSError
        If the folder cannot be created. Errors of the block name files in the folder, not in the temporary one.
    """
    import shutil

    target = os.path.realpath(file_path("folder", folder))
    parent = os.path.dirname(target)
    if os.path.isdir(target):
        yield target
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    if not os.path.isdir(parent):
        os.makedirs(parent, exist_ok=True)
    temporary = os.path.join(parent, f".{os.urandom(8).hex()}.tmp")
    try:
        os.mkdir(temporary)
        yield temporary
        _sync_folder(temporary)
        os.rename(temporary, target)
        _sync_folder(parent)
    except OSError as error:
        if not str(error.filename).startswith(temporary):
            raise
        raise OSError(error.errno, error.strerror, target + str(error.filename)[len(temporary) :]) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the error that `atomic_file` would raise for a folder, a device or a folder that does not exist."""
    target = os.path.abspath(file_path("path", path))
    _permissions(target)
    os.stat(os.path.dirname(target))


def _permissions(target: str) -> int | None:
    """The permissions of an existing file; None if there is none."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(mode):
        raise ArgumentError(f"path must name a file, got {target!r}, which is a device or a pipe; pass a stream instead")
    return stat.S_IMODE(mode)


def _new_file(temporary: str, mode: int, target: str) -> BinaryIO:
    """Create a file that must not exist yet; an error names the target."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        return os.fdopen(os.open(temporary, flags, mode), "wb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from error


def _sync_folder(folder: str) -> None:
    """Write the names in a folder to the disk."""
    with contextlib.suppress(PermissionError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    if not hasattr(file, "write"):
        raise ArgumentError(f"file must be a path or a binary stream, got {file!r}")
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
        path = file_path("file", file)
        with open(path, "rb") as stream:
            return _read(stream, path)
    if not hasattr(file, "read"):
        raise ArgumentError(f"file must be a path or a binary stream, got {file!r}")
    return _read(file, "the stream")


def _read(file: BinaryIO, label: str) -> tuple[dict[str, Any], dict[str, Array]]:
    import json
    import zipfile

    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            _check_entries(archive.infolist(), size)
            header = json.loads(archive.read(HEADER), object_pairs_hook=_without_duplicates)
            entries = [entry for entry in archive.infolist() if entry.filename != HEADER]
            arrays = {each.filename.removesuffix(".npy"): _array(_content(file, each), each.filename) for each in entries}
    except Exception as error:  # on damaged files, zipfile, its decompressors and NumPy raise almost anything
        raise FormatError(f"{label} is not a lora_np file: {error}") from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != "lora_np":
        raise FormatError(f"{label} is not a lora_np file: the format in its header is {found!r}")
    if header.get("version") != 1:
        raise FormatError(f"{label} has format version {header.get('version')!r}; this lora_np reads version 1")
    return header, arrays


def _check_entries(entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Reject entries that would take more memory than the file has bytes: compressed ones, and those that overlap."""
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("two entries have the same name")
    if compressed := [entry.filename for entry in entries if entry.compress_type]:
        raise ValueError(f"the entry {compressed[0]!r} is compressed")
    total = sum(max(entry.file_size, entry.compress_size) for entry in entries)  # equal, unless the directory is damaged
    if total > size:
        raise ValueError(f"its entries have {total:,} bytes, but the file has {size:,}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name occurs twice in the header, among {[name for name, _ in pairs][:8]}")
    return found


def _content(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is not compressed, checked as `ZipFile.read` does, which takes ten times as long."""
    import zlib

    file.seek(entry.header_offset)
    local = file.read(30)
    name = file.read(int.from_bytes(local[26:28], "little"))
    file.seek(int.from_bytes(local[28:30], "little"), os.SEEK_CUR)
    content = file.read(entry.file_size)
    if local[:4] != b"PK\3\4" or name != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
        raise ValueError(f"the entry {entry.filename!r} is not where the directory says")
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise ValueError(f"the bytes of the entry {entry.filename!r} are damaged: wrong CRC-32")
    return content


def _array(content: bytes, name: str) -> Array:
    """An array whose header claims exactly the bytes that follow it."""
    width = 2 if content[6:7] == b"\1" else 4  # of the header's length, in versions 1 and 2
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    shape, is_fortran, dtype = _npy_header(content[:start])
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"the array {name!r} of shape {shape} and {dtype} does not have its {len(content):,} bytes")
    return np.ndarray(shape, dtype, content, start, order="F" if is_fortran else "C").copy(order="K")


@functools.lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, the order and the dtype; kept, because reading them takes longer than the array, and many are equal."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    return shape, is_fortran, dtype


def _is_storable(name: str) -> bool:
    try:
        return "\0" not in name and len(name.encode()) < 65_000
    except UnicodeEncodeError:
        return False
