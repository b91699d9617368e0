"""The input shared by all candidates of a case."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

Array = np.ndarray

SCALE = 2.0
FIT_EPSILON = 1e-3
"""The ε of Adam: so large that elements whose gradient is only rounding do not move by the whole learning rate."""
RANKS = (4, 8, 16)
"""The ranks from which those of many tasks are drawn."""


def normal(rng: np.random.Generator, *shape: int, std: float = 1.0) -> Array:
    return (std * rng.standard_normal(shape)).astype(np.float32)


@dataclass(frozen=True)
class Problem:
    """One LoRA layer, ``y = x W + b + s (x A) B``, a batch, and the gradient of its output."""

    W: Array
    b: Array
    A: Array
    B: Array
    x: Array
    dy: Array
    rate: float

    @classmethod
    def random(cls, batch: int, inputs: int, outputs: int, rank: int) -> Self:
        rng = np.random.default_rng(0)
        W, b = normal(rng, inputs, outputs, std=inputs**-0.5), normal(rng, outputs)
        A, B = normal(rng, inputs, rank, std=inputs**-0.5), normal(rng, rank, outputs, std=outputs**-0.5)
        x, dy = normal(rng, batch, inputs), normal(rng, batch, outputs)
        # A learning rate at which a step clearly changes both factors: the check compares the changes.
        return cls(
            W, b, A, B, x, dy, 0.1 * min(_size(A) / _size(x.T @ (dy @ B.T)), _size(B) / _size((x @ A).T @ dy)) / SCALE
        )

    def slowly(self) -> Self:
        """The problem with a learning rate so small that thousands of timed steps do not diverge."""
        return replace(self, rate=self.rate * 1e-9)

    def with_axes(self, *axes: int) -> Self:
        """The same rows along several axes, such as sentences and tokens."""
        return replace(self, x=self.x.reshape(*axes, -1), dy=self.dy.reshape(*axes, -1))

    @property
    def rank(self) -> int:
        return self.A.shape[1]

    @property
    def step_flops(self) -> int:
        """The operations of two products with W and six with A or B."""
        (batch, inputs), outputs = self.x.shape, self.dy.shape[1]
        return 4 * batch * inputs * outputs + 6 * batch * self.rank * (inputs + outputs)


@dataclass(frozen=True)
class MixedProblem:
    """A base layer with a LoRA for each of many tasks, and a batch with a task for each row."""

    W: Array
    b: Array
    A: Sequence[Array]
    B: Sequence[Array]
    x: Array
    dy: Array
    tasks: Array
    rate: float

    @classmethod
    def random(cls, batch: int, inputs: int, outputs: int, tasks: int, distribution: str = "uniform") -> Self:
        rng = np.random.default_rng(0)
        ranks = np.minimum(rng.choice(RANKS, tasks), min(inputs, outputs))
        weights = np.ones(tasks) if distribution == "uniform" else np.arange(1, tasks + 1) ** -1.1
        return cls(
            normal(rng, inputs, outputs, std=inputs**-0.5),
            normal(rng, outputs),
            [normal(rng, inputs, rank, std=inputs**-0.5) for rank in ranks],
            [normal(rng, rank, outputs, std=outputs**-0.5) for rank in ranks],
            normal(rng, batch, inputs),
            normal(rng, batch, outputs),
            rng.choice(tasks, batch, p=weights / weights.sum()),
            0.02 / batch**0.5 / max(inputs, outputs) ** 0.5,
        )

    def slowly(self) -> Self:
        return replace(self, rate=self.rate * 1e-9)

    @cached_property
    def names(self) -> list[str]:
        """The names of all tasks."""
        return [f"task{number}" for number in range(len(self.A))]

    @cached_property
    def row_names(self) -> list[str]:
        """The name of each row's task."""
        return [self.names[task] for task in self.tasks]

    @cached_property
    def present(self) -> dict[int, Array]:
        """The rows of each task in the batch."""
        return {int(task): np.flatnonzero(self.tasks == task) for task in np.unique(self.tasks)}

    def changes(self, A: Sequence[Array], B: Sequence[Array]) -> dict[str, Array]:
        """The changes of the factors of the tasks present, each concatenated into one array."""
        return {
            "change of A": np.concatenate([(A[task] - self.A[task]).ravel() for task in self.present]),
            "change of B": np.concatenate([(B[task] - self.B[task]).ravel() for task in self.present]),
        }


@dataclass(frozen=True)
class FitProblem:
    """A network of three dense layers with ReLU, as in the demo, a LoRA on each layer, and an epoch of labelled samples."""

    W: list[Array]
    A: list[Array]
    x: Array
    labels: Array
    batch: int
    rate: float

    @classmethod
    def random(cls, sizes: Sequence[int], rank: int, samples: int, batch: int) -> Self:
        rng = np.random.default_rng(0)
        pairs = list(itertools.pairwise(sizes))
        W = [normal(rng, *pair, std=(2 / pair[0]) ** 0.5) for pair in pairs]
        A = [normal(rng, inputs, min(rank, outputs), std=inputs**-0.5) for inputs, outputs in pairs]
        return cls(W, A, normal(rng, samples, sizes[0]), rng.integers(0, sizes[-1], samples), batch, 0.01)

    def slowly(self) -> Self:
        return replace(self, rate=self.rate * 1e-9)

    def answers(self, losses: Sequence[float], A: Sequence[Array], B: Sequence[Array]) -> dict[str, Array]:
        """The losses of an epoch, and the changes of the factors."""
        changes = [after - before for after, before in zip(A, self.A, strict=True)]
        return {
            "losses": np.array(losses, np.float32),
            "change of A": np.concatenate([change.ravel() for change in changes]),
            "B": np.concatenate([each.ravel() for each in B]),
        }


def _size(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array))))
