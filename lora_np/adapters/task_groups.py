"""`TaskGroups`: which tasks of a mixed batch are multiplied one at a time, and which together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from .._typing import Array, Gradients
from ..kernels import FactorMemory
from ..layers.lora import LoRALayer
from ..run import Tasks, sorting
from .task_slices import Slice, add_gradients

STACK = 16
"""The smallest number of tasks that are gathered."""
FEW_ENTRIES = 2
"""The largest number of entries of a task that is gathered."""
GATHERED_BYTES = 2**15
"""The largest size of the factors of a task that is gathered. With larger ones, products of single tasks are faster."""


class Stack(NamedTuple):
    """Tasks of one rank, whose factors are gathered for each entry."""

    rank: int
    counts: Array
    """The number of entries of each task, ascending."""
    places: Array
    """The place of the factors of each entry."""


class TaskGroups(NamedTuple):
    """The tasks of a mixed batch in groups, each of which takes one product: stacks of tasks, and then single tasks.

    A task is in the stack of its rank if its factors, once for each entry, have at most `GATHERED_BYTES`, and if the stack
    has at least `STACK` tasks: the factors of the stack's entries are gathered, and the stack is multiplied in one call. A
    single task is multiplied by its factors where they are, all of its rows at once. So are the leading components of a
    task, for each of their numbers.
    """

    tasks: Tasks
    branches: Sequence[LoRALayer | Slice | None]
    """The branch of each task. As long as a branch exists, its factors stay where they are."""
    by_group: Array | None
    """The tasks in the order of the groups, as indices; None if this is their order."""
    stacks: list[Stack]
    counts: Array
    """The number of entries of each single task."""
    singles: list[tuple[Array, Array]]
    """The factors of the single tasks."""
    dtypes: set[np.dtype[Any]]
    """The dtypes of all factors."""
    memory: FactorMemory
    scaling: Array
    """The scaling of each entry, in the order of the groups."""
    order: Array | None
    """The entries in the order of the groups; None if they are in this order already."""
    inverse: Array | None
    """The position of each entry in `order`."""

    @classmethod
    def of(cls, tasks: Tasks, branches: Sequence[LoRALayer | Slice | None], memory: FactorMemory) -> Self:
        """The groups of tasks, of which each has the given branch."""
        places = [None if layer is None else layer.place for layer in branches]
        numbered = [0 if place is None or place[0] is not memory else place[1] for place in places]
        numbers = np.array(numbered, np.intp)
        # In the layers' dtype: float64 scalings would promote float32 rows to float64.
        scalings, dtypes = memory.scalings[numbers].astype(memory.dtype), {memory.dtype}
        for task in (numbers == 0).nonzero()[0].tolist() if 0 in numbered else ():
            layer = branches[task]
            scalings[task] = 1.0 if layer is None else layer.scaling
            dtypes |= set() if layer is None else {layer.matrix_a.dtype, layer.matrix_b.dtype}
        by_group, stacks, stacked, counts, singles = None, [], 0, tasks.counts, branches
        order, inverse = tasks.order, tasks.inverse
        ranks = _ranks_of_stacks(counts, numbers, memory)
        if ranks is not None:
            # By rank and number of entries; single tasks, of rank 0, come last.
            by_group = (counts - ranks * (counts.max() + 1)).argsort(kind="stable")
            stacked = int(np.count_nonzero(ranks))
            counts, scalings = counts[by_group], scalings[by_group]
            stacks = _stacks(numbers[by_group[:stacked]], counts[:stacked], ranks[by_group[:stacked]])
            singles = [branches[task] for task in by_group[stacked:].tolist()]
            position = np.empty_like(by_group)
            position[by_group] = np.arange(len(by_group))
            order, inverse = sorting(position[tasks.codes])
        (inputs, outputs), dtype = memory.sizes, memory.dtype
        nothing = np.empty((inputs, 0), dtype), np.empty((0, outputs), dtype)
        pairs = [nothing if layer is None else (layer.matrix_a, layer.matrix_b) for layer in singles]
        scaling, counts = scalings.repeat(counts), counts[stacked:]
        return cls(tasks, branches, by_group, stacks, counts, pairs, dtypes, memory, scaling, order, inverse)

    def factors(self) -> Iterable[tuple[Array, Array]]:
        """A and B of each group, gathered one stack at a time: (in, r) and (r, out), or one such pair for each entry."""
        stacks = (self.memory.gather(stack.places, stack.rank) for stack in self.stacks)
        return itertools.chain(stacks, self.singles)

    def together(self, x: Array) -> Array:
        """The rows in the order of the groups: (entries, ..., size) -> (rows, size)."""
        x = x if self.order is None else x.take(self.order, axis=0)
        return x.reshape(-1, x.shape[-1])

    def apart(self, y: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `together`: rows in their original order, with the leading axes of `shape`."""
        y = y.reshape(*shape[:-1], y.shape[-1])
        return y if self.inverse is None else y.take(self.inverse, axis=0)

    def bounds(self, inner: int) -> list[int]:
        """Where the rows of each group start, with `inner` rows for each entry, and where the last ones end."""
        sizes = [*[len(stack.places) for stack in self.stacks], *self.counts.tolist()]
        return [inner * stop for stop in itertools.accumulate(sizes, initial=0)]

    def named(self, dAs: list[Array], dBs: list[Array]) -> Gradients:
        """The gradients by name, given those of Aᵀ and B of each group."""
        count = len(self.stacks)
        stacks = itertools.chain(*(zip(dA.mT, dB, strict=True) for dA, dB in zip(dAs[:count], dBs[:count], strict=True)))
        pairs = itertools.chain(stacks, ((dA.T, dB) for dA, dB in zip(dAs[count:], dBs[count:], strict=True)))
        gradients: Gradients = {}
        names = self.tasks.names
        for task, (dA, dB) in zip(
            range(len(names)) if self.by_group is None else self.by_group.tolist(), pairs, strict=True
        ):
            name, branch = names[task], self.branches[task]
            if name is not None and isinstance(branch, Slice):
                add_gradients(gradients, name, branch, dA, dB)
            elif name is not None:
                gradients[f"{name}.matrix_a"], gradients[f"{name}.matrix_b"] = dA, dB
        return gradients


def _ranks_of_stacks(counts: Array, numbers: Array, memory: FactorMemory) -> Array | None:
    """The ranks of all tasks, with rank 0 for single tasks; None without stacks."""
    row_bytes = sum(memory.sizes) * memory.dtype.itemsize
    if len(counts) < STACK or row_bytes > GATHERED_BYTES:
        return None
    is_few = counts <= FEW_ENTRIES
    if np.count_nonzero(is_few) < STACK:
        return None
    ranks = memory.ranks[numbers]
    ranks *= is_few & (ranks <= GATHERED_BYTES // row_bytes)
    sizes = np.bincount(ranks)
    sizes[0] = 0
    return ranks * (sizes[ranks] >= STACK) if sizes.max() >= STACK else None


def _stacks(numbers: Array, counts: Array, ranks: Array) -> list[Stack]:
    """The stacks of tasks that are sorted by rank."""
    bounds = [0, *((ranks[1:] != ranks[:-1]).nonzero()[0] + 1).tolist(), len(ranks)]
    return [
        Stack(int(ranks[start]), counts[start:stop], numbers[start:stop].repeat(counts[start:stop]))
        for start, stop in itertools.pairwise(bounds)
    ]
