"""The files of a model's folder besides its weights: configuration, tokenizer, licence, and so on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from typing import NamedTuple

from .._archive import atomic_file
from .._validation import file_path
from ..errors import ArgumentError
from ._json import read_json

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite", ".pkl")
"""The endings of files with weights, which would be those before a merge."""

INDICES = (".index.json", ".index.fp16.json")
CONFIG = "config.json"

Path = str | os.PathLike[str]


class CopiedFiles(NamedTuple):
    """The result of `copy_model_files`: paths relative to the folder."""

    copied: tuple[str, ...]
    skipped: tuple[str, ...]
    """Weights and their indices."""


def copy_model_files(
    base: Path,
    output: Path,
    *,
    untied: bool = False,
    vocab_size: int | None = None,
    weights_of: Collection[str] = (),
) -> CopiedFiles:
    """Copy all files of a folder except weights, so that a merged folder is complete: transformers loads it.

    Parameters
    ----------
    base : path
        The folder of the base. Hidden files and folders are ignored.
    output : path
        The folder with the merged weights. Existing files of the same names are replaced.
    untied : bool, default False
        Whether the merge has written a separate output head: then ``tie_word_embeddings`` in config.json becomes false.
    vocab_size : int, optional
        The number of rows of an embedding of another size that the merge has written: the new vocab_size in config.json.
    weights_of : collection of str, optional
        The names of folders inside `base` that are copied with their weights: the unchanged components of a pipeline.

    Returns
    -------
    CopiedFiles
        What was copied, and what was not because it has weights.

    Raises
    ------
    ArgumentError
        If `base` is not a folder.
    FormatError
        If config.json must change, and is not valid JSON.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.io.folders import copy_model_files
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("base", "merged"):
    ...     (folder / name).mkdir()
    >>> for name in ("config.json", "model.safetensors"):
    ...     _ = (folder / "base" / name).write_text("{}")
    >>> copy_model_files(folder / "base", folder / "merged")
    CopiedFiles(copied=('config.json',), skipped=('model.safetensors',))
    """
    source, target = file_path("base", base), file_path("output", output)
    if not os.path.isdir(source):
        raise ArgumentError(f"base must be a folder, got {source}")
    names = sorted(_files(source))
    is_weights = {name: name.endswith((*WEIGHTS, *INDICES)) for name in names}
    skipped = tuple(name for name in names if is_weights[name] and name.split(os.sep)[0] not in weights_of)
    copied = tuple(name for name in names if name not in skipped)
    for name in copied:
        os.makedirs(os.path.dirname(os.path.join(target, name)), exist_ok=True)
        with atomic_file(os.path.join(target, name)) as file, open(os.path.join(source, name), "rb") as original:
            shutil.copyfileobj(original, file)
    if (untied or vocab_size) and CONFIG in copied:
        config = read_json(os.path.join(source, CONFIG))
        changes: dict[str, int] = {"tie_word_embeddings": False} if untied else {}
        changes |= {"vocab_size": vocab_size} if vocab_size and "vocab_size" in config else {}
        if config != config | changes:
            with atomic_file(os.path.join(target, CONFIG)) as file:
                file.write(json.dumps(config | changes, indent=2, ensure_ascii=False).encode() + b"\n")
    return CopiedFiles(copied, skipped)


def _files(folder: str) -> Iterator[str]:
    """The paths of all files that are not hidden, relative to the folder."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(place, name), folder) for name in names if not name.startswith("."))
