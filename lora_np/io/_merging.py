"""What a merge does to each tensor of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ._changes import (
    Change,
    added_column,
    added_product,
    added_products,
    in_turn,
    replaced_rows,
    scaled_columns,
    scaled_rows,
)
from ._checkpoint import Checkpoint
from ._experts import expert_paths, placed_experts
from ._peft_tensors import may_be_new
from ._pieces import rows_within, windows
from ._prefixes import changed_tensors, with_prefix_of
from ._tied_heads import HEAD, HEADS, is_causal, tied_table
from ._weight_names import path_of_bias, path_of_weight
from .safetensors import TensorInfo, decoded, stored_elements

WINDOW = 1 << 21  # elements mapped and computed at a time
PRECISIONS = {"F64": 2.0**-53, "F32": 2.0**-24, "BF16": 2.0**-8, "F16": 2.0**-11}


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
    has_experts: bool = False

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The shape as a matrix; a vector is a column, and experts stand one upon the other."""
        shape = self.info.shape or (1,)
        if self.has_experts:
            return math.prod(shape[:-1]), shape[-1]
        return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Merge:
    """The computation of merged tensors: a whole tensor or the base's, then rows that replace others, then a sum."""

    adapter: AdapterWeights
    subtract: bool
    fan_in_fan_out: bool
    untie: bool
    transposed_experts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.adapter.magnitudes and self.subtract:
            raise NotSupportedError("a DoRA adapter cannot be subtracted from weights: the norms before it are not known")
        for key in [*self.adapter.whole, *self.adapter.rows] if self.subtract else ():
            raise NotSupportedError(
                f"{key} cannot be subtracted: the adapter replaces it, and does not know what it was before; drop={key!r} "
                "would leave it as it is"
            )

    def on(self, old: Checkpoint) -> Self:
        """The merge with the names of a base, which may have another prefix."""
        try:
            adapter, transposed = placed_experts(with_prefix_of(self.adapter, old), old)
        except (FormatError, NotSupportedError) as error:
            raise type(error)(f"{old.path}: {error}") from error
        return replace(self, adapter=adapter, transposed_experts=transposed)

    # ---------------------------------------------------------------- which tensors

    def plan(self, old: Checkpoint) -> dict[str, Step]:
        """The tensors that change, in the order of the checkpoint, then the new ones; all checked."""
        adapter = self.adapter
        changes: dict[str, list[str]] = {}
        for change, keys in (
            ("replaced", adapter.whole),
            ("rows", adapter.rows),
            ("low-rank", changed_tensors(adapter)),
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
        table = next((key for key in changed if key == tied_table(old, HEAD)), None)
        if table is None or HEAD in whole or not is_causal(old, self.adapter):
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
        return Step(key, old.file_of(key), info, " + ".join(changes), source, key in self.adapter.experts)

    def _source(self, old: Checkpoint, key: str) -> str:
        """The tensor of the base with the old values: the one of this name, or the embedding that serves as the head."""
        if key in old:
            return key
        tied = tied_table(old, key)
        if tied and self.untie:
            return tied
        self._check_not_tied(old, key)
        raise FormatError(f"{old.path}: missing tensor {key!r}, which the adapter changes")

    def _check_not_tied(self, old: Checkpoint, key: str) -> None:
        tied = tied_table(old, key)
        if tied and not self.untie:
            raise FormatError(
                f"{old.path}: the base ties {key} to {tied}, and has no separate head that the adapter could change; "
                "untie=True writes one"
            )

    def _check_new(self, old: Checkpoint, key: str) -> None:
        """Raise FormatError for a new tensor that is not a head."""
        whole, tied = self.adapter.whole, tied_table(old, key)
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
        elif key not in adapter.rows and key not in adapter.experts:
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
        if (name := path.rpartition(".")[0]) in self.adapter.experts:
            return name in self.transposed_experts
        is_head = path.rpartition(".")[2] in HEADS  # never Conv1D
        return (self.fan_in_fan_out and path not in self.adapter.kernels and not is_head) or path in self.adapter.embeddings

    # ---------------------------------------------------------------- how they change

    def rank(self, key: str) -> int:
        """The rank of the change of a tensor; 0 if it has none."""
        path = f"{key}.0" if key in self.adapter.experts else path_of_weight(key)
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

    def rows(self, old: Checkpoint, step: Step, dtype: Any) -> Change | None:
        """A function that computes new rows, in the given dtype; None if they stay as they are in the whole tensor."""
        key, path, changes = step.key, path_of_weight(step.key), []
        if key in self.adapter.rows:
            changes.append(replaced_rows(self.adapter.rows[key], dtype))
        if key in self.adapter.experts:
            pairs = [self._product(expert, dtype) for expert in expert_paths(self.adapter, key)]
            changes.append(added_products(pairs))
        if path in self.adapter.layers:
            changes.append(added_product(*self._product(path, dtype)))
        if (owner := path_of_bias(key)) in self.adapter.biases:
            scaling = self._signed(self.adapter.layers[owner].scaling)
            changes.append(added_column((scaling * self.adapter.biases[owner]).astype(dtype)))
        change = in_turn(changes)
        if change is None or path not in self.adapter.magnitudes:
            return change
        magnitude = self.adapter.magnitudes[path]
        if self._is_transposed(path) != (path in self.adapter.by_input):
            return scaled_columns(change, magnitude, self._windows(old, step, dtype), step.rows_and_columns[1])
        return scaled_rows(change, magnitude)

    def _product(self, path: str, dtype: Any) -> tuple[Array, Array]:
        """The factors whose product is the change ``s A B`` of a weight as it is stored."""
        layer = self.adapter.layers[path]
        A, B = layer.matrix_a.astype(dtype), layer.matrix_b.astype(dtype)
        left, right = (A, B) if self._is_transposed(path) else (B.T, A.T)
        return np.ascontiguousarray(self._signed(layer.scaling) * left), np.ascontiguousarray(right)

    def _windows(self, old: Checkpoint, step: Step, dtype: Any) -> Iterator[tuple[int, Array]]:
        """The old rows, some at a time, with the number of the first."""
        rows, columns = step.rows_and_columns
        for start, stop in windows(rows, rows_within(WINDOW, columns)):
            stored, name = self.before(old, step, start, stop)
            yield start, decoded(stored, name).astype(dtype)

    def _signed(self, scaling: float) -> float:
        return -scaling if self.subtract else scaling
