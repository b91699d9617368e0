"""The rows of a mixed batch by task and rank: the leading components of the tasks' branches as separate branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .._typing import Array, Gradients
from ..layers.lora import LoRALayer
from ..run import Run, Tasks
from .task_ranks import TaskRanks


class Slice(NamedTuple):
    """The first components of a branch, without a copy; a pass skips the gradients of the first `trained_from` of them."""

    layer: LoRALayer
    rank: int
    trained_from: int
    place: None = None
    """The memory of the tasks gathers whole branches only."""

    @property
    def matrix_a(self) -> Array:
        """The first columns of A, shape (input_size, rank)."""
        return self.layer.matrix_a[:, : self.rank]

    @property
    def matrix_b(self) -> Array:
        """The first rows of B, shape (rank, output_size)."""
        return self.layer.matrix_b[: self.rank]

    @property
    def scaling(self) -> float:
        """The scaling of the branch at this rank."""
        return self.layer.scaling_at(self.rank)

    @property
    def dropout(self) -> float:
        """That of the branch."""
        return self.layer.dropout

    @property
    def dropout_state(self) -> tuple[int, int]:
        """That of the branch."""
        return self.layer.dropout_state


def by_rank(
    tasks: Tasks, branches: Sequence[LoRALayer | None], ranks: Sequence[TaskRanks | None], run: Run
) -> tuple[Tasks, list[LoRALayer | Slice | None]]:
    """Split the rows of each task that has ranks by their rank.

    Parameters
    ----------
    tasks : Tasks
    branches, ranks : sequences
        The branch and the ranks of each task; None if it has none.
    run : Run

    Returns
    -------
    Tasks
        The same rows. The name of a task whose rows have several ranks occurs once for each of them.
    list
        The branch of each name at its rank.
    """
    names, codes = list(tasks.names), tasks.codes.copy()
    found: list[LoRALayer | Slice | None] = list(branches)
    for task, (branch, own) in enumerate(zip(branches, ranks, strict=True)):
        if branch is None or own is None:
            continue
        rank = own.rank_in(run)
        if not isinstance(rank, np.ndarray):
            found[task] = _slice(branch, rank, own.trained_from(rank))
            continue
        here = (tasks.codes == task).nonzero()[0]
        first, *others = np.unique(rank[here]).tolist() or [branch.rank]  # a task of empty sequences has no rows
        found[task] = Slice(branch, first, 0) if others else _slice(branch, first, 0)
        for each in others:
            codes[here[rank[here] == each]] = len(names)
            names.append(names[task])
            found.append(Slice(branch, each, 0))
    return (tasks if len(names) == len(tasks.names) else Tasks.coded(tuple(names), codes)), found


def _slice(branch: LoRALayer, rank: int, trained_from: int) -> LoRALayer | Slice:
    """A slice, or the branch itself, which may be gathered, if the pass uses and trains all of it."""
    return branch if rank == branch.rank and not trained_from else Slice(branch, rank, trained_from)


def add_gradients(gradients: Gradients, name: str, slice_: Slice, dA: Array, dB: Array) -> None:
    """Add the gradients of a slice of a branch to those of its task, which are zero where no slice trains."""
    layer, parts = slice_.layer, LoRALayer.parts(slice_.trained_from, slice_.rank)
    factors = {"matrix_a": (layer.matrix_a, parts[0], dA), "matrix_b": (layer.matrix_b, parts[1], dB)}
    for key, (factor, part, gradient) in factors.items():
        whole = gradients.setdefault(f"{name}.{key}", np.zeros_like(factor, gradient.dtype))
        whole[part] += gradient[part]
