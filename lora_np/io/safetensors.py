"""safetensors files: a strict, lazy reader and a deterministic, streaming writer, in NumPy alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias, final

import numpy as np

from .._archive import atomic_file
from .._typing import Array
from .._validation import mapping
from ..errors import ArgumentError
from ..kernels import StoredMatrix
from ..kernels.bfloat16 import narrow
from ._mapping import mapped
from ._safetensors_header import DTYPES as DTYPES
from ._safetensors_header import TensorInfo as TensorInfo
from ._safetensors_header import header_bytes, in_file_order, read_header
from ._tensor_file import TensorFile

COPY_WINDOW = 1 << 23  # bytes


@final
class SafetensorsFile(TensorFile[TensorInfo]):
    """A safetensors file as a read-only mapping from names to arrays, each memory-mapped on access.

    Parameters
    ----------
    path : path
        The file. Its complete header is validated before any tensor is read.

    Raises
    ------
    FormatError
        If the file violates the format, which includes duplicate names. The message names the file, the tensor and the
        rule.

    Notes
    -----
    Arrays share memory with the file and are read-only, except that BF16 tensors become new float32 arrays and BOOL tensors
    new bool arrays. Use the file as a context manager, or call `close`; existing arrays remain valid.
    """

    def _read_header(self, file: BinaryIO) -> Mapping[str, TensorInfo]:
        infos, self._offsets, self.metadata = read_header(file, self.path)
        return infos

    def __getitem__(self, name: str) -> Array:
        info = self._infos[name]
        return decoded(self.raw(name), info.dtype).reshape(info.shape)

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """The stored elements of a tensor in row-major order, optionally only those from `start` to `stop`.

        Returns
        -------
        array, one-dimensional, of the storage dtype (`DTYPES`)
            It shares memory with the file.
        """
        info = self._infos[name]
        dtype = DTYPES[info.dtype]
        start, stop, _ = slice(start, stop).indices(info.size)
        if stop <= start:
            return np.empty(0, dtype)
        return mapped(self._file, dtype, stop - start, self._offsets[name] + start * dtype.itemsize)

    def copy_to(self, file: BinaryIO, name: str, start: int, stop: int) -> None:
        """Append the elements from `start` to `stop` to another file, using `os.copy_file_range` where it is available."""
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
            pass  # not supported by this system, or between these files
        for window in range(offset, end, COPY_WINDOW):
            self._file.seek(window)
            file.write(self._file.read(min(COPY_WINDOW, end - window)))


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Load all tensors of a file into memory; for large files, or for the metadata, use `SafetensorsFile`."""
    with SafetensorsFile(path) as file:
        return {name: np.array(array) for name, array in file.items()}


@final
@dataclass(frozen=True)
class Stored:
    """Elements of a tensor in another file, from `start` to `stop` in row-major order, to be copied unchanged."""

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
    """Write a safetensors file. Equal contents produce identical bytes.

    Parameters
    ----------
    path : path
        An existing file is replaced only once the new one is complete.
    tensors : mapping of str to array
        Arrays of any memory layout; the file is row-major. A BF16 matrix in `AdapterWeights.whole` stays BF16.
    metadata : mapping of str to str, optional
    dtypes : mapping of str to str, optional
        The dtype in the file, such as ``"BF16"``, for tensors whose dtype is to be converted.

    Raises
    ------
    ArgumentError
        If a dtype is not supported by the format, if values are not real numbers or booleans, or if names or metadata are
        not strings. Nothing is written.
    """
    mapping("tensors", tensors)
    mapping("metadata", {} if metadata is None else metadata)
    mapping("dtypes", {} if dtypes is None else dtypes)
    chosen = {} if dtypes is None else dtypes
    stored = {name: (np.asarray(tensors[name]), dtype) for name, dtype in chosen.items() if name in tensors}
    stored |= {name: stored_elements(tensor, name) for name, tensor in tensors.items() if name not in stored}
    infos = {name: TensorInfo(dtype, array.shape) for name, (array, dtype) in stored.items()}
    stream_safetensors(path, infos, lambda name: stored[name][0], metadata)


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
        An existing file is replaced only once the new one is complete.
    infos : mapping of str to TensorInfo
        The dtype and shape of every tensor.
    content : callable
        Called with each name, in file order. It returns the values of the tensor, or its stored elements as returned by
        `SafetensorsFile.raw`: as one array, or as an iterable of consecutive pieces, each an array or a `Stored`.
    metadata : mapping of str to str, optional

    Raises
    ------
    ArgumentError
        As in `save_safetensors`; also if the number of values does not match the shape. No partial file is left behind.
    """
    ordered = in_file_order(infos)
    header = header_bytes(ordered, {} if metadata is None else metadata)
    with atomic_file(path) as file:
        file.write(header)
        for name, info in ordered.items():
            _write_tensor(file, name, info, content(name))


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


def as_stored(file: SafetensorsFile, name: str) -> Any:
    """A tensor as the file stores it: memory-mapped, a BF16 matrix as a `StoredMatrix`; other BF16 tensors as float32."""
    info = file.info(name)
    if info.dtype == "BF16" and len(info.shape) == 2:
        return StoredMatrix(file.raw(name).reshape(info.shape))
    return file[name]


def stored_elements(tensor: Any, name: str = "array") -> tuple[Array, str]:
    """The elements of an array or a StoredMatrix as a file has them, and their dtype there."""
    if isinstance(tensor, StoredMatrix):
        return (tensor.bits.T if tensor.transposed else tensor.bits), "BF16"
    array = np.asarray(tensor)
    return array, dtype_name(array.dtype, name)


def dtype_name(dtype: np.dtype[Any], name: str = "array") -> str:
    """The name of a NumPy dtype in the format."""
    if dtype == np.bool_:
        return "BOOL"
    for word, stored in DTYPES.items():
        if word not in ("BF16", "BOOL") and dtype in (stored, stored.newbyteorder(">")):
            return word
    raise ArgumentError(f"dtype of {name!r} must be one that safetensors supports, got {dtype}")


def decoded(raw: Array, dtype: str) -> Array:
    """Convert stored elements to values."""
    if dtype == "BF16":
        return (raw.astype("<u4") << np.uint32(16)).view("<f4")
    return raw != 0 if dtype == "BOOL" else raw


def encoded(values: Array, dtype: str) -> Array:
    """Convert values to stored elements, contiguous; float32 is rounded to the nearest BF16, ties to even."""
    if dtype == "BF16" and values.dtype != DTYPES["BF16"]:
        wide = np.ascontiguousarray(values, "<f4")
        stored = np.empty(wide.shape, DTYPES["BF16"])
        narrow(wide, stored, np.empty(wide.shape, "<u4"))
        return stored.reshape(values.shape)  # wide has at least one axis
    if dtype == "BOOL" and values.dtype != DTYPES["BOOL"]:
        values = values != 0
    return np.ascontiguousarray(values, DTYPES[dtype])
