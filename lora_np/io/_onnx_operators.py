"""Graphs in terms of ONNX operators: functions that ONNX lacks are decomposed into functions that it has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import NotSupportedError
from ..functions.activations import gelu, gelu_exact, relu, sigmoid, softmax
from ..graph import ComputationNode, optimise
from ..graph.node import getitem, ordered
from ..graph.recording import record_function
from ._onnx_rows import ROW_OPERATIONS

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

GELU_OPSET = 20
"""The first opset with the operator Gelu."""

GELUS = {gelu.function: "tanh", gelu_exact.function: "none"}
"""The attribute `approximate` of Gelu."""


class Operator(NamedTuple):
    """An ONNX operator and its attributes."""

    name: str
    attributes: Mapping[str, Any]


def operator_of(node: ComputationNode, opset: int) -> Operator | None:
    """The operator that computes a node, if there is one.

    Gelu is used in float32 only: for float64, onnxruntime computes it with the constants of float32, or not at all.
    """
    assert node.function is not None
    if node.function in GELUS and opset >= GELU_OPSET and node.dtype == np.float32:
        return Operator("Gelu", {"approximate": GELUS[node.function]})
    return Operator(OPERATORS[node.function], {}) if node.function in OPERATORS else None


def _log1p(x: Any) -> Any:
    return np.log(1 + x)


def _expm1(x: Any) -> Any:
    return np.exp(x) - 1


IN_PARTS: dict[Callable[..., Any], Callable[..., Any]] = {np.log1p: _log1p, np.expm1: _expm1}
"""Replacements for functions that ONNX lacks; near zero, their absolute error is small, but not their relative error."""


def in_operators(graph: ComputationNode, kept: Collection[str], opset: int) -> ComputationNode:
    """The graph in terms of ONNX operators, optimised; parameters in `kept` are not folded.

    A parameter of which only one slice is used becomes that slice, under the same name. The transpose of any other
    parameter is named ``weight.T``.
    """
    uses: dict[str, set[str]] = {}
    for node in graph.nodes():
        for parent in node.parents:
            uses.setdefault(parent.name, set()).add(repr(node.options) if node.operation == "getitem" else "all")
    new: dict[ComputationNode, ComputationNode] = {}
    views: dict[tuple[str, str], ComputationNode] = {}
    for node in graph.nodes():
        parents = tuple(new[parent] for parent in node.parents)
        if node.operation in ("getitem", "transpose") and parents[0].operation == "parameter":
            view = _view(node, parents[0], kept, only_use=len(uses[parents[0].name]) == 1)
            new[node] = views.setdefault((view.name, node.operation), view) if view.name else view
        else:
            new[node] = _in_operators(replace(node, parents=parents), opset)
    return optimise(new[graph], keep=[node.name for node in new[graph].nodes() if node.name in kept])


def _view(node: ComputationNode, array: ComputationNode, kept: Collection[str], *, only_use: bool) -> ComputationNode:
    """A slice or the transpose of a parameter, as a parameter where it can have a name."""
    is_named = only_use if node.operation == "getitem" else array.name not in kept and not node.options
    if not is_named:
        return replace(node, parents=(array,))
    assert node.function is not None
    value = node.function(array.value, **node.options)
    name = array.name if node.operation == "getitem" else f"{array.name}.T"
    return replace(array, name=name, shape=value.shape, value=value)


def _in_operators(node: ComputationNode, opset: int) -> ComputationNode:
    if node.function is None or node.function in ROW_OPERATIONS or operator_of(node, opset) is not None:
        return node
    try:
        parts = record_function(IN_PARTS.get(node.function, node.function), node.parents)
    except Exception as error:  # a function written for arrays may raise anything when given a symbol
        raise NotSupportedError(f"{node.operation} has no ONNX operator and cannot be decomposed: {error}") from error
    if parts.function is node.function:
        raise NotSupportedError(f"{node.operation} has no ONNX operator")
    steps = {parent: parent for parent in node.parents}
    for step in ordered(parts, stop=node.parents):
        operands = tuple(steps[parent] for parent in step.parents)
        steps[step] = _in_operators(replace(step, parents=operands, layer=node.layer), opset)
    return steps[parts]
