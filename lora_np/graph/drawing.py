"""Drawing a graph: as DOT text for Graphviz, and as SVG with a built-in layout."""

from __future__ import annotations

from functools import partial
from html import escape
from itertools import pairwise
from typing import TypeAlias

from .node import ComputationNode, depends_on_input, label, shape_text

FILLS = {"input": "#cfe8cf", "parameter": "#d7e3f7", "constant": "#eeeeee"}
COMPUTED = "#ffffff"

ROW, GAP, HEIGHT = 62, 22, 34
LETTER = 7.3  # width of a character in the font below
SWEEPS = 8
FONT = 'font-family="monospace" font-size="12"'


def to_dot(graph: ComputationNode) -> str:
    """The graph in the Graphviz DOT language: inputs, parameters and constants as boxes, operations as ellipses.

    Parameters
    ----------
    graph : ComputationNode

    Returns
    -------
    str
    """
    nodes = graph.nodes()
    names = {node: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["digraph {"]
    for node in nodes:
        text = f"{label(node)}\\n{shape_text(node.shape)}".replace('"', '\\"')
        shape = "box" if node.function is None else "ellipse"
        fill = FILLS.get(node.operation, COMPUTED)
        lines.append(f'  {names[node]} [label="{text}", shape={shape}, style=filled, fillcolor="{fill}"];')
    lines += [f"  {names[parent]} -> {names[node]};" for node in nodes for parent in node.parents]
    return "\n".join([*lines, "}", ""])


def to_svg(graph: ComputationNode) -> str:
    """The graph as an SVG image, with the inputs at the top and the output at the bottom.

    Parameters
    ----------
    graph : ComputationNode

    Returns
    -------
    str

    Notes
    -----
    A layered drawing (Sugiyama, Tagawa and Toda 1981). Each node is placed below its parents; an edge that spans several
    rows has a bend in each of them. To reduce crossings, rows are sorted by the mean position of their neighbours, in
    repeated sweeps down and up.
    """
    rows, edges = _rows(graph)
    _order(rows, edges)
    places = _places(rows)
    width = max(x + _width(item) / 2 for item, (x, _) in places.items()) + GAP
    height = len(rows) * ROW
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" {FONT} text-anchor="middle">']
    parts.append(f'<rect width="{width:.0f}" height="{height}" fill="#ffffff"/>')
    parts += [_edge(places[above], places[below], below) for above, below in edges]
    parts += [_box(item, *places[item]) for item in places if isinstance(item, ComputationNode)]
    return "\n".join([*parts, "</svg>", ""])


class _Bend:
    """A point at which an edge that spans several rows crosses one of them."""


_Item: TypeAlias = ComputationNode | _Bend
_Edges: TypeAlias = list[tuple[_Item, _Item]]


def _rows(graph: ComputationNode) -> tuple[list[list[_Item]], _Edges]:
    """The rows from top to bottom, and the edges between adjacent rows."""
    depths = _depths(graph)
    rows: list[list[_Item]] = [[] for _ in range(max(depths.values()) + 1)]
    edges: _Edges = []
    for node, depth in depths.items():
        rows[depth].append(node)
        for parent in node.parents:
            bends = [_Bend() for _ in range(depths[parent] + 1, depth)]
            for row, bend in enumerate(bends, depths[parent] + 1):
                rows[row].append(bend)
            edges += pairwise([parent, *bends, node])
    return rows, edges


def _depths(graph: ComputationNode) -> dict[ComputationNode, int]:
    """The row of each node: below its parents, and directly above its first use if it does not depend on the input."""
    nodes = graph.nodes()
    depths: dict[ComputationNode, int] = {}
    for node in nodes:
        depths[node] = 1 + max((depths[parent] for parent in node.parents), default=-1)
    lowest: dict[ComputationNode, int] = {}
    for node in reversed(nodes):
        if not depends_on_input(node):
            depths[node] = lowest.get(node, depths[node])
        for parent in node.parents:
            lowest[parent] = min(lowest.get(parent, depths[node]), depths[node] - 1)
    return depths


def _order(rows: list[list[_Item]], edges: _Edges) -> None:
    """Reduce crossings: sort each row by the mean position of its neighbours in the row above, then in the row below."""
    above: dict[_Item, list[_Item]] = {item: [] for row in rows for item in row}
    below: dict[_Item, list[_Item]] = {item: [] for row in rows for item in row}
    for upper, lower in edges:
        above[lower].append(upper)
        below[upper].append(lower)
    for _ in range(SWEEPS):
        for neighbours, sweep in ((above, rows), (below, rows[::-1])):
            for before, row in pairwise(sweep):
                place = {item: (index + 0.5) / len(before) for index, item in enumerate(before)}
                own = {item: (index + 0.5) / len(row) for index, item in enumerate(row)}
                row.sort(key=partial(_mean_place, neighbours, place, own))


def _mean_place(
    neighbours: dict[_Item, list[_Item]], place: dict[_Item, float], own: dict[_Item, float], item: _Item
) -> float:
    places = [place[other] for other in neighbours[item]]
    return sum(places) / len(places) if places else own[item]


def _places(rows: list[list[_Item]]) -> dict[_Item, tuple[float, float]]:
    """The centre of each item, with every row centred in the image."""
    widths = [sum(_width(item) + GAP for item in row) + GAP for row in rows]
    places: dict[_Item, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        x = (max(widths) - widths[number]) / 2 + GAP
        for item in row:
            places[item] = (x + _width(item) / 2, (number + 0.5) * ROW)
            x += _width(item) + GAP
    return places


def _width(item: _Item) -> float:
    if isinstance(item, _Bend):
        return 1
    return LETTER * (max(len(label(item)), len(shape_text(item.shape))) + 2)


def _edge(start: tuple[float, float], end: tuple[float, float], below: _Item) -> str:
    (x1, y1), (x2, y2) = start, end
    stop = y2 if isinstance(below, _Bend) else y2 - HEIGHT / 2
    middle = (y1 + y2) / 2
    path = f"M{x1:.1f},{y1:.1f} C{x1:.1f},{middle:.1f} {x2:.1f},{middle:.1f} {x2:.1f},{stop:.1f}"
    return f'<path d="{path}" fill="none" stroke="#777777"/>'


def _box(node: ComputationNode, x: float, y: float) -> str:
    width, fill = _width(node), FILLS.get(node.operation, COMPUTED)
    corner = HEIGHT / 2 if node.function is not None else 3
    rectangle = (
        f'<rect x="{x - width / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{width:.1f}" height="{HEIGHT}" rx="{corner:g}" '
        f'fill="{fill}" stroke="#333333"/>'
    )
    texts = [
        f'<text x="{x:.1f}" y="{y - 3:.1f}">{escape(label(node))}</text>',
        f'<text x="{x:.1f}" y="{y + 11:.1f}" fill="#777777" font-size="10">{escape(shape_text(node.shape))}</text>',
    ]
    return "\n".join([rectangle, *texts])
