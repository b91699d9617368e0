"""The branch of a mixed batch, in which every row has a task of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, final

import numpy as np

from .._typing import Array, Cache, Gradients, Parts, Tasks
from ..layers.lora import LoRALayer


class Segment(NamedTuple):
    """The rows of one task, which stand together once the batch is sorted, and that task's factors."""

    task: str | None
    start: int
    stop: int
    A: Array
    B: Array


@final
class MixedBranch:
    """``y_i = s_t (x_i A_t) B_t``, with t the task of row i; zero where it has none.

    Parameters
    ----------
    tasks : tuple of str or None
        The task of each entry of the first axis.
    branches : mapping of LoRALayer
        By task; it must hold those of `tasks`.
    like : LoRALayer
        Any layer of the branches' sizes and dtype.

    Notes
    -----
    The batch is sorted by task, so that each task's rows are one slice and cost two small products; a batch that is sorted
    already is not moved. A row without a task belongs to a task of rank 0, whose products are zeros. The scalings multiply
    whole rows, which is one operation for all tasks. With G = dL/dY, for the rows of each task::

        G' = s G
        dB = (X A)ᵀ G',  dH = G' Bᵀ,  dA = Xᵀ dH,  dX = dH Aᵀ
    """

    def __init__(self, tasks: Tasks, branches: Mapping[str, LoRALayer], like: LoRALayer) -> None:
        present = dict.fromkeys(tasks) or {None: None}
        number = {task: i for i, task in enumerate(present)}
        numbers = np.array([number[task] for task in tasks], dtype=np.intp)
        counts = np.bincount(numbers, minlength=len(present))
        stops = counts.cumsum().tolist()
        nothing = like.matrix_a[:, :0], like.matrix_b[:0]

        self._segments: list[Segment] = []
        scalings = []
        start = 0
        for task, stop in zip(present, stops, strict=True):
            branch = None if task is None else branches[task]
            A, B = nothing if branch is None else (branch.matrix_a, branch.matrix_b)
            scalings.append(0.0 if branch is None else branch.scaling)
            self._segments.append(Segment(task, start, stop, A, B))
            start = stop
        self._scaling = np.array(scalings, like.dtype).repeat(counts)  # a column of float64 would make a float32 pass float64
        self._order: Array | None = None
        if (numbers[1:] < numbers[:-1]).any():
            self._order = numbers.argsort(kind="stable")
            self._inverse = np.empty_like(self._order)
            self._inverse[self._order] = np.arange(len(numbers))

    def apply(
        self, x: Array, *, training: bool = False, rank: int | None = None, trained_from: int = 0
    ) -> tuple[Array, Cache]:
        """``h = x A``, ``y = s h B`` with the factors of each row's task, at their full rank."""
        k = math.prod(x.shape[1:-1])  # rows of the product for each entry of the first axis
        x_rows = self._sorted(x)
        hs, ys = [], []
        for _, start, stop, A, B in self._segments:
            h = x_rows[start * k : stop * k].dot(A)  # (rows, in) @ (in, r) -> (rows, r)
            ys.append(h.dot(B))  # (rows, r) @ (r, out) -> (rows, out)
            hs.append(h)
        y = np.concatenate(ys)
        y *= self._scaling.repeat(k)[:, None]
        return self._unsorted(y, x.shape), (x_rows, hs, k)

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dB = hᵀ (s dy)``, ``dh = (s dy) Bᵀ``, ``dA = xᵀ dh``, ``dx = dh Aᵀ`` for the rows of each task present."""
        x_rows, hs, k = cache
        dy_rows = self._sorted(dy) * self._scaling.repeat(k)[:, None]
        gradients, dxs = {}, []
        for (task, start, stop, A, B), h in zip(self._segments, hs, strict=True):
            g = dy_rows[start * k : stop * k]
            dh = g.dot(B.T)  # (rows, out) @ (out, r) -> (rows, r)
            if parameters and task is not None:
                dA_transposed = dh.T.dot(x_rows[start * k : stop * k])  # (r, rows) @ (rows, in) -> (r, in)
                gradients[f"{task}.matrix_a"] = dA_transposed.T
                gradients[f"{task}.matrix_b"] = h.T.dot(g)  # (r, rows) @ (rows, out) -> (r, out)
            if inputs:
                dxs.append(dh.dot(A.T))  # (rows, r) @ (r, in) -> (rows, in)
        dx = self._unsorted(np.concatenate(dxs), (*dy.shape[:-1], x_rows.shape[-1])) if inputs else None
        return dx, gradients

    def active_parts(self, cache: Cache) -> Parts:
        """Every array of a task present trains whole."""
        return {}

    def _sorted(self, x: Array) -> Array:
        """The rows, those of each task together: (rows, ..., size) -> (all rows, size)."""
        x = x if self._order is None else x.take(self._order, axis=0)
        return x.reshape(-1, x.shape[-1])

    def _unsorted(self, y: Array, shape: tuple[int, ...]) -> Array:
        """Rows in the order of the caller, with the leading axes of a shape."""
        y = y.reshape(*shape[:-1], y.shape[-1])
        return y if self._order is None else y.take(self._inverse, axis=0)
