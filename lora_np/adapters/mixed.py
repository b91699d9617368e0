"""`MixedBranch`: the branch of a mixed batch, in which each row has its own task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, final

import numpy as np

from .._typing import Array, Gradients
from ..layers.lora import LoRALayer
from ..run import Run, Tasks


class MixedCache(NamedTuple):
    """The cache for `MixedBranch.vjp`, with the rows sorted by task."""

    x_rows: Array
    hs: list[Array]
    stops: list[int]
    scaling: Array


@final
class MixedBranch:
    """``y_i = s_t (x_i A_t) B_t``, with t the task of row i; zero for rows without a task.

    Parameters
    ----------
    tasks : Tasks
        The task of each entry of the first axis, grouped.
    branches : mapping of LoRALayer
        The branches by task; those of `tasks` must be present.
    like : LoRALayer
        Any layer with the sizes and dtype of the branches.

    Notes
    -----
    The batch is sorted by task, unless it is sorted already, so that the rows of each task are one slice and cost two small
    products. Rows without a task form a task of rank 0, whose products are zero. The scalings multiply whole rows, in one
    operation for all tasks. With G = dL/dY, for the rows of each task::

        G' = s G
        dB = (X A)ᵀ G',  dH = G' Bᵀ,  dA = Xᵀ dH,  dX = dH Aᵀ
    """

    def __init__(self, tasks: Tasks, branches: Mapping[str, LoRALayer], like: LoRALayer) -> None:
        self._output_size = like.output_size
        self._tasks = tasks
        self._stops = tasks.counts.cumsum()
        layers = [None if name is None else branches[name] for name in tasks.names]
        nothing = like.matrix_a[:, :0], like.matrix_b[:0]
        self._factors = [nothing if layer is None else (layer.matrix_a, layer.matrix_b) for layer in layers]
        scalings = [1.0 if layer is None else layer.scaling for layer in layers]
        # In the layers' dtype: float64 scalings would promote float32 rows to float64.
        self._scaling = np.array(scalings, like.dtype).repeat(tasks.counts)

    def apply(
        self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0
    ) -> tuple[Array, MixedCache]:
        """``h = x A``, ``y = s h B`` with the factors of each row's task, at full rank."""
        inner = math.prod(x.shape[1:-1])
        scaling, stops = self._scaling.repeat(inner)[:, None], (inner * self._stops).tolist()
        dtype = np.result_type(x, *{factor.dtype for factors in self._factors for factor in factors})
        x_rows = self._tasks.together(x).astype(dtype, copy=False)
        y_rows = np.empty((len(x_rows), self._output_size), dtype)
        hs, start = [], 0
        for (A, B), stop in zip(self._factors, stops, strict=True):
            h = x_rows[start:stop].dot(A)  # (rows, in) @ (in, r) -> (rows, r)
            h.dot(B, y_rows[start:stop])  # (rows, r) @ (r, out) -> (rows, out)
            hs.append(h)
            start = stop
        y_rows *= scaling
        return self._tasks.apart(y_rows, x.shape), MixedCache(x_rows, hs, stops, scaling)

    def vjp(
        self, dy: Array, cache: MixedCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dB = hᵀ (s dy)``, ``dh = (s dy) Bᵀ``, ``dA = xᵀ dh``, ``dx = dh Aᵀ`` for the rows of each task present."""
        x_rows, hs, stops, scaling = cache
        dy_rows = (self._tasks.together(dy) * scaling).astype(np.result_type(dy, x_rows), copy=False)
        # One block of memory for all tasks, with r rows each: allocating many small arrays takes several times as long.
        ranks = sum(h.shape[1] for h in hs) if parameters else 0
        dAs, dBs = (np.empty((ranks, size), dy_rows.dtype) for size in (x_rows.shape[1], dy_rows.shape[1]))
        dx_rows = np.empty_like(x_rows, dy_rows.dtype) if inputs else None
        gradients = {}
        start = first = 0
        for task, (A, B), stop, h in zip(self._tasks.names, self._factors, stops, hs, strict=True):
            g = dy_rows[start:stop]
            dh = g.dot(B.T)  # (rows, out) @ (out, r) -> (rows, r)
            if parameters and task is not None:
                last = first + h.shape[1]
                dA = dh.T.dot(x_rows[start:stop], dAs[first:last]).T  # ((r, rows) @ (rows, in)).T -> (in, r)
                dB = h.T.dot(g, dBs[first:last])  # (r, rows) @ (rows, out) -> (r, out)
                gradients[f"{task}.matrix_a"], gradients[f"{task}.matrix_b"] = dA, dB
                first = last
            if dx_rows is not None:
                dh.dot(A.T, dx_rows[start:stop])  # (rows, r) @ (r, in) -> (rows, in)
            start = stop
        dx = None if dx_rows is None else self._tasks.apart(dx_rows, (*dy.shape[:-1], x_rows.shape[1]))
        return dx, gradients
