"""`MixedBranch`: the branch of a mixed batch, in which each row has its own task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np

from .._typing import Array, Gradients
from ..kernels import FactorMemory, multiply_twice, outer_each, outer_rows
from ..layers.dropout import Mask, drawn_mask, masked
from ..layers.lora import LoRALayer
from ..run import Run, Tasks
from .task_groups import TaskGroups
from .task_slices import Slice


class MixedCache(NamedTuple):
    """The cache for `MixedBranch.vjp`, with the rows in the order of the groups."""

    x_rows: Array
    groups: TaskGroups
    bounds: list[int]
    hs: list[Array]
    scaling: Array
    mask: Mask | None


@final
class MixedBranch:
    """``y_i = s_t (x_i A_t) B_t``, with t the task of row i; zero for rows without a task.

    Parameters
    ----------
    tasks : Tasks
        The task of each entry of the first axis.
    branches : sequence of LoRALayer, Slice or None
        The branch of each task, or its leading components; None for no task.
    memory : FactorMemory
        The memory of the adapter, which holds the factors of its branches.
    has_dropout : bool
        Whether to look for branches with dropout: each row is masked with the probability of its task.

    Notes
    -----
    The batch is sorted by task, unless it is sorted already, so that the rows of each task are one slice and cost two small
    products. Small tasks with few rows form stacks, whose products are one call for all of their tasks: see `TaskGroups`.
    Rows without a task form a task of rank 0, whose products are zero. The scalings multiply whole rows, in one operation
    for all tasks. With G = dL/dY, for the rows of each task::

        G' = s G
        dB = (X A)ᵀ G',  dH = G' Bᵀ,  dA = Xᵀ dH,  dX = dH Aᵀ
    """

    def __init__(
        self, tasks: Tasks, branches: Sequence[LoRALayer | Slice | None], memory: FactorMemory, has_dropout: bool
    ) -> None:
        self._tasks, self._branches, self._memory, self._has_dropout = tasks, branches, memory, has_dropout

    def apply(
        self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0
    ) -> tuple[Array, MixedCache]:
        """``h = x A``, ``y = s h B`` with the factors of each row's task; `rank` is in the branches already."""
        mask = self._mask(x.shape, run) if self._has_dropout and run.training else None
        x = x if mask is None else mask(x)
        shape, inner = x.shape, math.prod(x.shape[1:-1])
        groups = TaskGroups.of(self._tasks, self._branches, self._memory)
        scaling = groups.scaling.repeat(inner)[:, None]
        dtype = np.result_type(x, *groups.dtypes)
        x_rows = groups.together(x).astype(dtype, copy=False)
        y_rows = np.empty((len(x_rows), self._memory.sizes[1]), dtype)
        bounds = groups.bounds(inner)
        # For each group, h = x A: (rows, in) @ (in, r) -> (rows, r), and y = h B: (rows, r) @ (r, out) -> (rows, out).
        hs = multiply_twice(x_rows, bounds, groups.factors(), y_rows)
        y_rows *= scaling
        return groups.apart(y_rows, shape), MixedCache(x_rows, groups, bounds, hs, scaling, mask)

    def vjp(
        self, dy: Array, cache: MixedCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dB = hᵀ (s dy)``, ``dh = (s dy) Bᵀ``, ``dA = xᵀ dh``, ``dx = dh Aᵀ`` for the rows of each task present."""
        x_rows, groups, bounds, hs, scaling, mask = cache
        dy_rows = (groups.together(dy) * scaling).astype(np.result_type(dy, x_rows), copy=False)
        dx_rows = np.empty_like(x_rows, dy_rows.dtype) if inputs else None
        # For each group, dh = g Bᵀ: (rows, out) @ (out, r) -> (rows, r), and dx = dh Aᵀ: (rows, r) @ (r, in) -> (rows, in).
        dhs = multiply_twice(dy_rows, bounds, ((B.mT, A.mT) for A, B in groups.factors()), dx_rows)
        gradients: Gradients = {}
        if parameters:
            counts = [stack.counts for stack in groups.stacks]
            # One block of memory for all tasks: allocating many arrays takes several times as long, and after the step the
            # allocator may return the memory of a few to the system, so that the next pass waits for new pages.
            ranks, sizes = outer_rows(hs, counts), self._memory.sizes
            memory, split = np.empty(ranks * sum(sizes), dy_rows.dtype), ranks * sizes[0]
            out_a, out_b = memory[:split].reshape(ranks, sizes[0]), memory[split:].reshape(ranks, sizes[1])
            dAs = outer_each(dhs, x_rows, bounds, counts, out_a)  # for each task, (r, rows) @ (rows, in) -> (r, in)
            dBs = outer_each(hs, dy_rows, bounds, counts, out_b)  # (r, rows) @ (rows, out) -> (r, out)
            gradients = groups.named(dAs, dBs)
        dx = None if dx_rows is None else groups.apart(dx_rows, dy.shape)
        return masked(dx, mask), gradients

    def _mask(self, shape: tuple[int, ...], run: Run) -> Mask | None:
        """The mask of all rows, each with the probability of its task; the key is that of the first task with dropout."""
        first = next((branch for branch in self._branches if branch is not None and branch.dropout), None)
        if first is None:
            return None
        of_tasks = np.array([0.0 if branch is None else branch.dropout for branch in self._branches], self._memory.dtype)
        of_rows = of_tasks[self._tasks.codes].reshape(-1, *[1] * (len(shape) - 1))
        return drawn_mask(shape, of_rows, run, first.dropout_state[0])
