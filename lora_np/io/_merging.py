"""What a merge does to each tensor of a checkpoint."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ._checkpoint import Checkpoint
from ._json import read_json
from ._peft_tensors import may_be_new
from ._prefixes import with_prefix_of
from ._weight_names import path_of_bias, path_of_weight, weight_of
from .safetensors import TensorInfo, stored_elements

PRECISIONS = {"F64": 2.0**-53, "F32": 2.0**-24, "BF16": 2.0**-8, "F16": 2.0**-11}
HEADS = ("lm_head", "embed_out")
"""The names of output heads that may be tied to an embedding."""

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")


class Change(Protocol):
    """Computes new rows from old ones, which keep their values; `first` is the index of the first row."""

    def __call__(self, old: Array, first: int, out: Array | None = None) -> Array:
        """The new rows, in `out` if that is given."""


class Step(NamedTuple):
    """What becomes of one tensor."""

    key: str
    file: str
    """The name of the output file."""
    info: TensorInfo
    """The dtype and shape of the result."""
    change: str
    source: str | None
    """The tensor of the base that is changed; None if the adapter has the whole tensor."""

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The shape as a matrix; a vector is a column."""
        shape = self.info.shape or (1,)
        return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Merge:
    """The computation of merged tensors: a whole tensor or the base's, then rows that replace others, then a sum."""

    adapter: AdapterWeights
    subtract: bool
    fan_in_fan_out: bool
    untie: bool

    def __post_init__(self) -> None:
        if self.adapter.magnitudes and (self.subtract or self.fan_in_fan_out):
            raise NotSupportedError(
                "a DoRA adapter can be neither subtracted from weights nor merged into weights stored as (in, out)"
            )
        for key in [*self.adapter.whole, *self.adapter.rows] if self.subtract else ():
            raise NotSupportedError(
                f"{key} cannot be subtracted: the adapter replaces it, and does not know what it was before; drop={key!r} "
                "would leave it as it is"
            )

    def on(self, old: Checkpoint) -> Self:
        """The merge with the names of a base, which may have another prefix."""
        return replace(self, adapter=with_prefix_of(self.adapter, old))

    # ---------------------------------------------------------------- which tensors

    def plan(self, old: Checkpoint) -> dict[str, Step]:
        """The tensors that change, in the order of the checkpoint, then the new ones; all checked."""
        adapter = self.adapter
        changes: dict[str, list[str]] = {}
        for change, keys in (
            ("replaced", adapter.whole),
            ("rows", adapter.rows),
            ("low-rank", [weight_of(path) for path in adapter.layers]),
            ("bias", [f"{path}.bias" for path in adapter.biases]),
        ):
            for key in keys:
                changes.setdefault(key, []).append(change)
        ordered = [*(key for key in old if key in changes), *(key for key in changes if key not in old)]
        steps = {key: self._step(old, key, changes[key]) for key in ordered}
        if (table := self._shared_table(old)) and HEAD not in steps:
            steps[HEAD] = Step(HEAD, old.file_of(HEAD), old[table].info(table), "untied", table)
        return steps

    def _shared_table(self, old: Checkpoint) -> str | None:
        """The embedding that the adapter changes although the base uses it as its output head, which stays as it was."""
        whole = self.adapter.whole
        changed = [*whole, *(f"{path}.weight" for path in self.adapter.embeddings)]
        table = next((key for key in changed if key == _tied(old, HEAD)), None)
        if table is None or HEAD in whole or not _is_causal(old, self.adapter):
            return None
        if not self.untie:
            raise FormatError(
                f"{old.path}: the base uses {table} as its output head too, which the adapter was not trained to change; "
                "untie=True writes a separate head"
            )
        return table

    def _step(self, old: Checkpoint, key: str, changes: list[str]) -> Step:
        whole = self.adapter.whole.get(key)
        source = None if whole is not None else self._source(old, key)
        if key in old:
            info = old[key].info(key)
            where = f"{old[key].path}: {key}"
        elif source is not None:
            info, where = old[source].info(source), f"{old.path}: {key}"
        else:
            assert whole is not None
            self._check_new(old, key)
            info, where = TensorInfo(stored_elements(whole, key)[1], whole.shape), f"{old.path}: {key}"
            changes = ["added", *changes[1:]]
        if whole is not None:
            if (whole.dtype.kind == "f") != (info.dtype in PRECISIONS) or whole.ndim != len(info.shape):
                given = f"{whole.dtype} of shape {whole.shape}"
                raise FormatError(f"{where} is {info.dtype} of shape {info.shape}, but the adapter replaces it by {given}")
            info = TensorInfo(info.dtype, whole.shape)
        self._check_shape(key, info, where)
        return Step(key, old.file_of(key), info, " + ".join(changes), source)

    def _source(self, old: Checkpoint, key: str) -> str:
        """The tensor of the base with the old values: the one of this name, or the embedding that serves as the head."""
        if key in old:
            return key
        tied = _tied(old, key)
        if tied and self.untie:
            return tied
        self._check_not_tied(old, key)
        raise FormatError(f"{old.path}: missing tensor {key!r}, which the adapter changes")

    def _check_not_tied(self, old: Checkpoint, key: str) -> None:
        tied = _tied(old, key)
        if tied and not self.untie:
            raise FormatError(
                f"{old.path}: the base ties {key} to {tied}, and has no separate head that the adapter could change; "
                "untie=True writes one"
            )

    def _check_new(self, old: Checkpoint, key: str) -> None:
        """Raise FormatError for a new tensor that is not a head."""
        whole, tied = self.adapter.whole, _tied(old, key)
        if (
            tied is None or tied not in whole or not np.array_equal(whole[tied], whole[key])
        ):  # a tied pair, of which both are in the file
            self._check_not_tied(old, key)
        if not (may_be_new(self.adapter.config, key) or tied):
            raise FormatError(
                f"{old.path}: missing tensor {key!r}, which the adapter replaces, and which modules_to_save does not name; "
                f"drop={key!r} would leave it out"
            )

    def _check_shape(self, key: str, info: TensorInfo, where: str) -> None:
        """Raise FormatError if a change does not fit the tensor."""
        adapter, shape = self.adapter, info.shape
        if (path := path_of_weight(key)) in adapter.layers:
            shape = self.shape(path)
        elif (path := path_of_bias(key)) in adapter.biases:
            shape = adapter.biases[path].shape
        elif key not in adapter.rows:
            return
        if info.shape != shape:
            raise FormatError(f"{where} must have shape {shape} for the adapter, got {info.shape}")
        if info.dtype not in PRECISIONS:
            raise FormatError(f"{where}: dtype must be one of {', '.join(PRECISIONS)}, got {info.dtype}")
        if rows := adapter.rows.get(key):
            wanted = f"row {rows.indices.max(initial=0)} of {rows.values.shape[1]} elements"
            if shape[1:] != rows.values.shape[1:] or rows.indices.max(initial=0) >= shape[0]:
                raise FormatError(f"{where} has no {wanted} that the adapter could replace: its shape is {shape}")

    def shape(self, path: str) -> tuple[int, ...]:
        """The shape in which the weight of a layer is stored."""
        layer = self.adapter.layers[path]
        if kernel := self.adapter.kernels.get(path):
            return layer.output_size, layer.input_size // math.prod(kernel), *kernel
        shape = layer.output_size, layer.input_size
        return (shape[1], shape[0]) if self._is_transposed(path) else shape

    def _is_transposed(self, path: str) -> bool:
        is_head = path.rpartition(".")[2] in HEADS  # never Conv1D
        return (self.fan_in_fan_out and path not in self.adapter.kernels and not is_head) or path in self.adapter.embeddings

    # ---------------------------------------------------------------- how they change

    def rank(self, key: str) -> int:
        """The rank of the change of a tensor; 0 if it has none."""
        path = path_of_weight(key)
        return self.adapter.layers[path].rank if path in self.adapter.layers else 0

    def before(self, old: Checkpoint, step: Step, start: int, stop: int) -> tuple[Array, str]:
        """The rows that are changed, as they are stored, and their dtype."""
        columns = step.rows_and_columns[1]
        if step.source is None:
            elements, dtype = stored_elements(self.adapter.whole[step.key])
            return elements.reshape(-1)[start * columns : stop * columns].reshape(-1, columns), dtype
        file = old[step.source]
        raw = file.raw(step.source, start * columns, stop * columns)
        return raw.reshape(-1, columns), file.info(step.source).dtype

    def rows(self, key: str, dtype: Any) -> Change | None:
        """A function that computes new rows, in the given dtype; None if they stay as they are in the whole tensor."""
        path, changes = path_of_weight(key), []
        if key in self.adapter.rows:
            changes.append(self._replaced(key, dtype))
        if path in self.adapter.layers:
            changes.append(self._merged(path, dtype))
        if (path := path_of_bias(key)) in self.adapter.biases:
            changes.append(self._with_bias(path, dtype))
        if len(changes) < 2:
            return changes[0] if changes else None
        first, second = changes
        return lambda old, start, out=None: second(first(old, start), start, out)

    def _merged(self, path: str, dtype: Any) -> Change:
        """``W + s A B``, or ``m V / ‖V‖``."""
        layer = self.adapter.layers[path]
        A, B = layer.matrix_a.astype(dtype), layer.matrix_b.astype(dtype)
        left, right = (A, B) if self._is_transposed(path) else (B.T, A.T)
        left, right = np.ascontiguousarray(self._signed(layer.scaling) * left), np.ascontiguousarray(right)
        magnitude = self.adapter.magnitudes.get(path)

        def merged(old: Array, first: int, out: Array | None = None) -> Array:
            # (rows, r) @ (r, columns) -> (rows, columns)
            new: Array = np.matmul(left[first : first + len(old)], right, out=out)
            new += old
            if magnitude is not None:
                norms = np.sqrt((new * new).sum(axis=1))
                new *= (magnitude[first : first + len(old)] / np.where(norms == 0, 1, norms))[:, None].astype(dtype)
            return new

        return merged

    def _with_bias(self, path: str, dtype: Any) -> Change:
        """``b + s c``."""
        change = self._signed(self.adapter.layers[path].scaling) * self.adapter.biases[path].astype(dtype)[:, None]
        return lambda old, first, out=None: np.add(old, change[first : first + len(old)].astype(dtype), out=out)

    def _replaced(self, key: str, dtype: Any) -> Change:
        indices, values = self.adapter.rows[key]

        def replaced(old: Array, first: int, out: Array | None = None) -> Array:
            inside = (indices >= first) & (indices < first + len(old))
            new = np.empty_like(old) if out is None else out
            new[...] = old
            new[indices[inside] - first] = values[inside].astype(dtype)
            return new

        return replaced

    def _signed(self, scaling: float) -> float:
        return -scaling if self.subtract else scaling


def _is_causal(old: Checkpoint, adapter: AdapterWeights) -> bool:
    """Whether the base is a language model, so that it must have an output head."""
    config = os.path.join(os.path.dirname(next(iter(old.files.values())).path), "config.json")
    entries = read_json(config) if os.path.isfile(config) else {}
    names = entries.get("architectures") if isinstance(entries, dict) else None
    if isinstance(names, list):
        return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return adapter.config.get("task_type") == "CAUSAL_LM"


def _tied(old: Checkpoint, key: str) -> str | None:
    """The embedding that serves as the output head of the base, if the head is not in the checkpoint."""
    if key in old or key.removesuffix(".weight").rpartition(".")[2] not in HEADS:
        return None
    return next((other for other in old if other.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS), None)
