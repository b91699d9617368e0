"""Merge an adapter into a checkpoint of safetensors files, a few megabytes at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np

from .._archive import atomic_file, atomic_folder
from .._typing import Array
from .._validation import positive_int
from ..errors import ArgumentError, FormatError
from ..factors.weights import AdapterWeights
from ._checkpoint import INDEX as INDEX
from ._checkpoint import SINGLE as SINGLE
from ._checkpoint import Checkpoint, index_path, read_index
from ._checkpoint import checkpoint_files as checkpoint_files
from ._merging import PRECISIONS as PRECISIONS
from ._merging import WINDOW, Merge, Step
from ._pieces import PIECE, Conversion, Workers, rows_within, usable_threads, windows
from ._verification import errors
from .safetensors import DTYPES, SafetensorsFile, Stored, decoded, encoded, stream_safetensors

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
    """Set by `verify_checkpoint`: the largest deviation from the result in float64, relative to the largest element of the
    result or of the base."""
    change: str = "low-rank"
    """What happens to it: ``low-rank``, ``bias``, ``rows``, ``replaced``, ``added`` or ``untied``; a sum if several do."""
    rank: int = 0
    """The rank of a low-rank change."""

    @property
    def precision(self) -> float:
        """The largest relative error of rounding to the dtype: half a unit in the last place; 0 if nothing is rounded."""
        return PRECISIONS.get(self.dtype, 0.0)


def merge_checkpoint(
    base: Path,
    adapter: AdapterWeights,
    output: Path,
    *,
    subtract: bool = False,
    fan_in_fan_out: bool = False,
    untie: bool = False,
    threads: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[MergedTensor]:
    """Write a checkpoint with an adapter merged into its weights: ``W + s A B``, or for DoRA ``m V / ‖V‖``.

    Whole tensors and rows of the adapter replace those of the base; a trained head that the base lacks is added. Every
    tensor of the adapter is used. Files are read and written a few megabytes at a time. The sum is computed in float32, or
    in float64 for float64 weights, and rounded to the nearest value of the base's dtype.

    Parameters
    ----------
    base : path
        As for `checkpoint_files`. The weight of the layer at ``path`` is the tensor ``<path>.weight``; all names may have a
        prefix more, or one less, such as ``bert.``.
    adapter : AdapterWeights
    output : path
        A safetensors file if the base is a single file; otherwise a folder for the files and their index. Files appear
        under their names only once they are complete.
    subtract : bool, default False
        If True, undo a merge, ``W - s A B``. What the merge lost to rounding is not restored.
    fan_in_fan_out : bool, default False
        Whether weights are stored as (d_in, d_out), as in Conv1D of transformers, instead of (d_out, d_in).
    untie : bool, default False
        If the base has no output head because it uses its embedding as one: whether to write a separate head when the
        adapter changes it.
    threads : int, optional
        The number of threads that compute; the result does not depend on it. Defaults to the number of processors, up to 4.
    progress : callable, optional
        Called for each piece written, with the name of the tensor and the number of bytes.

    Returns
    -------
    list of MergedTensor
        The changed tensors.

    Raises
    ------
    FormatError
        If the base lacks a tensor that the adapter changes, or if it has a different shape or does not have a
        floating-point dtype. The message names the file and the key. Nothing is written.
    ArgumentError
        If `output` is the base itself, or a folder although the base is a single file.
    NotSupportedError
        If a DoRA adapter is to be subtracted, or an adapter that replaces tensors; or if the shapes of the base do not tell
        how it stores the experts of the adapter.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import merge_checkpoint, save_safetensors
    >>> from lora_np.io.merge import verify_checkpoint
    >>> from lora_np.io.safetensors import load_safetensors
    >>> folder = tempfile.mkdtemp()
    >>> base, merged = os.path.join(folder, "base.safetensors"), os.path.join(folder, "merged.safetensors")
    >>> save_safetensors(base, {"up.weight": np.zeros((2, 3))})
    >>> update = LoRALayer.from_factors(np.ones((3, 1)), np.array([[1.0, 2.0]]))
    >>> adapter = AdapterWeights({"up": update})
    >>> [tensor.key for tensor in merge_checkpoint(base, adapter, merged)]
    ['up.weight']
    >>> load_safetensors(merged)["up.weight"]
    array([[1., 1., 1.],
           [2., 2., 2.]])
    >>> [tensor.error for tensor in verify_checkpoint(base, adapter, merged)]
    [0.0]
    """
    merge = Merge(adapter, subtract, fan_in_fan_out, untie)
    count = usable_threads() if threads is None else positive_int("threads", threads)
    index, target = index_path(base), os.fspath(output)
    with Checkpoint(base) as old, Workers(count) as workers:
        for name, tensors in old.files.items():
            output_file = os.path.join(target, name) if index else target
            if os.path.exists(output_file) and os.path.samefile(tensors.path, output_file):
                raise ArgumentError(f"output must differ from the base, got {target}")
        if not index and os.path.isdir(target):
            raise ArgumentError(f"output must be a file because the base is a file, got the folder {target}")
        merge = merge.on(old)
        planned = merge.plan(old)
        content = partial(_content, merge, old, planned, progress, workers)
        with atomic_folder(target) if index else nullcontext(target) as place:
            for name, tensors in old.files.items():
                infos = {key: tensors.info(key) for key in tensors}
                infos |= {key: step.info for key, step in planned.items() if step.file == name}
                stream_safetensors(os.path.join(place, name) if index else place, infos, content, tensors.metadata)
            if index:
                with atomic_file(os.path.join(place, os.path.basename(index))) as copy:
                    copy.write(_new_index(index, old, planned))
    return [_report(merge, step) for step in planned.values()]


def verify_checkpoint(
    base: Path,
    adapter: AdapterWeights,
    output: Path,
    *,
    subtract: bool = False,
    fan_in_fan_out: bool = False,
    untie: bool = False,
) -> list[MergedTensor]:
    """Compare the output of `merge_checkpoint` with the result in float64, and all unchanged tensors bitwise with the base.

    The parameters are those of `merge_checkpoint`.

    Returns
    -------
    list of MergedTensor
        The changed tensors with their errors, which should be at most about `precision`.

    Raises
    ------
    FormatError
        If a tensor is missing from the output, has a different dtype or shape, differs from the base although the adapter
        does not change it, or does not exist in the base or the adapter; or if the index of the output does not name it.
    """
    merge = Merge(adapter, subtract, fan_in_fan_out, untie)
    index = index_path(base)
    written = os.path.join(output, os.path.basename(index)) if index else output
    verified: list[MergedTensor] = []
    with Checkpoint(base) as old, Checkpoint(written) as new:
        merge = merge.on(old)
        planned = merge.plan(old)
        files = new.files if len(old.files) > 1 else dict(zip(old.files, new.files.values(), strict=False))
        for name in old.files:
            if name not in files:
                raise FormatError(f"{os.fspath(output)}: the file {name} is missing")
            steps = {key: step for key, step in planned.items() if step.file == name}
            found = errors(merge, steps, old, old.files[name], files[name])
            verified += [replace(_report(merge, steps[key]), error=error) for key, error in found]
    if index:
        listed = read_index(os.fspath(written))["weight_map"]
        for key, step in planned.items():
            if listed.get(key) != step.file:
                raise FormatError(f"{os.fspath(written)}: does not name the file of {key}, {step.file}")
    return verified


def _report(merge: Merge, step: Step) -> MergedTensor:
    return MergedTensor(step.key, step.file, step.info.dtype, change=step.change, rank=merge.rank(step.key))


def _content(
    merge: Merge,
    old: Checkpoint,
    planned: Mapping[str, Step],
    progress: Callable[[str, int], None] | None,
    workers: Workers,
    key: str,
) -> Iterator[Array | Stored]:
    """The stored elements of an output tensor, window by window."""
    window: Array | Stored | None = None
    windows: Iterator[Array | Stored] = (
        _changed(merge, old, planned[key], workers) if key in planned else _copied(old[key], key)
    )
    for window in windows:
        yield window
        if progress:
            progress(key, window.nbytes)
    if progress and window is None:
        progress(key, 0)


def _copied(tensors: SafetensorsFile, key: str) -> Iterator[Stored]:
    for start, stop in windows(tensors.info(key).size, WINDOW):
        yield Stored(tensors, key, start, stop)


def _changed(merge: Merge, old: Checkpoint, step: Step, workers: Workers) -> Iterator[Array]:
    rows, columns = step.rows_and_columns
    dtype = np.float64 if step.info.dtype == "F64" else np.float32
    change = merge.rows(old, step, dtype)
    count = rows_within(min(PIECE, SMALL_PRODUCT // max(1, merge.rank(step.key))), columns)
    for start, stop in windows(rows, rows_within(WINDOW, columns)):
        before, stored = merge.before(old, step, start, stop)
        if change is None:
            yield _converted(before, stored, step.info.dtype)
            continue
        new = workers.output(before.shape, DTYPES[step.info.dtype])
        workers.compute(before, new, start, count, Conversion(stored, change, step.info.dtype), dtype)
        yield new


@np.errstate(invalid="ignore", over="ignore")  # signalling NaNs; numbers that the dtype does not have become infinite
def _converted(elements: Array, dtype: str, other: str) -> Array:
    """The stored elements in another dtype; in the same, to the bit."""
    return elements if dtype == other else encoded(decoded(elements, dtype), other)


def _new_index(path: str, old: Checkpoint, planned: Mapping[str, Step]) -> bytes:
    """The content of an index that also names the tensors that the base lacks; otherwise, that of the base's index."""
    new = {key: step for key, step in planned.items() if key not in old or step.info != old[key].info(key)}
    if not new:
        with open(path, "rb") as original:
            return original.read()
    index = read_index(path)
    index["weight_map"] |= {key: step.file for key, step in new.items()}
    size = index.get("metadata", {}).get("total_size")
    if isinstance(size, int):
        more = sum(step.info.nbytes - (old[key].info(key).nbytes if key in old else 0) for key, step in new.items())
        index["metadata"]["total_size"] = size + more
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
