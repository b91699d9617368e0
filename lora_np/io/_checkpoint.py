"""Checkpoints of one or several safetensors files."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Self, final

from .._validation import file_path
from ..errors import FormatError
from ._json import read_json
from .safetensors import SafetensorsFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Path = str | os.PathLike[str]


def checkpoint_files(base: Path) -> dict[str, str]:
    """The safetensors files of a checkpoint: a mapping from file names to paths.

    Parameters
    ----------
    base : path
        A safetensors file, an index file (``*.safetensors.index.json``), or a folder that contains
        model.safetensors.index.json or model.safetensors.

    Raises
    ------
    FormatError
        If a file does not exist, or the index is damaged.
    """
    path = file_path("base", base)
    if os.path.isdir(path):
        names = [name for name in (INDEX, SINGLE) if os.path.isfile(os.path.join(path, name))]
        if not names:
            raise FormatError(f"{path}: neither {INDEX} nor {SINGLE} found")
        path = os.path.join(path, names[0])
    names = sorted(set(read_index(path)["weight_map"].values())) if path.endswith(".json") else [os.path.basename(path)]
    files = {name: os.path.join(os.path.dirname(path), name) for name in names}
    for file in files.values():
        if not os.path.isfile(file):
            raise FormatError(f"{path}: file {file} not found")
    return files


@final
class Checkpoint(Mapping[str, SafetensorsFile]):
    """The files of a checkpoint, opened: a mapping from the names of tensors to the files that hold them.

    Parameters
    ----------
    path : path
        As for `checkpoint_files`.

    Raises
    ------
    FormatError
        If a file is missing or damaged, or if two files have a tensor of the same name.
    """

    def __init__(self, path: Path) -> None:
        self.path = file_path("path", path)
        self.files: dict[str, SafetensorsFile] = {}
        self._places: dict[str, SafetensorsFile] = {}
        with contextlib.ExitStack() as opened:
            for name, file in checkpoint_files(path).items():
                self.files[name] = tensors = opened.enter_context(SafetensorsFile(file))
                if twice := next((key for key in tensors if key in self._places), None):
                    raise FormatError(f"{file}: the tensor {twice!r} occurs twice in the checkpoint")
                self._places |= dict.fromkeys(tensors, tensors)
            self._opened = opened.pop_all()

    def __getitem__(self, key: str) -> SafetensorsFile:
        return self._places[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def file_of(self, key: str) -> str:
        """The name of the file that holds a tensor; for a new tensor, the last file."""
        return next((name for name, file in self.files.items() if key in file), list(self.files)[-1])


def index_path(base: Path) -> str | None:
    """The index of a checkpoint, if it has one."""
    path = os.path.join(base, INDEX) if os.path.isdir(base) else file_path("base", base)
    return path if path.endswith(".json") and os.path.isfile(path) else None


def read_index(path: str) -> dict[str, Any]:
    """An index, whose weight_map names safetensors files in the same folder."""
    try:
        index = read_json(path)
        names = index["weight_map"].values()
        if not all(isinstance(name, str) and re.fullmatch(r"[^/\\:\0]+\.safetensors", name) for name in names):
            raise ValueError("weight_map must name safetensors files in the same folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: not an index of safetensors files: {error!r}") from error
    return dict(index)
