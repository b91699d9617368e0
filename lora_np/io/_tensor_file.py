"""`TensorFile`: a file of named tensors, open while they are read."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Generic, Self, TypeVar

from .._typing import Array
from .._validation import file_path

Info = TypeVar("Info")
"""What the header says of a tensor."""


class TensorFile(Mapping[str, Array], Generic[Info]):
    """A read-only mapping from names to arrays; subclasses read the header, and a tensor on access."""

    _infos: Mapping[str, Info]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = file_path("path", path)
        self._file = open(path, "rb")  # noqa: SIM115  open for the lifetime of this object
        try:
            self._infos = self._read_header(self._file)
        except BaseException:
            self._file.close()
            raise

    @abstractmethod
    def _read_header(self, file: BinaryIO) -> Mapping[str, Info]:
        """What the validated header says of each tensor, by name."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos  # Mapping's default would read the tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {len(self)} tensors)"

    def info(self, name: str) -> Info:
        """The storage type and shape of a tensor, without reading it."""
        return self._infos[name]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
