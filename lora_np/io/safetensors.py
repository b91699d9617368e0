"""safetensors files: a strict, lazy reader and a deterministic, streaming writer, in NumPy alone.

A file is 8 bytes that hold a length N, N bytes of JSON that describe the tensors, and the tensors' bytes one after the
other: row-major, little-endian, without holes (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Self, TypeAlias, final

import numpy as np

from .._archive import atomic_file
from .._typing import Array
from ..errors import ArgumentError, FormatError

MAX_HEADER = 100_000_000
COPY_WINDOW = 1 << 23  # bytes
MAX_DIMENSIONS = 64  # what a NumPy array can have

# In the order in which a file holds them: by descending alignment.
DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
"""The dtypes of the format that NumPy can hold, and how their bytes are stored. BF16 becomes float32, BOOL bool."""

ORDER = {name: position for position, name in enumerate(DTYPES)}


@final
@dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor."""

    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.size * DTYPES[self.dtype].itemsize


@final
class SafetensorsFile(Mapping[str, Array]):
    """A safetensors file as a read-only mapping of arrays, each mapped into memory when it is asked for.

    Parameters
    ----------
    path : path
        The file. It is checked whole, in the sense of its header, before any tensor is read.

    Raises
    ------
    FormatError
        The file breaks a rule of the format; the message names the file, the tensor and the rule. Duplicate names are
        refused.

    Notes
    -----
    An array shares memory with the file and cannot be written to, except that BF16 comes as a new float32 array and BOOL as
    a new bool array. Use it as a context manager, or `close` it: arrays that are still alive stay valid.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = open(path, "rb")  # noqa: SIM115  it stays open as long as this object
        try:
            self._infos, self._offsets, self.metadata = _parsed(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def __getitem__(self, name: str) -> Array:
        info = self._infos[name]
        return decoded(self.raw(name), info.dtype).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos  # the one of Mapping would read the tensor

    def __repr__(self) -> str:
        return f"SafetensorsFile({self.path!r}, {len(self)} tensors)"

    def info(self, name: str) -> TensorInfo:
        """The dtype and shape of a tensor, without reading it."""
        return self._infos[name]

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """The stored elements of a tensor, or those from `start` to `stop` in row-major order.

        Returns
        -------
        array, flat, of the storage dtype (`DTYPES`)
            It shares memory with the file.
        """
        info = self._infos[name]
        dtype = DTYPES[info.dtype]
        start, stop, _ = slice(start, stop).indices(info.size)
        if stop <= start:
            return np.empty(0, dtype)
        begin = self._offsets[name] + start * dtype.itemsize
        # One mapping for each piece: when its array goes, so do its pages.
        page = begin - begin % mmap.ALLOCATIONGRANULARITY
        length = begin - page + (stop - start) * dtype.itemsize
        pages = mmap.mmap(self._file.fileno(), length, offset=page, access=mmap.ACCESS_READ)
        return np.frombuffer(pages, dtype, stop - start, begin - page)

    def copy_to(self, file: BinaryIO, name: str, start: int, stop: int) -> None:
        """Append stored elements of a tensor to another file; where the system can, without passing through memory."""
        itemsize = DTYPES[self._infos[name].dtype].itemsize
        offset, end = (self._offsets[name] + element * itemsize for element in (start, stop))
        file.flush()
        try:
            while offset < end:
                copied = os.copy_file_range(self._file.fileno(), file.fileno(), end - offset, offset)
                if not copied:
                    break
                offset += copied
        except (AttributeError, OSError):
            pass  # not on this system, or not between these files
        for window in range(offset, end, COPY_WINDOW):
            self._file.seek(window)
            file.write(self._file.read(min(COPY_WINDOW, end - window)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """All tensors of a file, in memory of their own; see `SafetensorsFile` for large ones, and for the metadata."""
    with SafetensorsFile(path) as file:
        return {name: np.array(array) for name, array in file.items()}


@final
@dataclass(frozen=True)
class Stored:
    """Elements of a tensor in another file, from `start` to `stop` in row-major order, to be copied as they are."""

    file: SafetensorsFile
    name: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return (self.stop - self.start) * DTYPES[self.file.info(self.name).dtype].itemsize


Content: TypeAlias = Array | Iterable[Array | Stored]
"""The values of a tensor: an array, or consecutive pieces of it in row-major order."""


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file; equal contents give equal bytes.

    Parameters
    ----------
    path : path
        An existing file is replaced only when the new one is complete.
    tensors : arrays by name
        Of any layout: what is written is row-major.
    metadata : mapping of str to str, optional
    dtypes : mapping of str to str, optional
        Tensors to write in another dtype than that of their array, such as ``"BF16"``.

    Raises
    ------
    ArgumentError
        A dtype that the format does not have, values that are no real numbers, or names and metadata that are no strings;
        nothing is written.
    """
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    chosen = {} if dtypes is None else dtypes
    infos = {
        name: TensorInfo(chosen.get(name) or dtype_name(array.dtype, name), array.shape) for name, array in arrays.items()
    }
    stream_safetensors(path, infos, lambda name: arrays[name], metadata)


def stream_safetensors(
    path: str | os.PathLike[str],
    infos: Mapping[str, TensorInfo],
    content: Callable[[str], Content],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file one tensor at a time.

    Parameters
    ----------
    path : path
        An existing file is replaced only when the new one is complete.
    infos : mapping
        The dtype and shape of every tensor.
    content : callable
        Called with each name, in the order of the file; gives the values, or the stored bytes, as `SafetensorsFile.raw`
        gives them.
    metadata : mapping of str to str, optional

    Raises
    ------
    ArgumentError
        As in `save_safetensors`; or the values are fewer or more than the shape says. Nothing is left behind.
    """
    for name, info in infos.items():
        _check_info(name, info)
    names = sorted(infos, key=lambda name: (ORDER[infos[name].dtype], name))
    header = _header(infos, names, {} if metadata is None else metadata)
    with atomic_file(path) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in names:
            _write_tensor(file, name, infos[name], content(name))


def _write_tensor(file: BinaryIO, name: str, info: TensorInfo, content: Content) -> None:
    written = 0
    for piece in [content] if isinstance(content, np.ndarray) else content:
        if isinstance(piece, Stored):
            piece.file.copy_to(file, piece.name, piece.start, piece.stop)
            written += piece.stop - piece.start
            continue
        if not np.can_cast(piece.dtype, np.float64, "same_kind"):
            raise ArgumentError(f"tensor {name!r} must hold real numbers or booleans, got {piece.dtype}")
        stored = encoded(piece, info.dtype)
        file.write(stored.reshape(-1).view(np.uint8).data)
        written += stored.size
    if written != info.size:
        raise ArgumentError(f"tensor {name!r} must have {info.size} values for its shape {info.shape}, got {written}")


def _header(infos: Mapping[str, TensorInfo], names: list[str], metadata: Mapping[str, str]) -> bytes:
    if not all(_is_text(word) for pair in metadata.items() for word in pair):
        raise ArgumentError(f"metadata must map strings to strings, got {dict(metadata)!r}")
    described: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for name in names:
        end = begin + infos[name].nbytes
        described[name] = {"dtype": infos[name].dtype, "shape": list(infos[name].shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ArgumentError(f"the header must be at most {MAX_HEADER:,} bytes, got {len(text):,}")
    return text


def _check_info(name: Any, info: TensorInfo) -> None:
    if not _is_text(name) or name == "__metadata__":
        raise ArgumentError(f"a tensor's name must be a string other than '__metadata__', got {name!r}")
    if info.dtype not in DTYPES:
        raise ArgumentError(f"dtype of {name!r} must be one of {', '.join(DTYPES)}; got {info.dtype!r}")
    if not _is_shape(info.shape):
        raise ArgumentError(f"shape of {name!r} must be at most {MAX_DIMENSIONS} sizes, got {info.shape!r}")


def _is_text(word: Any) -> bool:
    """Whether it is a string that UTF-8 can hold: one without half a surrogate pair."""
    return isinstance(word, str) and not any("\ud800" <= letter <= "\udfff" for letter in word)


def dtype_name(dtype: np.dtype[Any], name: str = "array") -> str:
    """The format's word for a NumPy dtype."""
    if dtype == np.bool_:
        return "BOOL"
    for word, stored in DTYPES.items():
        if word not in ("BF16", "BOOL") and dtype in (stored, stored.newbyteorder(">")):
            return word
    raise ArgumentError(f"dtype of {name!r} must be one that safetensors has, got {dtype}")


def decoded(raw: Array, dtype: str) -> Array:
    """The values of stored elements."""
    if dtype == "BF16":
        return (raw.astype("<u4") << np.uint32(16)).view("<f4")
    return raw != 0 if dtype == "BOOL" else raw


def encoded(values: Array, dtype: str) -> Array:
    """The values as they are stored: contiguous, in the storage dtype; BF16 rounds float32 to the nearest, ties to even."""
    if dtype == "BF16" and values.dtype != DTYPES["BF16"]:
        bits = np.ascontiguousarray(values, "<f4").reshape(-1).view("<u4")
        # Half of the last kept place, less one bit where that place is even, carries into it exactly when it must.
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        stored = rounded.view("<u2")[1::2].copy()  # the upper halves
        nan = np.isnan(values)
        if nan.any():
            stored[nan.reshape(-1)] = 0x7FC0
        return stored.reshape(values.shape)
    if dtype == "BOOL" and values.dtype != DTYPES["BOOL"]:
        values = values != 0
    return np.ascontiguousarray(values, DTYPES[dtype])


def _parsed(file: BinaryIO, path: str) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """The infos, the absolute offsets and the metadata of a file, after every check."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise FormatError(f"{path}: a safetensors file has at least 8 bytes, this one has {size}")
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise FormatError(f"{path}: its header would have {length:,} bytes, in a file of {size:,} (at most {MAX_HEADER:,})")
    entries = _json(file.read(length), path)
    metadata = entries.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(word, str) for word in metadata.values())):
        raise FormatError(f"{path}: __metadata__ must map strings to strings")
    infos, offsets = {}, {}
    for name, entry in entries.items():
        infos[name], begin = _info(entry, f"{path}: tensor {name!r}")
        offsets[name] = 8 + length + begin
    _check_layout(infos, offsets, 8 + length, size, path)
    return infos, offsets, metadata


def _json(header: bytes, path: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the name {name!r} occurs twice")
            found[name] = value
        return found

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    if not header.startswith(b"{"):
        raise FormatError(f"{path}: its header must start with an opening brace")
    try:
        entries: dict[str, Any] = json.loads(
            header.rstrip(b" ").decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its header is not valid: {error}") from error
    return entries


def _info(entry: Any, where: str) -> tuple[TensorInfo, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: its entry must hold dtype, shape and data_offsets, and nothing else")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where}: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if not (isinstance(shape, list) and _is_shape(shape)):
        raise FormatError(f"{where}: shape must be a list of at most {MAX_DIMENSIONS} sizes")
    if not (isinstance(span, list) and len(span) == 2 and all(_is_size(number) for number in span)):
        raise FormatError(f"{where}: data_offsets must be two offsets")
    info = TensorInfo(dtype, tuple(shape))
    # NumPy refuses dimensions that are too large even where another one is zero.
    if math.prod(number for number in shape if number) * DTYPES[dtype].itemsize > sys.maxsize:
        raise FormatError(f"{where}: shape is too large to exist")
    if span[1] - span[0] != info.nbytes:
        raise FormatError(f"{where}: {dtype} of shape {info.shape} takes {info.nbytes} bytes, its data_offsets are {span}")
    return info, span[0]


def _is_shape(shape: Sequence[Any]) -> bool:
    return len(shape) <= MAX_DIMENSIONS and all(_is_size(number) for number in shape)


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _check_layout(infos: Mapping[str, TensorInfo], offsets: Mapping[str, int], start: int, size: int, path: str) -> None:
    """Refuse holes and overlaps: each tensor begins where the one before it ends, the last at the end of the file."""
    position = start
    for name in sorted(infos, key=lambda name: (offsets[name], infos[name].nbytes)):
        if offsets[name] != position:
            kind = "leaves a hole before it" if offsets[name] > position else "overlaps another one"
            raise FormatError(
                f"{path}: tensor {name!r} {kind}: it begins at {offsets[name] - start}, not {position - start}"
            )
        position += infos[name].nbytes
    if position != size:
        raise FormatError(f"{path}: its tensors end at byte {position:,}, the file at {size:,}")
