"""Rewriting sums of products with the same x as one product, which merges an adapter into its base.

A piece is a part of the graph that is affine in one of its nodes, ``x M + c``. Running the piece computes both: M is its
value at the unit vectors with constant terms omitted, c its value at zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from .node import ComputationNode, depends_on_input, folded, is_constant, ordered


class _Piece(NamedTuple):
    """A node as ``x M + c``: its source x, and the cost of computing it unmerged."""

    source: ComputationNode
    multiplications: int = 0
    products: int = 0

    def followed_by(self, matrix: ComputationNode) -> _Piece:
        """``(x M + c) @ matrix``."""
        return _Piece(self.source, self.multiplications + matrix.value.size, self.products + 1)

    def plus(self, others: list[_Piece]) -> _Piece:
        """The sum of this piece and others with the same source."""
        terms = [self, *others]
        return _Piece(self.source, sum(t.multiplications for t in terms), sum(t.products for t in terms))


def merged(graph: ComputationNode, keep: Collection[str]) -> ComputationNode:
    """The graph with each piece replaced by one product, if that takes no more multiplications."""
    pieces = _pieces(graph, keep)
    sources: dict[ComputationNode, ComputationNode | None] = {}
    waiting = [graph]
    while waiting:  # from the output up, to try the largest pieces first
        node = waiting.pop()
        if node not in sources:
            piece = pieces[node]
            sources[node] = piece.source if _saves(node, piece) else None
            waiting += [piece.source] if sources[node] else node.parents
    new: dict[ComputationNode, ComputationNode] = {}
    for node in (node for node in graph.nodes() if node in sources):
        source = sources[node]
        if source is None:
            new[node] = replace(node, parents=tuple(new[parent] for parent in node.parents))
        else:
            new[node] = _one_product(node, source, new[source])
    return new[graph]


def _saves(node: ComputationNode, piece: _Piece) -> bool:
    """Whether one product is no more expensive than the several it replaces."""
    return piece.products > 1 and piece.source.size * node.size <= piece.multiplications


def _pieces(graph: ComputationNode, keep: Collection[str]) -> dict[ComputationNode, _Piece]:
    """Each node as an affine function of an earlier node or of itself. A piece ends at values used more than once."""
    nodes = graph.nodes()
    uses = Counter(parent for node in nodes for parent in node.parents)
    inner: dict[ComputationNode, _Piece] = {}
    pieces: dict[ComputationNode, _Piece] = {}
    for node in nodes:
        pieces[node] = _piece(node, inner, keep) or _Piece(node)
        inner[node] = pieces[node] if uses[node] == 1 else _Piece(node)
    return pieces


def _piece(node: ComputationNode, inner: dict[ComputationNode, _Piece], keep: Collection[str]) -> _Piece | None:
    variables = [parent for parent in node.parents if depends_on_input(parent)]
    constants = [parent for parent in node.parents if not depends_on_input(parent)]
    if not variables or not all(
        is_constant(constant, keep) and np.all(np.isfinite(constant.value)) for constant in constants
    ):
        return None
    operands = [inner[variable] for variable in variables]
    if node.operation == "matmul":
        product = len(operands) == 1 and node.parents[0] is variables[0] and len(constants[0].shape) == 2
        return operands[0].followed_by(constants[0]) if product else None
    rows_alone = all(v.shape == node.shape for v in variables) and all(len(c.shape) <= 1 for c in constants)
    if rows_alone and node.operation in ("add", "subtract"):
        same_source = operands[0].source is operands[-1].source
        return operands[0].plus(operands[1:]) if same_source else None
    scaled = node.operation == "multiply" or (node.operation == "divide" and node.parents[0] is variables[0])
    return operands[0] if rows_alone and scaled and len(operands) == 1 else None


def _one_product(node: ComputationNode, source: ComputationNode, new_source: ComputationNode) -> ComputationNode:
    """The product ``x M + c`` that replaces a piece."""
    piece = ordered(node, stop=[source])
    constants = [inner for inner in piece if inner.function is None]
    sums = [inner for inner in piece if inner.operation in ("add", "subtract")]
    added = dict.fromkeys(parent for inner in sums for parent in inner.parents if parent in constants)
    M = _run(piece, source, None)
    c = _run(piece, source, np.zeros(source.size, node.dtype))
    matrix = folded(M, [constant for constant in constants if constant not in added])
    product = replace(node, operation="matmul", parents=(new_source, matrix), function=np.matmul, options={})
    if not c.any():
        return product
    offset = next((constant for constant in added if np.array_equal(constant.value, c)), None) or folded(c, constants)
    return replace(product, operation="add", parents=(product, offset), function=np.add)


def _run(piece: Sequence[ComputationNode], source: ComputationNode, x: Array | None) -> Array:
    """The value of a piece at x. If x is None, its matrix: the values at all unit vectors, with constant terms omitted."""
    values: dict[ComputationNode, Any] = {source: np.eye(source.size, dtype=source.dtype) if x is None else x}
    for node in piece:
        if node.function is None:
            values[node] = node.value
        elif x is None and node.operation == "matmul" and node.parents[0] is source:
            values[node] = node.parents[1].value
        else:
            omitted = x is None and node.operation in ("add", "subtract")
            operands = [
                0 if omitted and parent.function is None and parent is not source else values[parent]
                for parent in node.parents
            ]
            values[node] = node.function(*operands)
    return values[piece[-1]]
