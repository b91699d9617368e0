"""The contents of an ONNX file: the operators, initialisers and inputs of a graph."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .._typing import Array
from .._version import __version__
from ..errors import NotSupportedError
from ..graph import ComputationNode
from ..graph.node import depends_on_input
from ._onnx_adapters import FreeAxes
from ._onnx_operators import REDUCTIONS, operator_of
from ._onnx_rows import ROW_OPERATIONS, task_branches

IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10}
"""The IR version of each opset that can be written. Some runtimes in use reject versions after 2024."""

COMPUTED = {"MatMul": "matrix", "Add": "bias", "Sub": "bias"}
"""The name of a constant that was computed at export, by the operator that uses it."""


class Writer:
    """Collects the operators, initialisers and inputs of a file.

    Parameters
    ----------
    onnx : module
    opset : int
    leading : sequence of str
        The names of the leading axes.
    kept : mapping
        The parameters that become inputs.
    defaults : bool
        Whether these inputs also have initialisers.
    """

    def __init__(self, onnx: Any, opset: int, leading: Sequence[str], kept: FreeAxes, defaults: bool) -> None:
        self.onnx, self.opset, self.leading, self.kept, self.defaults = onnx, opset, leading, kept, defaults
        self.inputs: dict[str, Any] = {}
        self.initialisers: dict[str, Any] = {}
        self.operators: list[Any] = []
        self.names: dict[Any, str] = {}
        self.taken = {"output", *kept}
        self.reserved: set[str] = set()

    def model(self, graph: ComputationNode, title: str, properties: Mapping[str, str]) -> Any:
        """The contents of the file."""
        helper, nodes = self.onnx.helper, graph.nodes()
        for source in graph.inputs():
            is_rows = source.name == "input"
            self.names[source] = source.name
            shape = [*self.leading, source.size] if is_rows else self.leading[:1]
            self.inputs[source.name] = self._described(source.name, source.dtype, shape)
        self.taken |= self.inputs.keys()
        self.reserved = {node.name for node in nodes if node.operation == "parameter"} - self.taken
        computed = [node for node in nodes if node.function is not None]
        for node in computed:
            self._write(node, "output" if node is graph else None)
        if not computed:
            self.operators.append(helper.make_node("Identity", ["input"], ["output"], name="Identity"))
        output = self._described("output", graph.dtype, [*self.leading, graph.size])
        inputs, arrays = list(self.inputs.values()), list(self.initialisers.values())
        body = helper.make_graph(self.operators, title, inputs, [output], arrays)
        versions = {"opset_imports": [helper.make_opsetid("", self.opset)], "ir_version": IR_VERSIONS[self.opset]}
        model = helper.make_model(body, **versions, producer_name="lora_np", producer_version=__version__)
        helper.set_model_props(model, properties)
        return model

    def _write(self, node: ComputationNode, output: str | None) -> None:
        if node.function in ROW_OPERATIONS:
            write = self._task_branches if node.function is task_branches else self._scaled_by_rank
            self.names[node] = write(node, output)
            return
        found = operator_of(node, self.opset)
        assert found is not None
        operator, attributes = found.name, dict(found.attributes)
        dtypes = zip(node.parents, _dtypes(node), strict=True)
        operands = [self._operand(parent, dtype, node, operator) for parent, dtype in dtypes]
        if operator in REDUCTIONS:
            axes, attributes["keepdims"] = _reduction(node)
            operands += [] if axes is None else [self._integers(axes, "axes")]
        elif operator == "Slice":
            operands += [self._integers(numbers, "bounds") for numbers in self._slice(node)]
        elif node.options:
            raise NotSupportedError(f"{node.operation} with the arguments {', '.join(node.options)}")
        self.names[node] = self._operator(node, operator, operands, output, **attributes)

    def _operator(
        self, node: ComputationNode, operator: str, operands: Iterable[str], output: str | None = None, **attributes: Any
    ) -> str:
        """Add an operator, named after the layer; its value has the same name, unless it is the output."""
        name = self._new_name(f"{node.layer}.{operator}".lstrip("."))
        output = output or name
        self.operators.append(self.onnx.helper.make_node(operator, list(operands), [output], name=name, **attributes))
        return output

    def _task_branches(self, node: ComputationNode, output: str | None) -> str:
        """Gather the factors of each row's task: (rows, in, r) and (rows, r, out)."""
        x, A, B, task = (self._operand(parent, parent.dtype, node, "Gather") for parent in node.parents)
        A, B = (self._operator(node, "Gather", [factors, task]) for factors in (A, B))
        if len(self.leading) == 1:  # (rows, 1, in) @ (rows, in, r) @ (rows, r, out) -> (rows, 1, out)
            inner = self._integers([1], "axes")
            x = self._operator(node, "Unsqueeze", [x, inner])
            y = self._operator(node, "MatMul", [self._operator(node, "MatMul", [x, A]), B])
            return self._operator(node, "Squeeze", [y, inner], output)
        A, B = (self._with_axes(node, factors, len(self.leading) - 2) for factors in (A, B))
        return self._operator(node, "MatMul", [self._operator(node, "MatMul", [x, A]), B], output)

    def _scaled_by_rank(self, node: ComputationNode, output: str | None) -> str:
        """Gather the scalings of each row's rank: (rows, r)."""
        h, scalings, rank = (self._operand(parent, parent.dtype, node, "Gather") for parent in node.parents)
        chosen = self._operator(node, "Gather", [scalings, rank])
        return self._operator(node, "Mul", [h, self._with_axes(node, chosen, len(self.leading) - 1)], output)

    def _with_axes(self, node: ComputationNode, value: str, count: int) -> str:
        """A value for each row, with axes of length 1 for the leading axes after the rows."""
        axes = list(range(1, count + 1))
        return self._operator(node, "Unsqueeze", [value, self._integers(axes, "axes")]) if axes else value

    def _operand(self, node: ComputationNode, dtype: Any, user: ComputationNode, operator: str) -> str:
        """The name of an operand of the operator that computes `user`, converted to the given dtype."""
        if node.name in self.kept:
            return self._kept(node, dtype)
        if node in self.names and node.dtype == dtype:
            return self.names[node]
        if (node, dtype) not in self.names:
            self.names[node, dtype] = self._converted(node, dtype, user, operator)
        return self.names[node, dtype]

    def _converted(self, node: ComputationNode, dtype: Any, user: ComputationNode, operator: str) -> str:
        if node in self.names:
            to = self.onnx.helper.np_dtype_to_tensor_dtype(dtype)
            return self._operator(user, "Cast", [self.names[node]], to=to)
        value, parameters = np.asarray(node.value, dtype), node.options.get("parameters", ())
        if parameters:
            name = f"{user.layer}.{COMPUTED.get(operator, 'constant')}".lstrip(".")
            return self._store(value, self._new_name(name), f"computed from {', '.join(parameters)}")
        if node.name in self.reserved:
            self.reserved.remove(node.name)
            self.taken.add(node.name)
            return self._store(value, node.name)
        return self._store(value, self._new_name(node.name or "constant"))

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

    def _integers(self, values: Sequence[int], name: str) -> str:
        key = name, tuple(values)
        if key not in self.names:
            self.names[key] = self._store(np.array(values, np.int64), self._new_name(name))
        return self.names[key]

    def _store(self, value: Array, name: str, description: str = "") -> str:
        tensor = self.onnx.numpy_helper.from_array(np.array(value, order="C"), name)
        tensor.doc_string = description
        self.initialisers[name] = tensor
        return name

    def _described(self, name: str, dtype: Any, shape: Sequence[Any]) -> Any:
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def _new_name(self, name: str) -> str:
        """The name, with a number appended if it is taken or reserved for a parameter."""
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        names = itertools.chain([name], numbered)
        free = next(each for each in names if each not in self.taken and each not in self.reserved)
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
