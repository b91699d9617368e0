"""`ComputationNode`: one value of a computation, and how it is computed from others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, TypeAlias, final

import numpy as np

from .._typing import Array
from .._validation import finite_float, last_axis, real_array, same_shape
from ..errors import ArgumentError

Shape: TypeAlias = tuple[int | EllipsisType, ...]
"""The sizes of the axes; shapes that depend on the input begin with ``...``, its leading axes."""

INFIX = {
    "matmul": "@",
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "power": "**",
    "less_equal": "<=",
    "less": "<",
    "greater": ">",
    "greater_equal": ">=",
    "equal": "==",
}


@final
@dataclass(frozen=True, eq=False)
class ComputationNode:
    """One value of a computation: an input, a parameter, a constant, or the result of a function of other nodes.

    A graph is represented by its output node; the other nodes are its ancestors. Nodes are immutable, so graphs may share
    them. ``str(node)`` is the graph as a program with one line per operation.

    Parameters
    ----------
    operation : str
        ``"input"``, ``"parameter"``, ``"constant"``, or the name of the function, such as ``"matmul"`` or ``"tanh"``.
    shape : tuple
        The sizes of the axes. Shapes that depend on the input begin with ``...``: any number of leading axes, or none.
    dtype : numpy.dtype
    parents : tuple of ComputationNode, optional
        The operands, in order.
    name : str, optional
        The name of an input or parameter. Parameters are named as in ``named_parameters(frozen=True)``.
    value : array or number, optional
        The value of a parameter or constant. An array is read-only.
    function : callable, optional
        Computes the value: ``function(*operands, **options)``.
    options : mapping, optional
        Keyword arguments of the function, such as an axis.
    layer : str, optional
        The path of the layer that computes the value, as in `walk`; empty for the outermost layer, and for leaves.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import DenseLayer, StandardLoRAAdapter, tanh
    >>> adapter = StandardLoRAAdapter(DenseLayer(5, 3, tanh, rng=0), rank=2, alpha=4.0, rng=0)
    >>> graph = adapter.export_computation_graph([])
    >>> print(graph)
    v1 = input @ base.weight   # (..., 3)
    v2 = v1 + base.bias        # (..., 3)
    v3 = tanh(v2)              # (..., 3)
    v4 = input @ lora.matrix_a # (..., 2)
    v5 = lora.scaling * v4     # (..., 2)
    v6 = v5 @ lora.matrix_b    # (..., 3)
    v7 = v3 + v6               # (..., 3)
    >>> x = np.ones((4, 5))
    >>> bool(np.allclose(graph.evaluate({"input": x}), adapter.predict(x)))
    True
    """

    operation: str
    shape: Shape
    dtype: np.dtype[Any]
    parents: tuple[ComputationNode, ...] = ()
    name: str = ""
    value: Any = None
    function: Callable[..., Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""

    def nodes(self) -> tuple[ComputationNode, ...]:
        """All nodes of the graph without duplicates, parents before their children, this node last."""
        return ordered(self)

    @property
    def size(self) -> int:
        """The size of the last axis."""
        size = self.shape[-1]
        assert isinstance(size, int)
        return size

    def inputs(self) -> tuple[ComputationNode, ...]:
        """The input nodes, whose values `evaluate` requires."""
        return tuple(node for node in self.nodes() if node.operation == "input")

    def evaluate(self, values: Mapping[str, Any]) -> Array:
        """Compute the value of this node with NumPy.

        Parameters
        ----------
        values : mapping of str to array
            A value for every input, with any leading axes, and optionally for parameters, to replace the value recorded at
            export.

        Returns
        -------
        array
            A new array.

        Raises
        ------
        ArgumentError
            If an input is missing, a name is not in the graph, or a value is not real or does not have the shape of its
            node.
        """
        nodes = self.nodes()
        named = {node.name for node in nodes if node.name}
        for name in values:
            if name not in named:
                raise ArgumentError(f"values must name inputs or parameters of the graph, got {name!r}")
        results: dict[ComputationNode, Any] = {}
        for node in nodes:
            if node.function is None:
                results[node] = _leaf_value(node, values)
            else:
                results[node] = node.function(*(results[parent] for parent in node.parents), **node.options)
        return np.array(results[self])

    def __str__(self) -> str:
        texts: dict[ComputationNode, str] = {}
        lines: list[tuple[str, str]] = []
        for node in self.nodes():
            text = _text(node, [texts[parent] for parent in node.parents])
            if node.function is None or (node.operation in VIEWS and node.parents[0].function is None):
                texts[node] = text
            else:
                texts[node] = f"v{len(lines) + 1}"
                lines.append((f"{texts[node]} = {text}", shape_text(node.shape)))
        width = max((len(line) for line, _ in lines), default=0)
        return "\n".join(f"{line:{width}} # {shape}" for line, shape in lines) or texts[self]

    def __repr__(self) -> str:
        return " ".join(
            ["<ComputationNode", self.operation, *([self.name] if self.name else []), f"{shape_text(self.shape)}>"]
        )


VIEWS = ("getitem", "transpose")
"""Operations that only rearrange their operand."""


def getitem(array: Array, index: Any) -> Array:
    """``array[index]``, as a function."""
    return array[index]


def ordered(node: ComputationNode, stop: Collection[ComputationNode] = ()) -> tuple[ComputationNode, ...]:
    """The nodes of a graph, parents before their children. The traversal does not enter the nodes in `stop`."""
    found: dict[ComputationNode, None] = {}
    waiting = [(node, False)]
    while waiting:
        current, parents_done = waiting.pop()
        if parents_done:
            found[current] = None
        elif current not in found and current not in stop:
            waiting.append((current, True))
            waiting.extend((parent, False) for parent in reversed(current.parents))
    return tuple(found)


def depends_on_input(node: ComputationNode) -> bool:
    """Whether the value depends on the input, rather than on parameters and constants alone."""
    return node.shape[:1] == (...,)


def frozen_copy(array: Array) -> Array:
    """A read-only copy."""
    copied = np.array(array, order="C")
    copied.setflags(write=False)
    return copied


def constant_node(value: Array, parameters: tuple[str, ...] = ()) -> ComputationNode:
    """A node with a known value, which is copied. `parameters` names the parameters it was computed from."""
    name = f"folded({', '.join(parameters)})" if parameters else ""
    options = {"parameters": parameters} if parameters else {}
    return ComputationNode("constant", value.shape, value.dtype, name=name, value=frozen_copy(value), options=options)


def label(node: ComputationNode) -> str:
    """The label of a node in a drawing: the name or value of a leaf, the operation of any other node."""
    if node.function is not None:
        return _index_text(node) if node.operation == "getitem" else INFIX.get(node.operation, node.operation)
    if node.name or node.operation == "input":
        return node.name
    return f"{node.value:.6g}" if np.ndim(node.value) == 0 else f"constant{shape_text(node.shape)}"


def shape_text(shape: Shape) -> str:
    """A shape in mathematical notation: ``(..., 3)``."""
    sizes = ["..." if size is ... else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _text(node: ComputationNode, operands: list[str]) -> str:
    if node.function is None:
        return label(node)
    if node.operation == "getitem":
        return f"{operands[0]}{_index_text(node)}"
    if node.operation == "transpose" and not node.options:
        return f"{operands[0]}.T"
    if node.operation in INFIX:
        return f"{operands[0]} {INFIX[node.operation]} {operands[1]}"
    options = [f"{name}={value!r}" for name, value in node.options.items()]
    return f"{node.operation}({', '.join(operands + options)})"


def _index_text(node: ComputationNode) -> str:
    index = node.options["index"]
    entries = index if isinstance(index, tuple) else (index,)
    return f"[{', '.join(map(_entry_text, entries))}]"


def _entry_text(entry: Any) -> str:
    if isinstance(entry, slice):
        start, stop, step = ("" if bound is None else str(bound) for bound in (entry.start, entry.stop, entry.step))
        return f"{start}:{stop}{step and f':{step}'}"
    return "..." if entry is ... else str(entry)


def _leaf_value(node: ComputationNode, values: Mapping[str, Any]) -> Any:
    if node.name not in values:
        if node.operation == "input":
            raise ArgumentError(f"values must include every input of the graph, got none for {node.name!r}")
        return node.value
    if isinstance(node.value, float):
        return finite_float(node.name, values[node.name])
    array = real_array(node.name, values[node.name], node.dtype)
    if node.operation == "input":
        last_axis(node.name, array, node.size)
    else:
        same_shape(node.name, array, node.shape)  # type: ignore[arg-type]
    return array


def is_constant(node: ComputationNode, keep: Collection[str] = ()) -> bool:
    """Whether the value is known, and is not a parameter to keep."""
    return node.operation == "constant" or (node.operation == "parameter" and node.name not in keep)


def folded(value: Any, constants: Iterable[ComputationNode]) -> ComputationNode:
    """A constant, named after the parameters it was computed from."""
    names = {name for node in constants for name in _parameters(node)}
    return constant_node(np.asarray(value), tuple(sorted(names)))


def _parameters(node: ComputationNode) -> tuple[str, ...]:
    return (node.name,) if node.operation == "parameter" else node.options.get("parameters", ())
