"""Rewriting a graph into a smaller one of the same value: constants folded, identities dropped, equal nodes shared."""

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
    """A graph of the same value, up to rounding, with fewer operations.

    Parameters
    ----------
    graph : ComputationNode
    keep : names of parameters
        What depends on these is not computed beforehand, so `ComputationNode.evaluate` can still give them other values.

    Returns
    -------
    ComputationNode
        In the new graph, what depends on constants alone is a constant; equal subexpressions are one node; ``x * 1`` and
        ``x + 0`` are gone; and where sums of products with one x need fewer
        multiplications as one product, they are: ``x W + b + s (x A) B`` becomes ``x (W + s A B) + b``. So an adapter is
        merged into a linear base, and stays apart where an activation is in between.

    Raises
    ------
    ArgumentError
        The graph has no parameter of a name in `keep`.

    Notes
    -----
    A constant that was computed is called after the parameters in it: ``folded(base.weight, lora.matrix_a)``.

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
    """What `optimise` does, without merging."""
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
    """The operand, where the operation leaves it as it is."""
    for operand, other in _operands(node):
        same = (operand.shape, operand.dtype) == (node.shape, node.dtype)
        if same and is_constant(other, keep) and np.all(other.value == NEUTRAL[node.operation]):
            return operand
    twice = node.operation == "transpose" and node.parents[0].operation == "transpose"
    return node.parents[0].parents[0] if twice and not (node.options or node.parents[0].options) else node


def _operands(node: ComputationNode) -> list[tuple[ComputationNode, ComputationNode]]:
    """The pairs (operand, other) of an operation for which `other` may be neutral."""
    if node.operation not in NEUTRAL:
        return []
    first, second = node.parents
    return [(first, second), (second, first)] if node.operation in COMMUTATIVE else [(first, second)]


def _key(node: ComputationNode) -> Any:
    """Equal for nodes of equal value."""
    if node.function is not None:
        return node.function, node.parents, repr(node.options)
    if isinstance(node.value, int | float):
        return node.name, repr(node.value)
    return node if node.name else (node.dtype, node.shape, node.value.tobytes())
