"""The header of a safetensors file: which tensors the file holds, how it is encoded, and how it is validated.

A file consists of 8 bytes that hold a length N, N bytes of JSON that describe the tensors, and the data of the tensors,
row-major and little-endian, without holes (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, final

import numpy as np

from ..errors import ArgumentError, FormatError

MAX_HEADER = 100_000_000  # bytes
MAX_DIMENSIONS = 64  # NumPy's limit

# In file order: by descending alignment.
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
"""The supported dtypes of the format and their storage dtypes. BF16 is read as float32, and BOOL as bool."""

ORDER = {name: position for position, name in enumerate(DTYPES)}


@final
@dataclass(frozen=True)
class TensorInfo:
    """The dtype and shape of a tensor in a file."""

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


# ---------------------------------------------------------------- writing


def in_file_order(infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors by descending alignment, then by name, after validation."""
    for name, info in infos.items():
        _check_info(name, info)
    names = sorted(infos, key=lambda name: (ORDER[infos[name].dtype], name))
    return {name: infos[name] for name in names}


def header_bytes(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file that holds these tensors in this order: the length, and the JSON padded to 8 bytes."""
    if not all(_is_text(word) for pair in metadata.items() for word in pair):
        raise ArgumentError(f"metadata must map strings to strings, got {dict(metadata)!r}")
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for name, info in infos.items():
        end = begin + info.nbytes
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ArgumentError(f"the header must be at most {MAX_HEADER:,} bytes, got {len(text):,}")
    return len(text).to_bytes(8, "little") + text


def _check_info(name: Any, info: TensorInfo) -> None:
    if not _is_text(name) or name == "__metadata__":
        raise ArgumentError(f"tensor names must be valid Unicode strings other than '__metadata__', got {name!r}")
    if info.dtype not in DTYPES:
        raise ArgumentError(f"dtype of {name!r} must be one of {', '.join(DTYPES)}; got {info.dtype!r}")
    if not _is_shape(info.shape):
        raise ArgumentError(f"shape of {name!r} must be at most {MAX_DIMENSIONS} non-negative integers, got {info.shape!r}")


def _is_text(word: Any) -> bool:
    """Whether `word` is a string that UTF-8 can encode, that is, one without lone surrogates."""
    return isinstance(word, str) and not any("\ud800" <= letter <= "\udfff" for letter in word)


# ---------------------------------------------------------------- reading


def read_header(file: BinaryIO, path: str) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """Read and validate a header: the tensors, their absolute offsets, and the metadata."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise FormatError(f"{path}: a safetensors file must have at least 8 bytes, got {size}")
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise FormatError(
            f"{path}: the header length, {length:,} bytes, exceeds the file ({size:,} bytes) "
            f"or the limit of {MAX_HEADER:,} bytes"
        )
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
        raise ValueError(f"{word} is not valid JSON")

    if not header.startswith(b"{"):
        raise FormatError(f"{path}: the header must start with an opening brace")
    try:
        entries: dict[str, Any] = json.loads(
            header.rstrip(b" ").decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the header is not valid: {error}") from error
    return entries


def _info(entry: Any, where: str) -> tuple[TensorInfo, int]:
    """A tensor, and where its data begin, relative to the end of the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: the entry must have exactly the keys dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where}: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if not (isinstance(shape, list) and _is_shape(shape)):
        raise FormatError(f"{where}: shape must be a list of at most {MAX_DIMENSIONS} non-negative integers")
    if not (isinstance(span, list) and len(span) == 2 and all(_is_size(number) for number in span)):
        raise FormatError(f"{where}: data_offsets must be two non-negative integers")
    info = TensorInfo(dtype, tuple(shape))
    # NumPy rejects dimensions that are too large, even if another dimension is zero.
    if math.prod(number for number in shape if number) * DTYPES[dtype].itemsize > sys.maxsize:
        raise FormatError(f"{where}: shape is too large for an array")
    if span[1] - span[0] != info.nbytes:
        raise FormatError(f"{where}: {dtype} of shape {info.shape} takes {info.nbytes} bytes, but data_offsets are {span}")
    return info, span[0]


def _is_shape(shape: Sequence[Any]) -> bool:
    return len(shape) <= MAX_DIMENSIONS and all(_is_size(number) for number in shape)


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _check_layout(infos: Mapping[str, TensorInfo], offsets: Mapping[str, int], start: int, size: int, path: str) -> None:
    """Reject holes and overlaps: each tensor begins where the previous one ends, and the last one ends with the file."""
    position = start
    for name in sorted(infos, key=lambda name: (offsets[name], infos[name].nbytes)):
        if offsets[name] != position:
            problem = "leaves a hole before it" if offsets[name] > position else "overlaps another tensor"
            raise FormatError(
                f"{path}: tensor {name!r} {problem}: it begins at {offsets[name] - start}, not {position - start}"
            )
        position += infos[name].nbytes
    if position != size:
        raise FormatError(f"{path}: the tensors end at byte {position:,}, but the file ends at byte {size:,}")
