"""Mixed batches in a graph: the task and the rank of each row become inputs of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from .._typing import Array
from ..adapters import DyLoRAAdapter, MultiLoRAAdapter
from ..base import Layer
from ..errors import NotSupportedError
from ..graph import ComputationNode
from ..graph.node import constant_node, depends_on_input
from ..layers.lora import LoRALayer

TASK, RANK = "task", "rank"
"""The names of the inputs: integers, one for each entry of the first axis."""


def task_branches(x: Array, A: Array, B: Array, task: Array) -> Array:
    """``y_i = (x_i A_t) B_t`` with t the task of row i: the factors of all tasks are stacked, and gathered by index."""
    inner = (1,) * (x.ndim - 2)
    A, B = (factors[task].reshape(*task.shape, *inner, *factors.shape[1:]) for factors in (A, B))
    return np.matmul(np.matmul(x[..., np.newaxis, :], A), B)[..., 0, :]  # (..., 1, in) @ (..., in, r) @ (..., r, out)


def scaled_by_rank(h: Array, scalings: Array, rank: Array) -> Array:
    """``h_i s_r``, with r the rank of row i and s_r row r of the scalings: zero beyond the first r components."""
    inner = (1,) * (h.ndim - 2)
    return h * scalings[rank].reshape(*rank.shape, *inner, -1)


ROW_OPERATIONS = (task_branches, scaled_by_rank)
"""Functions that become several operators, which depend on the number of leading axes."""


def mixed_tasks(layer: Layer) -> list[str]:
    """The tasks of a model, in the order of their indices: those of its first `MultiLoRAAdapter`; all must have the same.

    Raises
    ------
    NotSupportedError
        If the adapters of the model have different tasks.
    """
    tasks: list[str] | None = None
    for inner in layer.walk().values():
        if isinstance(inner, MultiLoRAAdapter):
            found = list(inner.task_adapters)
            tasks = found if tasks is None else tasks
            if set(found) != set(tasks):
                raise NotSupportedError(
                    f"all MultiLoRAAdapters must have the same tasks, but {inner.layer_name} has {', '.join(found)} "
                    f"instead of {', '.join(tasks)}"
                )
    return tasks or []


def with_row_inputs(layer: Layer, graph: ComputationNode) -> ComputationNode:
    """The graph with the branches of all tasks and at all ranks, selected for each row by two more inputs.

    Raises
    ------
    NotSupportedError
        If the model has neither tasks nor ranks to select, or if its adapters have different tasks.
    """
    task, rank, tasks = _input(TASK), _input(RANK), mixed_tasks(layer)
    new: dict[ComputationNode, ComputationNode] = {}
    replaced: dict[ComputationNode, tuple[ComputationNode, Callable[[ComputationNode], ComputationNode]]] = {}
    for path, inner in layer.walk().items():
        prefix = f"{path}." if path else ""
        if isinstance(inner, MultiLoRAAdapter):
            ranks = inner.task_deployment_ranks
            branches = [_deployed(inner.get_task_adapter(name), ranks.get(name)) for name in tasks]
            y, x = _ends(graph, f"{prefix}tasks.{inner.current_task}")
            y_of_all = replace(y, layer=f"{prefix}tasks")
            replaced[y] = x, partial(_of_task, y_of_all, _stacked(y_of_all.layer, branches), task)
        elif isinstance(inner, DyLoRAAdapter):
            y, x = _ends(graph, f"{prefix}lora")
            replaced[y] = x, partial(_at_rank, y, _ranked(f"{prefix}lora", inner.lora_layer), rank)
    if not replaced:
        raise NotSupportedError("adapters='mixed' needs a MultiLoRAAdapter or a DyLoRAAdapter")
    for node in graph.nodes():
        if node in replaced:
            x, branch = replaced[node]
            new[node] = branch(new[x])
        else:
            new[node] = replace(node, parents=tuple(new[parent] for parent in node.parents))
    return new[graph]


def _input(name: str) -> ComputationNode:
    return ComputationNode("input", (...,), np.dtype(np.int64), name=name)


def _ends(graph: ComputationNode, path: str) -> tuple[ComputationNode, ComputationNode]:
    """The output and the input of the layer at a path."""
    inside = [node for node in graph.nodes() if node.layer == path]
    operands = (parent for node in inside for parent in node.parents)
    return inside[-1], next(parent for parent in operands if depends_on_input(parent) and parent not in inside)


def _stacked(path: str, branches: Sequence[LoRALayer]) -> list[ComputationNode]:
    """A and s B of all tasks, (tasks + 1, in, r) and (tasks + 1, r, out): the largest rank r, and zeros elsewhere.

    The last ones are zero: index -1, which counts from the end, is the base alone.
    """
    first, r, count = branches[0], max(branch.rank for branch in branches), len(branches) + 1
    A = np.zeros((count, first.input_size, r), first.dtype)
    B = np.zeros((count, r, first.output_size), first.dtype)
    for index, branch in enumerate(branches):
        A[index, :, : branch.rank] = branch.matrix_a
        B[index, : branch.rank] = branch.scaling * branch.matrix_b
    return [_named(f"{path}.matrix_a", A), _named(f"{path}.matrix_b", B)]


def _deployed(branch: LoRALayer, rank: int | None) -> LoRALayer:
    return branch if rank is None else branch.at_rank(rank)


def _ranked(path: str, branch: LoRALayer) -> list[ComputationNode]:
    """A, B and a table of scalings: row r has ``scaling_at(r)`` in its first r columns, and zeros beyond."""
    scalings = np.zeros((branch.rank + 1, branch.rank), branch.dtype)
    for rank in range(1, branch.rank + 1):
        scalings[rank, :rank] = branch.scaling_at(rank)
    arrays = {"matrix_a": branch.matrix_a, "matrix_b": branch.matrix_b, "scalings": scalings}
    return [_named(f"{path}.{name}", array) for name, array in arrays.items()]


def _named(name: str, value: Array) -> ComputationNode:
    return replace(constant_node(value), operation="parameter", name=name)


def _of_task(
    y: ComputationNode, factors: Sequence[ComputationNode], task: ComputationNode, x: ComputationNode
) -> ComputationNode:
    return replace(y, operation="task_branches", parents=(x, *factors, task), function=task_branches, options={})


def _at_rank(
    y: ComputationNode, arrays: Sequence[ComputationNode], rank: ComputationNode, x: ComputationNode
) -> ComputationNode:
    A, B, scalings = arrays
    shape = (..., *A.shape[1:])
    h = replace(y, operation="matmul", shape=shape, parents=(x, A), function=np.matmul, options={})
    h = replace(h, operation="scaled_by_rank", parents=(h, scalings, rank), function=scaled_by_rank)
    return replace(y, operation="matmul", parents=(h, B), function=np.matmul, options={})
