"""Merge an adapter into a checkpoint of safetensors files, a few megabytes at a time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np

from .._archive import atomic_file
from .._typing import Array
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from .safetensors import SafetensorsFile, Stored, decoded, encoded, stream_safetensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PRECISIONS = {"F64": 2.0**-53, "F32": 2.0**-24, "BF16": 2.0**-8, "F16": 2.0**-11}
WINDOW = 1 << 21  # elements mapped and written at a time
PIECE = 1 << 16  # elements computed at a time: few enough to stay in the cache throughout
SMALL_PRODUCT = 1_000_000  # multiplications below which a product is not worth a second BLAS thread

Path = str | os.PathLike[str]


@final
@dataclass(frozen=True)
class MergedTensor:
    """A tensor that a merge changes."""

    key: str
    file: str
    """The name of the output file that contains it."""
    dtype: str
    error: float | None = None
    """Set by `verify_checkpoint`: the largest deviation from the sum in float64, relative to the largest element of the sum
    or of the base."""

    @property
    def precision(self) -> float:
        """The largest relative error of rounding to the dtype: half a unit in the last place."""
        return PRECISIONS[self.dtype]


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
    path = os.fspath(base)
    if os.path.isdir(path):
        names = [name for name in (INDEX, SINGLE) if os.path.isfile(os.path.join(path, name))]
        if not names:
            raise FormatError(f"{path}: neither {INDEX} nor {SINGLE} found")
        path = os.path.join(path, names[0])
    names = sorted(set(_index(path)["weight_map"].values())) if path.endswith(".json") else [os.path.basename(path)]
    files = {name: os.path.join(os.path.dirname(path), name) for name in names}
    for file in files.values():
        if not os.path.isfile(file):
            raise FormatError(f"{path}: file {file} not found")
    return files


def merge_checkpoint(
    base: Path,
    adapter: AdapterWeights,
    output: Path,
    *,
    subtract: bool = False,
    fan_in_fan_out: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> list[MergedTensor]:
    """Write a checkpoint with an adapter merged into its weights: ``W + s A B``, or for DoRA ``m V / ‖V‖``.

    Files are read and written a few megabytes at a time. The sum is computed in float32, or in float64 for float64 weights,
    and rounded to the nearest value of the base's dtype.

    Parameters
    ----------
    base : path
        As for `checkpoint_files`. The weight of the layer at ``path`` is the tensor ``<path>.weight``.
    adapter : AdapterWeights
    output : path
        A safetensors file if the base is a single file; otherwise a folder for the files and their index. Files appear
        under their names only once they are complete.
    subtract : bool, default False
        If True, undo a merge, ``W - s A B``. What the merge lost to rounding is not restored.
    fan_in_fan_out : bool, default False
        Whether weights are stored as (d_in, d_out), as in Conv1D of transformers, instead of (d_out, d_in).
    progress : callable, optional
        Called for each piece written, with the name of the tensor and the number of bytes.

    Returns
    -------
    list of MergedTensor
        The changed tensors.

    Raises
    ------
    FormatError
        If the base lacks the weight of a layer of the adapter, or if that weight has a different shape or does not have a
        floating-point dtype. The message names the file and the key. Nothing is written.
    ArgumentError
        If `output` is the base itself, or a folder although the base is a single file.
    NotSupportedError
        If a DoRA adapter is to be subtracted, or merged into weights stored as (d_in, d_out).
    """
    merge = _Merge(adapter, subtract, fan_in_fan_out)
    files = checkpoint_files(base)
    index = _index_path(base)
    target = os.fspath(output)
    outputs = {name: os.path.join(target, name) if index else target for name in files}
    for name, file in files.items():
        if os.path.exists(outputs[name]) and os.path.samefile(file, outputs[name]):
            raise ArgumentError(f"output must differ from the base, got {target}")
    if not index and os.path.isdir(target):
        raise ArgumentError(f"output must be a file because the base is a file, got the folder {target}")
    merged = _matched(files, merge, os.fspath(base))
    if index:
        os.makedirs(target, exist_ok=True)
    for name, file in files.items():
        with SafetensorsFile(file) as tensors:
            infos = {key: tensors.info(key) for key in tensors}
            content = partial(_content, merge, tensors, progress)
            stream_safetensors(outputs[name], infos, content, tensors.metadata)
    if index:
        with open(index, "rb") as original, atomic_file(os.path.join(target, os.path.basename(index))) as copy:
            copy.write(original.read())
    return merged


def verify_checkpoint(
    base: Path,
    adapter: AdapterWeights,
    output: Path,
    *,
    subtract: bool = False,
    fan_in_fan_out: bool = False,
) -> list[MergedTensor]:
    """Compare the output of `merge_checkpoint` with the sum in float64, and all unchanged tensors bitwise with the base.

    The parameters are those of `merge_checkpoint`.

    Returns
    -------
    list of MergedTensor
        The changed tensors with their errors, which should be at most about `precision`.

    Raises
    ------
    FormatError
        If a tensor is missing from the output, has a different dtype or shape, differs from the base although the adapter
        does not change it, or does not exist in the base.
    """
    merge = _Merge(adapter, subtract, fan_in_fan_out)
    index = _index_path(base)
    files = checkpoint_files(base)
    written = checkpoint_files(os.path.join(output, os.path.basename(index)) if index else output)
    if len(files) == 1 == len(written):
        written = dict(zip(files, written.values(), strict=True))
    verified: list[MergedTensor] = []
    for name, merged in _by_file(_matched(files, merge, os.fspath(base)), files).items():
        if name not in written:
            raise FormatError(f"{os.fspath(output)}: the file {name} is missing")
        with SafetensorsFile(files[name]) as old, SafetensorsFile(written[name]) as new:
            verified += _verified(merge, merged, old, new)
    return verified


@dataclass(frozen=True)
class _Merge:
    """The computation of merged weights."""

    adapter: AdapterWeights
    subtract: bool
    fan_in_fan_out: bool

    def __post_init__(self) -> None:
        if self.adapter.magnitudes and (self.subtract or self.fan_in_fan_out):
            raise NotSupportedError(
                "a DoRA adapter can be neither subtracted from weights nor merged into weights stored as (in, out)"
            )

    def path(self, key: str) -> str | None:
        """The path of the layer that changes a tensor, or None."""
        path = key.removesuffix(".weight")
        return path if path != key and path in self.adapter.layers else None

    def shape(self, path: str) -> tuple[int, int]:
        """The shape in which the weight of a layer is stored."""
        layer = self.adapter.layers[path]
        shape = layer.output_size, layer.input_size
        return (shape[1], shape[0]) if self.fan_in_fan_out else shape

    def rows(self, path: str, dtype: Any) -> Callable[[Array, int], Array]:
        """A function that computes merged rows, in the given dtype, from old rows and the index of the first."""
        layer = self.adapter.layers[path]
        A, B = layer.matrix_a.astype(dtype), layer.matrix_b.astype(dtype)
        left, right = (A, B) if self.fan_in_fan_out else (B.T, A.T)
        scaling = -layer.scaling if self.subtract else layer.scaling
        left, right = np.ascontiguousarray(scaling * left), np.ascontiguousarray(right)
        magnitude = self.adapter.magnitudes.get(path)

        def merged(old: Array, first: int) -> Array:
            new: Array = left[first : first + len(old)] @ right  # (rows, r) @ (r, columns) -> (rows, columns)
            new += old
            if magnitude is not None:
                norms = np.sqrt((new * new).sum(axis=1))
                new *= (magnitude[first : first + len(old)] / np.where(norms == 0, 1, norms))[:, None].astype(dtype)
            return new

        return merged


def _content(
    merge: _Merge, tensors: SafetensorsFile, progress: Callable[[str, int], None] | None, key: str
) -> Iterator[Array | Stored]:
    """The stored elements of an output tensor, window by window."""
    info, path = tensors.info(key), merge.path(key)
    windows: Iterator[Array | Stored] = _copied(tensors, key) if path is None else _changed(merge, tensors, key, path)
    for window in windows:
        yield window
        if progress:
            progress(key, window.nbytes)
    if progress and not info.size:
        progress(key, 0)


def _copied(tensors: SafetensorsFile, key: str) -> Iterator[Stored]:
    for start, stop in _windows(tensors.info(key).size, WINDOW):
        yield Stored(tensors, key, start, stop)


def _changed(merge: _Merge, tensors: SafetensorsFile, key: str, path: str) -> Iterator[Array]:
    info = tensors.info(key)
    rows, columns = info.shape
    dtype = np.float64 if info.dtype == "F64" else np.float32
    merged = merge.rows(path, dtype)
    step = max(1, min(PIECE, SMALL_PRODUCT // merge.adapter.layers[path].rank) // columns)

    for start, stop in _windows(rows, max(1, WINDOW // columns)):
        old = tensors.raw(key, start * columns, stop * columns).reshape(-1, columns)
        new = np.empty_like(old)
        for first, last in _windows(len(old), step):
            piece = decoded(old[first:last], info.dtype).astype(dtype, copy=False)
            new[first:last] = encoded(merged(piece, start + first), info.dtype)
        yield new


def _verified(
    merge: _Merge, merged: list[MergedTensor], old: SafetensorsFile, new: SafetensorsFile
) -> Iterator[MergedTensor]:
    """The merged tensors of a file with their errors; all other tensors must equal those of the base."""
    changed = {tensor.key: tensor for tensor in merged}
    for key in old:
        if key not in new or new.info(key) != old.info(key):
            raise FormatError(f"{new.path}: {key} is missing, or its dtype or shape differs from the base")
        if key in changed:
            yield replace(changed[key], error=_error(merge, old, new, key))
        elif not _equal(old, new, key):
            raise FormatError(f"{new.path}: {key} differs from the base, but the adapter does not change it")
    for key in new:
        if key not in old:
            raise FormatError(f"{new.path}: {key} is not in the base")


def _equal(old: SafetensorsFile, new: SafetensorsFile, key: str) -> bool:
    return all(
        np.array_equal(old.raw(key, start, stop), new.raw(key, start, stop))
        for start, stop in _windows(old.info(key).size, WINDOW)
    )


def _error(merge: _Merge, old: SafetensorsFile, new: SafetensorsFile, key: str) -> float:
    path, info = merge.path(key), old.info(key)
    assert path is not None
    rows, columns = info.shape
    merged = merge.rows(path, np.float64)
    largest = difference = 0.0
    for start, stop in _windows(rows, max(1, PIECE // columns)):
        pieces = [decoded(file.raw(key, start * columns, stop * columns), info.dtype) for file in (old, new)]
        before, after = (piece.reshape(-1, columns).astype(np.float64) for piece in pieces)
        expected = merged(before, start)
        for values in (before, expected):  # if the terms cancel, the rounding error is that of the terms
            largest = max(largest, float(np.abs(values[np.isfinite(values)]).max(initial=0)))
        wrong = ~((after == expected) | (np.isnan(after) & np.isnan(expected)))
        gaps = np.abs(after[wrong] - expected[wrong])
        difference = max(difference, float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0)))
    return difference / largest if largest else difference


def _windows(length: int, step: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges (start, stop), of at most `step` elements each."""
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _matched(files: Mapping[str, str], merge: _Merge, label: str) -> list[MergedTensor]:
    """The tensors that the adapter changes, after validation."""
    merged = []
    for name, file in files.items():
        with SafetensorsFile(file) as tensors:
            for key in tensors:
                path, info = merge.path(key), tensors.info(key)
                if path is None:
                    continue
                if info.shape != merge.shape(path):
                    raise FormatError(
                        f"{file}: {key} must have shape {merge.shape(path)} for the adapter, got {info.shape}"
                    )
                if info.dtype not in PRECISIONS:
                    raise FormatError(f"{file}: dtype of {key} must be one of {', '.join(PRECISIONS)}, got {info.dtype}")
                merged.append(MergedTensor(key, name, info.dtype))
    found = {merge.path(tensor.key) for tensor in merged}
    missing = [path for path in merge.adapter.layers if path not in found]
    if missing:
        raise FormatError(f"{label}: missing tensor '{missing[0]}.weight', which the adapter changes")
    return merged


def _by_file(merged: list[MergedTensor], files: Mapping[str, str]) -> dict[str, list[MergedTensor]]:
    return {name: [tensor for tensor in merged if tensor.file == name] for name in files}


def _index_path(base: Path) -> str | None:
    path = os.path.join(base, INDEX) if os.path.isdir(base) else os.fspath(base)
    return path if path.endswith(".json") and os.path.isfile(path) else None


def _index(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as text:
            index = json.load(text)
        names = index["weight_map"].values()
        if not all(isinstance(name, str) and re.fullmatch(r"[^/\\:\0]+\.safetensors", name) for name in names):
            raise ValueError("weight_map must name safetensors files in the same folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: not an index of safetensors files: {error!r}") from error
    return dict(index)
