"""GGUF files, the format of llama.cpp: metadata and tensors, some of them quantized in blocks, read with NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import BinaryIO, final

import numpy as np

from .._typing import Array
from ._gguf_header import GGUFTensor as GGUFTensor
from ._gguf_header import StorageType as StorageType
from ._gguf_header import Value as Value
from ._gguf_header import read_header
from ._mapping import mapped
from ._tensor_file import TensorFile
from .safetensors import decoded

PIECE = 1 << 10
"""The number of blocks to decode at a time: 128 KiB of float32, which fits in the cache."""


@final
class GGUFFile(TensorFile[GGUFTensor]):
    """A GGUF file as a read-only mapping from names to float32 arrays, each read on access.

    Parameters
    ----------
    path : path
        The file, of version 2 or 3. Its header is validated completely before any tensor is read.

    Attributes
    ----------
    metadata : dict
        The metadata by key: bools, integers, floats, strings, lists of strings, and arrays of numbers.

    Raises
    ------
    FormatError
        If the file violates the format. The message names the file, the key or tensor, and the rule.
    NotSupportedError
        If the file has another version or byte order, or a tensor of a type other than F32, F16, BF16, Q8_0 and Q4_1.

    Notes
    -----
    F32 tensors share memory with the file and are read-only; the others become new arrays. The types Q8_0 and Q4_1 store
    blocks of 32 values, x = d q with 8-bit integers q, and x = d q + m with 4-bit ones; d and m are of type F16. Use the
    file as a context manager, or call `close`; existing arrays remain valid.
    """

    def _read_header(self, file: BinaryIO) -> Mapping[str, GGUFTensor]:
        self.metadata, tensors, self._start = read_header(file, self.path)
        return tensors

    def __getitem__(self, name: str) -> Array:
        tensor = self._infos[name]
        stored = self.raw(name)
        if tensor.storage.name == "F32":
            return stored.reshape(tensor.shape)
        if tensor.storage.name in ("F16", "BF16"):
            return decoded(stored, tensor.storage.name).astype(np.float32, copy=False).reshape(tensor.shape)
        return _decoded_blocks(stored, BLOCKS[tensor.storage.name]).reshape(tensor.shape)

    def raw(self, name: str) -> Array:
        """The stored elements of a tensor, which share memory with the file.

        Returns
        -------
        array
            One-dimensional of dtype float32 (F32), float16 (F16) or uint16 (BF16); otherwise of dtype uint8 and of shape
            (blocks, bytes of a block).
        """
        tensor = self._infos[name]
        dtype = np.dtype(STORED.get(tensor.storage.name, "u1"))
        stored = mapped(self._file, dtype, tensor.nbytes // dtype.itemsize, self._start + tensor.offset)
        return stored if tensor.storage.values == 1 else stored.reshape(tensor.blocks, tensor.storage.nbytes)


STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The dtypes of the types that store values one by one."""


def _decoded_blocks(stored: Array, decode: Callable[[Array, Array], None]) -> Array:
    """The values of all blocks, (blocks, bytes) -> (blocks, 32)."""
    values = np.empty((len(stored), 32), np.float32)
    with np.errstate(invalid="ignore"):  # a damaged scale may be infinite
        for start in range(0, len(stored), PIECE):
            decode(stored[start : start + PIECE], values[start : start + PIECE])
    return values


def _q8_0(stored: Array, x: Array) -> None:
    """``x = d q``: d as F16, then 32 signed bytes q."""
    x[...] = stored[:, 2:].view(np.int8)
    x *= _halves(stored[:, :2])


def _q4_1(stored: Array, x: Array) -> None:
    """``x = d q + m``: d and m as F16, then 16 bytes, whose lower halves are the first 16 q, and whose upper the others."""
    q = stored[:, 4:]
    x[:, :16], x[:, 16:] = q & 15, q >> 4
    x *= _halves(stored[:, :2])
    x += _halves(stored[:, 2:4])


def _halves(stored: Array) -> Array:
    """Two bytes of each block as a float32 column."""
    return np.ascontiguousarray(stored).view("<f2").astype(np.float32)


BLOCKS: dict[str, Callable[[Array, Array], None]] = {"Q8_0": _q8_0, "Q4_1": _q4_1}
"""How to decode the types that store blocks: the function writes the values into its second argument."""
