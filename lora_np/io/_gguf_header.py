"""The header of a GGUF file: metadata, and which tensors the file holds, validated before any tensor is read.

A file consists of the magic bytes, the version, the numbers of tensors and of metadata entries, these entries, a
description of each tensor, and the data, in which each tensor begins at a multiple of the alignment. Numbers are
little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, TypeAlias, final

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_DIMENSIONS = 4

Value: TypeAlias = bool | int | float | str | list[str] | Array
"""A metadata value: a scalar, a list of strings, or a one-dimensional array of numbers."""

NUMBERS: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in enumerate(["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "", "", "<u8", "<i8", "<f8"])
    if name
}
"""The dtype of a number or bool by its code in the format."""
TEXT, ARRAY = 8, 9


@final
@dataclass(frozen=True)
class StorageType:
    """How the values of a tensor are stored: in blocks along its last axis."""

    name: str
    values: int
    """The number of values in a block."""
    nbytes: int
    """The size of a block in bytes."""


TYPES = {
    0: StorageType("F32", 1, 4),
    1: StorageType("F16", 1, 2),
    3: StorageType("Q4_1", 32, 20),
    8: StorageType("Q8_0", 32, 34),
    30: StorageType("BF16", 1, 2),
}
"""The supported storage types by their codes in the format."""

UNSUPPORTED = (
    {2: "Q4_0", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"}
    | {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"}
    | {24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}
)
"""The names of the other storage types."""


@final
@dataclass(frozen=True)
class GGUFTensor:
    """The storage type, the shape and the place of a tensor in a file."""

    storage: StorageType
    shape: tuple[int, ...]
    """As an array: the last axis is contiguous. (The file lists the sizes in reverse order.)"""
    offset: int
    """In bytes, relative to the beginning of the data."""

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return math.prod(self.shape) // self.storage.values

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.blocks * self.storage.nbytes


def read_header(file: BinaryIO, path: str) -> tuple[dict[str, Value], dict[str, GGUFTensor], int]:
    """Read and validate everything except the values of the tensors.

    Returns
    -------
    metadata : dict of values by key
    tensors : dict of GGUFTensor by name
    start : int
        The byte at which the data begin.

    Raises
    ------
    FormatError
        If the file violates the format. The message names the file, the key or tensor, and the rule.
    NotSupportedError
        If the file has another version or byte order, or a tensor of another type.
    """
    if os.fstat(file.fileno()).st_size == 0:
        raise FormatError(f"{path}: the file is empty")
    reader = _Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)
    tensor_count, entry_count = _counts(reader)
    metadata = _metadata(reader, entry_count)
    alignment = _alignment(metadata, path)
    tensors = _tensors(reader, tensor_count)
    start = _padded(reader.position, alignment)
    _check_layout(tensors, start, alignment, reader)
    return metadata, tensors, start


class _Reader:
    """Reads values one after another; reading beyond the end of the file is a FormatError."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data, self.path, self.size = data, path, len(data)
        self.position = 0

    def fail(self, where: str, problem: str) -> NoReturn:
        raise FormatError(f"{self.path}: {where}: {problem}")

    def skip(self, count: int, where: str) -> int:
        """Advance by a number of bytes; returns the previous position."""
        begin = self.position
        if count > self.size - begin:
            self.fail(where, f"takes {count:,} bytes from byte {begin:,}, but the file ends at byte {self.size:,}")
        self.position += count
        return begin

    def number(self, dtype: np.dtype[Any], where: str) -> Any:
        """A Python number or bool."""
        return self.numbers(dtype, 1, where)[0].item()

    def numbers(self, dtype: np.dtype[Any], count: int, where: str) -> Array:
        """An array of any length."""
        begin = self.skip(count * dtype.itemsize, where)
        stored = self.data[begin : self.position]
        if dtype == np.bool_ and stored.strip(b"\0\1"):
            self.fail(where, "a bool must be stored as 0 or 1")
        return np.frombuffer(stored, dtype)

    def integer(self, form: str, where: str) -> int:
        """An unsigned integer, of 4 bytes (``"<I"``) or 8 (``"<Q"``)."""
        (value,) = struct.unpack_from(form, self.data, self.skip(struct.calcsize(form), where))
        return int(value)

    def text(self, where: str) -> str:
        """A string: its length, then UTF-8."""
        length = self.integer("<Q", where)
        begin = self.skip(length, where)
        try:
            return self.data[begin : self.position].decode()
        except UnicodeDecodeError as error:
            self.fail(where, f"not valid UTF-8: {error}")


def _counts(reader: _Reader) -> tuple[int, int]:
    """The numbers of tensors and of metadata entries."""
    if reader.data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"{reader.path}: not a GGUF file: must begin with {MAGIC!r}, got {reader.data[: len(MAGIC)]!r}")
    reader.skip(len(MAGIC), "magic")
    version = reader.integer("<I", "version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        found = f"big-endian version {swapped}" if swapped in VERSIONS else f"version {version}"
        raise NotSupportedError(f"{reader.path}: must be little-endian GGUF of version 2 or 3, got {found}")
    return reader.integer("<Q", "number of tensors"), reader.integer("<Q", "number of metadata entries")


def _metadata(reader: _Reader, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for entry in range(count):
        key = reader.text(f"metadata entry {entry}")
        where = f"metadata {key!r}"
        if key in metadata:
            reader.fail(where, "occurs twice")
        metadata[key] = _value(reader, reader.integer("<I", where), where)
    return metadata


def _value(reader: _Reader, code: int, where: str) -> Value:
    if code == TEXT:
        return reader.text(where)
    if code == ARRAY:
        return _list(reader, where)
    if code not in NUMBERS:
        reader.fail(where, f"the type of a value must be 0 to 12, got {code}")
    number: bool | int | float = reader.number(NUMBERS[code], where)
    return number


def _list(reader: _Reader, where: str) -> list[str] | Array:
    code, count = reader.integer("<I", where), reader.integer("<Q", where)
    if code == TEXT:
        return [reader.text(where) for _ in range(count)]
    if code not in NUMBERS:
        reader.fail(where, f"the type of an array's elements must be a number, bool or string, got {code}")
    return reader.numbers(NUMBERS[code], count, where)


def _alignment(metadata: Mapping[str, Value], path: str) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value & (value - 1) or value > 2**31:
        raise FormatError(f"{path}: metadata 'general.alignment': must be a power of two, got {value!r}")
    return value


def _tensors(reader: _Reader, count: int) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    for number in range(count):
        name = reader.text(f"tensor {number}")
        where = f"tensor {name!r}"
        if name in tensors:
            reader.fail(where, "occurs twice")
        tensors[name] = _tensor(reader, where)
    return tensors


def _tensor(reader: _Reader, where: str) -> GGUFTensor:
    dimensions = reader.integer("<I", where)
    if dimensions > MAX_DIMENSIONS:
        reader.fail(where, f"must have at most {MAX_DIMENSIONS} dimensions, got {dimensions}")
    shape = tuple(reader.integer("<Q", where) for _ in range(dimensions))[::-1]
    if 0 in shape:
        reader.fail(where, f"sizes must be positive, got {shape}")
    code, offset = reader.integer("<I", where), reader.integer("<Q", where)
    if code in UNSUPPORTED:
        supported = ", ".join(each.name for each in TYPES.values())
        raise NotSupportedError(f"{reader.path}: {where}: the type must be one of {supported}; got {UNSUPPORTED[code]}")
    if code not in TYPES:
        reader.fail(where, f"unknown type {code}")
    storage = TYPES[code]
    if (shape[-1] if shape else 1) % storage.values:
        reader.fail(where, f"{storage.name} needs a last axis of a multiple of {storage.values}, got shape {shape}")
    return GGUFTensor(storage, shape, offset)


def _check_layout(tensors: Mapping[str, GGUFTensor], start: int, alignment: int, reader: _Reader) -> None:
    """Reject holes and overlaps: each tensor begins at the first aligned byte after the previous one."""
    end = reader.position
    for name in sorted(tensors, key=lambda name: tensors[name].offset):
        begin = start + tensors[name].offset
        if begin != _padded(end, alignment):
            problem = "overlaps another tensor" if begin < _padded(end, alignment) else "leaves a hole before it"
            reader.fail(f"tensor {name!r}", f"{problem}: it begins at byte {begin:,}, not {_padded(end, alignment):,}")
        end = begin + tensors[name].nbytes
        if end > reader.size:
            reader.fail(f"tensor {name!r}", f"ends at byte {end:,}, but the file ends at byte {reader.size:,}")
    if reader.size > _padded(end, alignment):
        raise FormatError(f"{reader.path}: the tensors end at byte {end:,}, but the file ends at byte {reader.size:,}")


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
