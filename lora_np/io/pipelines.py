"""A diffusers pipeline as the base of a merge: a folder with a folder for each component."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from .._archive import atomic_folder
from .._validation import file_path, instance
from ..errors import FormatError
from ..factors.weights import AdapterWeights
from ._checkpoint import SINGLE, checkpoint_files, index_path
from .base_names import components, model_file, with_base_names
from .folders import copy_model_files
from .merge import MergedTensor, merge_checkpoint

INDEX = "model_index.json"
"""The file that makes a folder a pipeline."""

Path = str | os.PathLike[str]


class Part(NamedTuple):
    """A checkpoint that an adapter changes."""

    base: str
    """A file, an index, or a folder with shards."""
    adapter: AdapterWeights
    place: str = ""
    """Where the merged checkpoint is written within the result; ``""`` if it is the result."""

    @property
    def folder(self) -> str:
        """The folder of the merged files within the result."""
        return self.place if index_path(self.base) else os.path.dirname(self.place)

    def within(self, result: str) -> str:
        """The path of the merged checkpoint."""
        return os.path.join(result, self.place) if self.place else result

    def of_result(self, tensor: MergedTensor) -> MergedTensor:
        """A merged tensor with the name that its file has within the result."""
        return replace(tensor, file=os.path.join(self.folder, tensor.file))


def is_pipeline(base: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return os.path.isfile(os.path.join(file_path("base", base), INDEX))


def merge_parts(base: Path, adapter: AdapterWeights) -> list[Part]:
    """The checkpoints of a base that an adapter changes: the components of a pipeline, or the base itself.

    Raises
    ------
    FormatError
        If a layer fits no component of a pipeline, or several.
    NotSupportedError
        If the adapter replaces tensors of a pipeline.
    """
    root = file_path("base", base)
    if is_pipeline(root):
        parts = []
        for name, weights in components(with_base_names(adapter, root)).items():
            file = model_file(os.path.join(root, name))
            assert file is not None  # for it has the modules
            parts.append(Part(file, weights, name if index_path(file) else os.path.relpath(file, root)))
        return parts
    if os.path.isdir(root) and not index_path(root):
        return [Part(checkpoint_files(root)[SINGLE], adapter, SINGLE)]
    return [Part(root, adapter)]


def merge_pipeline(
    base: Path,
    adapter: AdapterWeights,
    output: Path,
    *,
    subtract: bool = False,
    threads: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[MergedTensor]:
    """Write a diffusers pipeline with an adapter merged into its components; all other files are copied.

    Parameters
    ----------
    base : path
        The folder of a pipeline: model_index.json, and a folder for each component.
    adapter : AdapterWeights
        As read from a file of diffusers, kohya or PEFT. `with_base_names` finds the component of each layer.
    output : path
        The folder to write.
    subtract, threads, progress
        As in `merge_checkpoint`.

    Returns
    -------
    list of MergedTensor
        The changed tensors; their files are relative to `output`.

    Raises
    ------
    FormatError
        If `base` is not a pipeline; if a layer fits none of its modules, or several; or as in `merge_checkpoint`.
    NotSupportedError
        If the adapter replaces tensors, such as a head.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import merge_pipeline, save_safetensors
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "base" / "unet").mkdir(parents=True)
    >>> _ = (folder / "base" / "model_index.json").write_text("{}")
    >>> file = folder / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    >>> save_safetensors(file, {"mid_block.proj_in.weight": np.zeros((4, 4))})
    >>> adapter = AdapterWeights({"lora_unet_mid_block_proj_in": LoRALayer(4, 4, rank=2, rng=0)})
    >>> [tensor.key for tensor in merge_pipeline(folder / "base", adapter, folder / "merged")]
    ['mid_block.proj_in.weight']
    >>> sorted(path.name for path in (folder / "merged").iterdir())
    ['model_index.json', 'unet']
    """
    instance("adapter", adapter, AdapterWeights, "AdapterWeights")
    if not is_pipeline(base):
        raise FormatError(f"{os.fspath(base)}: must be the folder of a diffusers pipeline, but has no {INDEX}")
    parts = merge_parts(base, adapter)
    merged: list[MergedTensor] = []
    with atomic_folder(output) as folder:
        for part in parts:
            place = part.within(folder)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            tensors = merge_checkpoint(
                part.base, part.adapter, place, subtract=subtract, threads=threads, progress=progress
            )
            merged += map(part.of_result, tensors)
        copy_model_files(base, folder, weights_of=unchanged_folders(base, parts))
    return merged


def unchanged_folders(base: Path, parts: list[Part]) -> list[str]:
    """The folders of a pipeline that a merge copies with their weights; none for another base."""
    changed = {part.folder for part in parts}
    folders = [entry.name for entry in os.scandir(base) if entry.is_dir()] if is_pipeline(base) else []
    return [name for name in folders if name not in changed]
