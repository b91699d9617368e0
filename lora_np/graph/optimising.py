"""Simplifying a graph: folding constants, removing identities, sharing equal nodes, merging products."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .merging import merged
from .node import ComputationNode, folded, is_constant

NEUTRAL = {"multiply": 1, "divide": 1, "add": 0, "subtract": 0}
COMMUTATIVE = ("multiply", "add")


def optimise(graph: ComputationNode, *, keep: Collection[str] = ()) -> ComputationNode:
    """Rewrite a graph with fewer operations; its value stays the same up to rounding.

    Parameters
    ----------
    graph : ComputationNode
    keep : collection of str, optional
        Names of parameters that must not be folded, so that `ComputationNode.evaluate` can still replace their values.

    Returns
    -------
    ComputationNode
        The rewritten graph. Values that depend only on constants are folded, equal subexpressions are shared, and
        operations such as ``x * 1`` and ``x + 0`` are removed. Sums of products with the same x become one product if that
        takes no more multiplications: ``x W + b + s (x A) B`` becomes ``x (W + s A B) + b``. Adapters are thereby merged
        into linear bases, but not into bases with an activation.

    Raises
    ------
    ArgumentError
        If a name in `keep` is not that of a parameter of the graph.

    Notes
    -----
    A folded constant is named after its parameters: ``folded(base.weight, lora.matrix_a)``.

    Examples
    --------
    >>> from lora_np import DenseLayer, FullyConnectedLayer, StandardLoRAAdapter
    >>> from lora_np.graph import optimise
    >>> layer = FullyConnectedLayer(5, 3, rng=0)
    >>> layer.bias[:] = 1
    >>> print(layer.export_computation_graph([]))
    v1 = input @ weight.T # (..., 3)
    v2 = v1 + bias        # (..., 3)
    >>> print(optimise(layer.export_computation_graph([])))
    v1 = input @ folded(weight) # (..., 3)
    v2 = v1 + bias              # (..., 3)
    >>> len(StandardLoRAAdapter(layer, 2).export_computation_graph([]).nodes())
    13
    >>> len(optimise(StandardLoRAAdapter(layer, 2).export_computation_graph([])).nodes())
    5
    """
    names = {node.name for node in graph.nodes() if node.operation == "parameter"}
    for name in keep:
        if name not in names:
            raise ArgumentError(f"keep must name parameters of the graph, got {name!r}")
    return merged(simplified(graph, keep), keep)


def simplified(graph: ComputationNode, keep: Collection[str] = ()) -> ComputationNode:
    """`optimise` without merging."""
    shared: dict[Any, ComputationNode] = {}
    new: dict[ComputationNode, ComputationNode] = {}
    for node in graph.nodes():
        rebuilt = replace(node, parents=tuple(new[parent] for parent in node.parents)) if node.parents else node
        key = _key(rebuilt)
        if key not in shared:
            shared[key] = _simpler(rebuilt, keep) if node.parents else node
        new[node] = shared[key]
    return new[graph]


def _simpler(node: ComputationNode, keep: Collection[str]) -> ComputationNode:
    if all(is_constant(parent, keep) for parent in node.parents):
        return folded(node.evaluate({}), node.parents)
    return _without_identity(node, keep)


def _without_identity(node: ComputationNode, keep: Collection[str]) -> ComputationNode:
    """The operand, if the operation returns it unchanged; otherwise the node itself."""
    for operand, other in _operands(node):
        same = (operand.shape, operand.dtype) == (node.shape, node.dtype)
        if same and is_constant(other, keep) and np.all(other.value == NEUTRAL[node.operation]):
            return operand
    twice = node.operation == "transpose" and node.parents[0].operation == "transpose"
    return node.parents[0].parents[0] if twice and not (node.options or node.parents[0].options) else node


def _operands(node: ComputationNode) -> list[tuple[ComputationNode, ComputationNode]]:
    """The pairs (operand, other) in which `other` may be a neutral element of the operation."""
    if node.operation not in NEUTRAL:
        return []
    first, second = node.parents
    return [(first, second), (second, first)] if node.operation in COMMUTATIVE else [(first, second)]


def _key(node: ComputationNode) -> Any:
    """A key that is equal only for nodes of equal value."""
    if node.function is not None:
        return node.function, node.parents, repr(node.options)
    if isinstance(node.value, int | float):
        return node.name, repr(node.value)
    return node if node.name else (node.dtype, node.shape, node.value.tobytes())
