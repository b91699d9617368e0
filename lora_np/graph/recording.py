"""Recording a graph: the pure `apply` of a layer runs on symbols, which record the operations applied to them.

No formula is written twice. In a copy of the layer, a symbol replaces each array. NumPy passes every function that is
called with a symbol to that symbol, through the protocols ``__array_ufunc__`` and ``__array_function__``. Shapes and dtypes
also come from NumPy: each symbol carries a sample array, which has no rows if it depends on the input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, ArgumentNullError, NotSupportedError
from ..functions.activations import Activation, identity
from ..run import INFERENCE, Run
from .node import (
    VIEWS,
    ComputationNode,
    Shape,
    constant_node,
    depends_on_input,
    frozen_copy,
    getitem,
    shape_text,
)

_LAYER = ContextVar("layer", default="")
"""The path of the layer whose `apply` runs."""


class Recordable(Protocol):
    """The interface that a layer must have to be recorded."""

    input_size: int
    output_size: int
    dtype: np.dtype[Any]
    layer_name: str

    def apply(self, x: Any, run: Run) -> tuple[Any, Any]: ...  # noqa: D102
    def children(self) -> Mapping[str, Any]: ...  # noqa: D102
    def walk(self, prefix: str = "") -> Mapping[str, Any]: ...  # noqa: D102
    def named_parameters(self, *, frozen: bool = False) -> dict[str, Array]: ...  # noqa: D102


def record(layer: Recordable, input_nodes: list[ComputationNode]) -> ComputationNode:
    """The computation graph of a layer in inference; see `lora_np.Layer.export_computation_graph`."""
    if input_nodes is None:
        raise ArgumentNullError("input_nodes must not be None; pass an empty list to receive the input node")
    if not isinstance(input_nodes, list) or not all(isinstance(node, ComputationNode) for node in input_nodes):
        raise ArgumentError(f"input_nodes must be a list of ComputationNode, got {input_nodes!r}")
    if len(input_nodes) > 1:
        raise ArgumentError(f"input_nodes must hold at most one node because a layer has one input, got {len(input_nodes)}")
    node = input_nodes[0] if input_nodes else _input_node(layer)
    if (node.shape, node.dtype) != ((..., layer.input_size), layer.dtype):
        expected = f"{shape_text((..., layer.input_size))} of {layer.dtype}"
        raise ArgumentError(f"input_nodes must hold a node {expected}, got {shape_text(node.shape)} of {node.dtype}")
    output = _recorded(layer, node, frozen_copy)
    if not input_nodes:
        input_nodes.append(node)
    return output


def is_recordable(layer: Recordable) -> bool:
    """Whether `record` would succeed, determined without copying parameters."""
    try:
        _recorded(layer, _input_node(layer), np.asarray)
    except NotSupportedError:
        return False
    return True


def record_function(function: Callable[..., Any], parents: Sequence[ComputationNode]) -> ComputationNode:
    """The graph of a function of arrays, built on the nodes of its operands."""
    return _node(function(*map(_symbol, parents)))


def _input_node(layer: Recordable) -> ComputationNode:
    return ComputationNode("input", (..., layer.input_size), layer.dtype, name="input")


def _recorded(layer: Recordable, node: ComputationNode, constant: Callable[[Array], Array]) -> ComputationNode:
    try:
        apply: Callable[..., Any] = _twin(layer, constant).apply
        output = _node(apply(_symbol(node), INFERENCE)[0])
        if output.shape != (..., layer.output_size):
            raise NotSupportedError(f"its output has shape {shape_text(output.shape)}, not (..., {layer.output_size})")
    except Exception as error:  # an `apply` written for arrays may raise anything when given symbols
        for child in layer.children().values():
            _recorded(child, _input_node(child), np.asarray)  # if a child is the cause, the error names the child
        reason = f"{layer.layer_name} ({type(layer).__name__}) has no computation graph: {error}"
        raise NotSupportedError(reason) from error
    return output


def _twin(layer: Recordable, constant: Callable[[Array], Array]) -> Recordable:
    """A copy with symbols in place of all arrays, wherever they are stored, and with activations that record themselves."""
    arrays = layer.named_parameters(frozen=True)
    memo: dict[int, Any] = {}
    for name, array in arrays.items():
        leaf = ComputationNode("parameter", array.shape, array.dtype, name=name, value=constant(array))
        memo.setdefault(id(array), _symbol(leaf))
    for inner in layer.walk().values():
        activations = [value for value in vars(inner).values() if isinstance(value, Activation) and value != identity]
        memo |= {id(activation): _RecordedActivation(activation) for activation in activations}
    twin = copy.deepcopy(layer, memo)
    for path, inner in twin.walk().items():
        vars(inner)["apply"] = partial(_apply_within, path, inner.apply)
        scaling_at = getattr(inner, "scaling_at", None)
        if scaling_at is not None:
            vars(inner)["scaling_at"] = partial(_named_scaling, f"{path}.scaling".lstrip("."), scaling_at)
    return twin


def _apply_within(path: str, apply: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run `apply` of the layer at a path, so that each operation is recorded with that path."""
    outer = _LAYER.set(path)
    try:
        return apply(*arguments, **options)
    finally:
        _LAYER.reset(outer)


class _NamedFloat(float):
    """A number that symbols record as a named parameter; to all other code it is a plain float."""

    name: str


def _named_scaling(name: str, scaling_at: Callable[[int], float], rank: int) -> _NamedFloat:
    number = _NamedFloat(scaling_at(rank))
    number.name = name
    return number


class _RecordedActivation:
    """An activation that is recorded as a single operation with its name."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._activation, name)

    def function(self, z: Any) -> Any:
        return _apply(self._activation.function, [z], name=self._activation.name)

    __call__ = apart = function


def _reduction(function: Callable[..., Any]) -> Callable[..., _Symbol]:
    """The array method that corresponds to a NumPy reduction."""

    def method(self: _Symbol, axis: Any = None, **options: Any) -> _Symbol:
        return _apply(function, [self], {"axis": axis} | options)

    return method


class _Symbol(np.lib.mixins.NDArrayOperatorsMixin):
    """A stand-in for an array that records the operations applied to it.

    Parameters
    ----------
    node : ComputationNode
        The value recorded so far.
    sample : array
        An array of the node's shape and dtype; if the node depends on the input, one axis of length 0 replaces the ``...``.
    fresh : bool
        Whether this symbol is the only reference to its array, so that in-place operations on it can be recorded.
    """

    def __init__(self, node: ComputationNode, sample: Any, *, fresh: bool = False) -> None:
        self.node = node
        self.sample = sample
        self.fresh = fresh

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *operands: Any, out: Any = None, **options: Any) -> Any:
        if method != "__call__" or options or ufunc.nout > 1:
            _refuse(f"numpy.{ufunc.__name__}.{method} with options {options} cannot be recorded")
        result = _apply(ufunc, operands)
        if out is None:
            return result
        return out[0]._becomes(result) if isinstance(out[0], _Symbol) else _refuse_writing()

    def __array_function__(self, function: Any, types: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if function is np.may_share_memory:
            return False  # nodes are immutable
        return _apply(function, arguments, options)

    def __getitem__(self, index: Any) -> _Symbol:
        entries = index if isinstance(index, tuple) else (index,)
        if not all(entry is None or entry is ... or isinstance(entry, int | slice) for entry in entries):
            _refuse(f"only integer and slice indices can be recorded, got {index!r}")
        if not self._whole(entries):
            return _apply(getitem, [self], {"index": index})
        self.fresh = False
        return _Symbol(self.node, self.sample)

    def _whole(self, entries: tuple[Any, ...]) -> bool:
        """Whether an index selects the whole array, whatever the number of leading axes."""
        plain = all(entry is ... or (isinstance(entry, slice) and entry.step in (None, 1)) for entry in entries)
        rows_alone = entries[0] is ... or not depends_on_input(self.node)
        return plain and rows_alone and self.sample[entries].shape == self.sample.shape

    def _becomes(self, result: _Symbol) -> _Symbol:
        """Record an in-place operation: on a fresh result, the symbol simply takes on the new value."""
        if not self.fresh or result.node.shape != self.node.shape:
            _refuse_writing()
        self.node, self.sample = result.node, result.sample
        return self

    @property
    def shape(self) -> Shape:
        return self.node.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.node.dtype

    @property
    def T(self) -> _Symbol:  # noqa: N802  as in NumPy
        return _apply(np.transpose, [self])

    @property
    def real(self) -> _Symbol:
        return self

    def take(self, *_: Any, **__: Any) -> NoReturn:
        _refuse("it looks up rows by index, such as the vectors of token ids")

    def copy(self) -> _Symbol:
        return _Symbol(self.node, self.sample, fresh=True)

    sum, max, min, mean = _reduction(np.sum), _reduction(np.max), _reduction(np.min), _reduction(np.mean)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        _refuse("it converts a value that is not known yet to an array")

    def __bool__(self) -> NoReturn:
        _refuse("it branches on a value that is not known yet")

    def __len__(self) -> NoReturn:
        _refuse("it takes the length of a value that is not known yet")

    __iter__ = None


def _refuse(reason: str) -> NoReturn:
    raise NotSupportedError(reason)


def _refuse_writing() -> NoReturn:
    _refuse("it writes to an array that is not a fresh result")


def _apply(
    function: Callable[..., Any], operands: Sequence[Any], options: Mapping[str, Any] | None = None, name: str = ""
) -> _Symbol:
    """Record one operation."""
    name = name or function.__name__
    options = dict(options or {})
    if any(isinstance(value, _Symbol | np.ndarray) for value in options.values()):
        _refuse(f"{name} with arrays as keyword arguments cannot be recorded")
    symbols = [_as_symbol(operand) for operand in operands]
    with np.errstate(all="ignore"):
        sample = function(*(symbol.sample for symbol in symbols), **options)
    if not isinstance(sample, np.ndarray | np.generic):
        _refuse(f"{name} does not return a single array")
    shape: Shape = sample.shape
    if any(depends_on_input(symbol.node) for symbol in symbols):
        if shape[:1] != (0,):
            _refuse(f"{name} does not preserve the rows of the input")
        shape = (..., *shape[1:])
    parents = tuple(symbol.node for symbol in symbols)
    node = ComputationNode(name, shape, sample.dtype, parents, function=function, options=options, layer=_LAYER.get())
    if name in VIEWS:
        symbols[0].fresh = False
    return _Symbol(node, sample, fresh=name not in VIEWS)


def _as_symbol(operand: Any) -> _Symbol:
    """The operand if it is a symbol, else a symbol for a constant or a named parameter."""
    if isinstance(operand, _Symbol):
        return operand
    if isinstance(operand, _NamedFloat):
        value = float(operand)
        return _Symbol(ComputationNode("parameter", (), np.dtype(float), name=operand.name, value=value), value)
    if isinstance(operand, int | float):
        return _Symbol(ComputationNode("constant", (), np.dtype(type(operand)), value=operand), operand)
    array = np.asarray(operand)
    if array.dtype.kind not in "biuf":
        _refuse(f"it computes with {operand!r}, which is not an array of real numbers")
    return _Symbol(constant_node(array), array)


def _symbol(node: ComputationNode) -> _Symbol:
    """A symbol for the value of a node."""
    if depends_on_input(node):
        return _Symbol(node, np.empty((0, *node.shape[1:]), node.dtype))
    return _Symbol(node, node.evaluate({}) if node.function is not None else node.value)


def _node(symbol: Any) -> ComputationNode:
    if not isinstance(symbol, _Symbol):
        _refuse(f"its output does not depend on its input, got {type(symbol).__name__}")
    return symbol.node
