"""ONNX files: the computation graph of a layer, for any runtime.

A file is written from `Layer.export_computation_graph`: each NumPy function in the graph becomes an ONNX operator, and
functions without one, such as some activations, are decomposed into functions that have one. Requires the package onnx
(``pip install "lora_np[onnx]"``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from .._archive import atomic_file
from .._typing import Array
from .._validation import integer, one_of
from ..base import Layer
from ..errors import ArgumentError, ArgumentOutOfRangeError, NotSupportedError
from ._onnx_adapters import adapter_axes, metadata
from ._onnx_operators import in_operators
from ._onnx_rows import with_row_inputs
from ._onnx_writer import IR_VERSIONS, Writer

OPSET = 21
"""The default opset, from 2024."""

ADAPTERS = ("merged", "inputs", "required", "mixed")

LARGEST = 2**31 - 1
"""The maximum size of a protocol buffer in bytes."""


def save_onnx(
    layer: Layer,
    path: str | os.PathLike[str],
    *,
    adapters: str = "merged",
    leading: Sequence[str] = ("batch",),
    opset: int = OPSET,
) -> None:
    """Write a layer as an ONNX file; see `to_onnx`.

    Parameters
    ----------
    layer : Layer
    path : path
        An existing file is replaced only once the new one is complete.
    adapters, leading, opset
        As for `to_onnx`.

    Raises
    ------
    NotSupportedError
        As for `to_onnx`; also if the file would have 2 GiB or more. Nothing is written.
    """
    model = to_onnx(layer, adapters=adapters, leading=leading, opset=opset)
    if model.ByteSize() > LARGEST:
        raise NotSupportedError(
            f"an ONNX file must have at most {LARGEST} bytes, but {layer.layer_name} needs {model.ByteSize()}"
        )
    with atomic_file(path) as file:
        file.write(model.SerializeToString())


def to_onnx(layer: Layer, *, adapters: str = "merged", leading: Sequence[str] = ("batch",), opset: int = OPSET) -> Any:
    """Convert a layer to an ``onnx.ModelProto`` that computes what `predict` computes, in the layer's dtype.

    Parameters
    ----------
    layer : Layer
        The layer or model. DyLoRA adapters and tasks are exported at their deployment rank, MultiLoRA adapters with their
        current task, unless `adapters` is ``"mixed"``.
    adapters : {"merged", "inputs", "required", "mixed"}
        ``"merged"``: constants are folded, so adapters of linear bases are merged. ``"inputs"``: the arrays of adapters are
        initialisers *and* inputs. Callers that omit them get the adapters of this layer; callers that pass all of them run
        other adapters of the same layers, of any rank. ``"required"``: the arrays are inputs only, for runtimes that ignore
        inputs that have an initialiser, such as onnxruntime-node. ``"mixed"``: mixed batches, with the task and the rank of
        each row as inputs; other adapters are merged.
    leading : sequence of str, default ("batch",)
        The names of the leading axes: ``("batch",)`` for rows, ``("batch", "time")`` for sequences of rows, ``()`` for a
        single vector. Their sizes are free.
    opset : int, default 21
        The version of the operators, in 18..21. Older runtimes need older versions. From 20 on, GELU in float32 is one
        operator.

    Returns
    -------
    onnx.ModelProto
        A model with IR version 10 for opset 21, 9 for 20 and 19, and 8 for 18.

    Raises
    ------
    ArgumentError
        If `adapters` is not one of the values above, `leading` is not a sequence of distinct names, or `opset` is out of
        range; also if `leading` is empty for mixed batches.
    NotSupportedError
        If the package onnx is missing, or a layer inside cannot be written as ONNX; the message names the layer. Also if
        the model has no tasks or ranks for mixed batches, or if its adapters have different tasks.

    Notes
    -----
    The input is named ``input``, the output ``output``, and arrays have their names from ``named_parameters(frozen=True)``.
    The scaling s of a branch is a scalar: ``lora.scaling`` next to ``lora.matrix_a``, or ``tasks.<name>.scaling``. The free
    axis of a branch is named ``lora.rank``. Operators are named after the layer that they belong to, such as
    ``encoder.0.MatMul``, and so is a merged weight: ``encoder.0.matrix``, with shape (d_in, d_out). A transposed array is
    named ``encoder.0.weight.T``.

    In mixed batches, the input ``task`` holds the index of the task for each entry of the first axis: the position in the
    list ``tasks`` of the metadata, or -1 for the base alone. The factors of all tasks are stacked, and gathered by index.
    The input ``rank`` holds the rank in all DyLoRA adapters: any rank up to the largest, also inactive ones, or 0 for the
    base alone. Both are int64. Each is an input only if the model has adapters of that kind. Tasks with ranks are used at
    their deployment ranks.
    """
    one_of("adapters", adapters, ADAPTERS)
    axes = _axis_names(leading)
    if integer("opset", opset) not in IR_VERSIONS:
        raise ArgumentOutOfRangeError(f"opset must be in {min(IR_VERSIONS)}..{max(IR_VERSIONS)}, got {opset}")
    if adapters == "mixed" and not axes:
        raise ArgumentError("leading must name at least the axis of the rows if adapters='mixed', got ()")
    onnx = _package()
    graph = layer.export_computation_graph([])
    if adapters == "mixed":
        graph = with_row_inputs(layer, graph)
    kept = adapter_axes(layer) if adapters in ("inputs", "required") else {}
    try:
        writer = Writer(onnx, opset, axes, kept, adapters == "inputs")
        return writer.model(in_operators(graph, kept, opset), type(layer).__name__, metadata(layer, adapters))
    except NotSupportedError as error:
        for child in layer.children().values():
            to_onnx(child, opset=opset)  # if the reason lies in a child, this error names the child
        raise NotSupportedError(
            f"{layer.layer_name} ({type(layer).__name__}) cannot be written as ONNX: {error}"
        ) from error


def adapter_inputs(layer: Layer) -> dict[str, Array]:
    """The inputs that make a file with ``adapters="inputs"`` or ``"required"`` compute with the adapters of this layer.

    Parameters
    ----------
    layer : Layer
        The model of the file, with adapters of the same kinds on the same layers, of any rank.

    Returns
    -------
    dict of str to array
        The arrays, keyed by the names of the file's inputs; scalings have shape (). DyLoRA adapters are exported at their
        deployment rank, MultiLoRA adapters with their current task.
    """
    kept = adapter_axes(layer)
    leaves = in_operators(layer.export_computation_graph([]), kept, OPSET).nodes()
    return {node.name: np.array(node.value, layer.dtype) for node in leaves if node.name in kept}


def _package() -> Any:
    try:
        return import_module("onnx")
    except ImportError as error:
        raise NotSupportedError('writing ONNX files requires the package onnx: pip install "lora_np[onnx]"') from error


def _axis_names(leading: Any) -> tuple[str, ...]:
    names = () if isinstance(leading, str) else tuple(leading)
    if (
        isinstance(leading, str)
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) < len(names)
    ):
        raise ArgumentError(f"leading must be a sequence of distinct axis names, got {leading!r}")
    return names
