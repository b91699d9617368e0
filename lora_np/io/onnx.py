"""ONNX files: the computation graph of a layer, for any runtime.

A file is written from `Layer.export_computation_graph`: each NumPy function in the graph becomes an ONNX operator, and
functions without one, such as some activations, are decomposed into functions that have one. Requires the package onnx
(``pip install "lora_np[onnx]"``).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from .._archive import atomic_file
from .._typing import Array
from .._validation import one_of
from ..adapters.base import LoRAAdapterBase
from ..base import Layer, prefixed
from ..errors import ArgumentError, NotSupportedError
from ..functions.activations import relu, sigmoid, softmax
from ..graph import ComputationNode, optimise
from ..graph.node import depends_on_input, getitem, ordered
from ..graph.recording import record_function
from ..layers.low_rank import LowRankLayer

OPSET, IR_VERSION = 21, 10
"""Versions from 2024; some runtimes in use reject newer ones."""

ADAPTERS = ("merged", "inputs", "required")
RANK_AXES = {"matrix_a": 1, "matrix_b": 0, "projection_a": 1, "projection_b": 0, "vector_d": 0}
"""The axis of each array along which the components of the adapter lie."""

LARGEST = 2**31 - 1
"""The maximum size of a protocol buffer in bytes."""

OPERATORS: dict[Callable[..., Any], str] = {
    np.matmul: "MatMul",
    np.add: "Add",
    np.subtract: "Sub",
    np.multiply: "Mul",
    np.divide: "Div",
    np.power: "Pow",
    np.maximum: "Max",
    np.minimum: "Min",
    np.negative: "Neg",
    np.absolute: "Abs",
    np.exp: "Exp",
    np.log: "Log",
    np.sqrt: "Sqrt",
    np.tanh: "Tanh",
    np.where: "Where",
    np.transpose: "Transpose",
    np.less: "Less",
    np.less_equal: "LessOrEqual",
    np.greater: "Greater",
    np.greater_equal: "GreaterOrEqual",
    np.equal: "Equal",
    np.sum: "ReduceSum",
    np.max: "ReduceMax",
    np.min: "ReduceMin",
    np.mean: "ReduceMean",
    getitem: "Slice",
    relu.function: "Relu",
    sigmoid.function: "Sigmoid",
    softmax.function: "Softmax",
}

REDUCTIONS = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean")


def _log1p(x: Any) -> Any:
    return np.log(1 + x)


def _expm1(x: Any) -> Any:
    return np.exp(x) - 1


IN_PARTS: dict[Callable[..., Any], Callable[..., Any]] = {np.log1p: _log1p, np.expm1: _expm1}
"""Replacements for functions that ONNX lacks; near zero, their absolute error is small, but not their relative error."""


def save_onnx(
    layer: Layer, path: str | os.PathLike[str], *, adapters: str = "merged", leading: Sequence[str] = ("batch",)
) -> None:
    """Write a layer as an ONNX file; see `to_onnx`.

    Parameters
    ----------
    layer : Layer
    path : path
        An existing file is replaced only once the new one is complete.
    adapters, leading
        As for `to_onnx`.

    Raises
    ------
    NotSupportedError
        As for `to_onnx`; also if the file would have 2 GiB or more. Nothing is written.
    """
    model = to_onnx(layer, adapters=adapters, leading=leading)
    if model.ByteSize() > LARGEST:
        raise NotSupportedError(
            f"an ONNX file must have at most {LARGEST} bytes, but {layer.layer_name} needs {model.ByteSize()}"
        )
    with atomic_file(path) as file:
        file.write(model.SerializeToString())


def to_onnx(layer: Layer, *, adapters: str = "merged", leading: Sequence[str] = ("batch",)) -> Any:
    """Convert a layer to an ``onnx.ModelProto`` that computes what `predict` computes, in the layer's dtype.

    Parameters
    ----------
    layer : Layer
        The layer or model. DyLoRA adapters are exported at their deployment rank, MultiLoRA adapters with their current
        task.
    adapters : {"merged", "inputs", "required"}
        ``"merged"``: constants are folded, so adapters of linear bases are merged. ``"inputs"``: the arrays of adapters are
        initialisers *and* inputs. Callers that omit them get the adapters of this layer; callers that pass all of them run
        other adapters of the same layers, of any rank. ``"required"``: the arrays are inputs only, for runtimes that ignore
        inputs that have an initialiser, such as onnxruntime-node.
    leading : sequence of str
        The names of the leading axes: ``("batch",)`` for rows, ``("batch", "time")`` for sequences of rows, ``()`` for a
        single vector. Their sizes are free.

    Returns
    -------
    onnx.ModelProto
        A model with opset 21 and IR version 10.

    Raises
    ------
    ArgumentError
        If `adapters` is not one of the values above, or `leading` is not a sequence of distinct names.
    NotSupportedError
        If the package onnx is missing, or a layer inside cannot be written as ONNX; the message names the layer.

    Notes
    -----
    The input is named ``input``, the output ``output``, and arrays have their names from ``named_parameters(frozen=True)``.
    The scaling s of a branch is a scalar: ``lora.scaling`` next to ``lora.matrix_a``, or ``tasks.<name>.scaling``. The free
    axis of a branch is named ``lora.rank``. Folded constants are named after their parameters, such as
    ``folded(base.weight, lora.matrix_a)``.
    """
    one_of("adapters", adapters, ADAPTERS)
    axes = _axis_names(leading)
    onnx = _package()
    graph = layer.export_computation_graph([])
    kept = {} if adapters == "merged" else _adapter_axes(layer)
    try:
        return _Writer(onnx, axes, kept, adapters == "inputs").model(_prepared(graph, kept), type(layer).__name__)
    except NotSupportedError as error:
        for child in layer.children().values():
            to_onnx(child)  # if the reason lies in a child, this error names the child
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
    kept = _adapter_axes(layer)
    leaves = _prepared(layer.export_computation_graph([]), kept).nodes()
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


def _adapter_axes(layer: Layer) -> dict[str, tuple[int, str] | None]:
    """The arrays and scalings of adapters by name: the axis of the components and the name of that axis, or None."""
    found: dict[str, tuple[int, str] | None] = {}
    for path, inner in layer.walk().items():
        own: dict[str, tuple[int, str] | None] = {}
        if isinstance(inner, LowRankLayer):
            own["scaling"] = None
        if isinstance(inner, LowRankLayer | LoRAAdapterBase):
            for name in inner.parameter_names:
                axis = f"{path}.rank".lstrip(".")
                own[name] = (RANK_AXES[name], axis) if name in RANK_AXES else None
        found |= prefixed(path, own) if path else own
    return found


# ---------------------------------------------------------------- the graph in terms of ONNX operators


def _prepared(graph: ComputationNode, kept: Collection[str]) -> ComputationNode:
    """The graph in terms of ONNX operators, optimised; a kept array of which only one slice is used becomes that slice."""
    uses: dict[str, set[str]] = {}
    for node in graph.nodes():
        for parent in node.parents:
            uses.setdefault(parent.name, set()).add(repr(node.options) if node.operation == "getitem" else "all")
    new: dict[ComputationNode, ComputationNode] = {}
    for node in graph.nodes():
        parents = tuple(new[parent] for parent in node.parents)
        if node.operation == "getitem" and parents[0].name in kept and len(uses[parents[0].name]) == 1:
            value = parents[0].value[node.options["index"]]
            new[node] = replace(parents[0], shape=value.shape, value=value)
        else:
            new[node] = _in_operators(replace(node, parents=parents))
    return optimise(new[graph], keep=[node.name for node in new[graph].nodes() if node.name in kept])


def _in_operators(node: ComputationNode) -> ComputationNode:
    if node.function is None or node.function in OPERATORS:
        return node
    try:
        parts = record_function(IN_PARTS.get(node.function, node.function), node.parents)
    except Exception as error:  # a function written for arrays may raise anything when given a symbol
        raise NotSupportedError(f"{node.operation} has no ONNX operator and cannot be decomposed: {error}") from error
    if parts.function is node.function:
        raise NotSupportedError(f"{node.operation} has no ONNX operator")
    steps = {parent: parent for parent in node.parents}
    for step in ordered(parts, stop=node.parents):
        steps[step] = _in_operators(replace(step, parents=tuple(steps[parent] for parent in step.parents)))
    return steps[parts]


# ---------------------------------------------------------------- the file


class _Writer:
    """Collects the operators, initialisers and inputs of a file."""

    def __init__(
        self, onnx: Any, leading: Sequence[str], kept: Mapping[str, tuple[int, str] | None], defaults: bool
    ) -> None:
        self.onnx = onnx
        self.leading = leading
        self.kept = kept
        self.defaults = defaults
        self.inputs: dict[str, Any] = {}
        self.initialisers: dict[str, Any] = {}
        self.operators: list[Any] = []
        self.values = 0
        self.taken = {"input", "output", *kept}
        self.names: dict[Any, str] = {}

    def model(self, graph: ComputationNode, title: str) -> Any:
        """The contents of the file."""
        helper = self.onnx.helper
        (source,) = graph.inputs()
        self.names[source] = "input"
        self.inputs["input"] = self._described("input", source.dtype, [*self.leading, source.size])
        computed = [node for node in graph.nodes() if node.function is not None]
        for node in computed:
            self.names[node] = "output" if node is graph else self._value_name()
            self._write(node)
        if not computed:
            self.operators.append(helper.make_node("Identity", ["input"], ["output"]))
        output = self._described("output", graph.dtype, [*self.leading, graph.size])
        body = helper.make_graph(
            self.operators, title, list(self.inputs.values()), [output], list(self.initialisers.values())
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lora_np")

    def _write(self, node: ComputationNode) -> None:
        assert node.function is not None
        operator = OPERATORS[node.function]
        operands = [self._operand(parent, dtype) for parent, dtype in zip(node.parents, _dtypes(node), strict=True)]
        attributes: dict[str, Any] = {}
        if operator in REDUCTIONS:
            axes, keep = _reduction(node)
            operands += [] if axes is None else [self._array(np.array(axes, np.int64), "axes")]
            attributes["keepdims"] = keep
        elif operator == "Slice":
            operands += [self._array(np.array(numbers, np.int64), "bounds") for numbers in self._slice(node)]
        elif node.options:
            raise NotSupportedError(f"{node.operation} with the arguments {', '.join(node.options)}")
        self.operators.append(self.onnx.helper.make_node(operator, operands, [self.names[node]], **attributes))

    def _operand(self, node: ComputationNode, dtype: Any) -> str:
        """The name of a value, converted to the given dtype."""
        if node.name in self.kept:
            return self._kept(node, dtype)
        if node in self.names and node.dtype == dtype:
            return self.names[node]
        if (node, dtype) not in self.names:
            self.names[node, dtype] = self._converted(node, dtype)
        return self.names[node, dtype]

    def _converted(self, node: ComputationNode, dtype: Any) -> str:
        if node not in self.names:
            return self._array(np.asarray(node.value, dtype), node.name or "constant")
        helper, name = self.onnx.helper, self._value_name()
        to = helper.np_dtype_to_tensor_dtype(dtype)
        self.operators.append(helper.make_node("Cast", [self.names[node]], [name], to=to))
        return name

    def _kept(self, node: ComputationNode, dtype: Any) -> str:
        """The name of an adapter's array, which becomes an input."""
        if node.name not in self.inputs:
            shape: list[Any] = list(node.shape)
            free = self.kept[node.name]
            if free is not None:
                axis, name = free
                shape[axis] = name
            self.inputs[node.name] = self._described(node.name, dtype, shape)
            if self.defaults:
                self._store(np.asarray(node.value, dtype), node.name)
        return node.name

    def _array(self, value: Array, name: str) -> str:
        return self._store(value, self._new_name(name))

    def _store(self, value: Array, name: str) -> str:
        self.initialisers[name] = self.onnx.numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def _described(self, name: str, dtype: Any, shape: Sequence[Any]) -> Any:
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def _value_name(self) -> str:
        self.values += 1
        return self._new_name(f"v{self.values}")

    def _new_name(self, name: str) -> str:
        """The name, with a number appended if it is taken."""
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        free = next(candidate for candidate in itertools.chain([name], numbered) if candidate not in self.taken)
        self.taken.add(free)
        return free

    def _slice(self, node: ComputationNode) -> list[list[int]]:
        """Starts, ends, axes and steps."""
        array = node.parents[0]
        rank = len(array.shape) + (len(self.leading) - 1 if depends_on_input(array) else 0)
        entries = list(node.options["index"]) if isinstance(node.options["index"], tuple) else [node.options["index"]]
        if ... in entries:
            place = entries.index(...)
            entries[place : place + 1] = [slice(None)] * (rank - len(entries) + 1)
        if not all(isinstance(entry, slice) for entry in entries):
            raise NotSupportedError("an index that is not made of slices")
        bounds = [_bounds(entry) for entry in entries]
        starts, ends, steps = ([bound[i] for bound in bounds] for i in range(3))
        return [starts, ends, list(range(len(entries))), steps]


def _bounds(entry: slice) -> tuple[int, int, int]:
    step = 1 if entry.step is None else entry.step
    first, last = (0, sys.maxsize) if step > 0 else (sys.maxsize, -sys.maxsize)
    return (first if entry.start is None else entry.start), (last if entry.stop is None else entry.stop), step


def _dtypes(node: ComputationNode) -> list[Any]:
    """The dtype to convert each operand to, as in NumPy: a Python number adopts the dtype of the arrays."""
    arrays = [parent.dtype for parent in node.parents if not isinstance(parent.value, int | float)]
    if node.operation == "where":
        return [np.dtype(bool), node.dtype, node.dtype]
    return [np.result_type(*arrays) if node.dtype == bool else node.dtype] * len(node.parents)


def _reduction(node: ComputationNode) -> tuple[list[int] | None, int]:
    """The axes (None for all), and whether they are kept."""
    if len(node.parents) > 1 or not node.options.keys() <= {"axis", "keepdims"}:
        raise NotSupportedError(f"{node.operation} with arguments other than axis and keepdims")
    axis = node.options.get("axis")
    axes = None if axis is None else list(axis) if isinstance(axis, tuple) else [axis]
    return axes, int(node.options.get("keepdims", False))
