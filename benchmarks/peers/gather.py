"""Mixed batches in plain NumPy: the factors of each row are gathered from stacks, padded to the same rank."""

import numpy as np

from ..problem import SCALE, Array, MixedProblem

S = np.float32(SCALE)


class MixedLoRA:
    """Factors of all tasks in two arrays, Aᵀ and B, of shapes (tasks, r, in) and (tasks, r, out)."""

    def __init__(self, problem: MixedProblem) -> None:
        self.problem = problem
        self.ranks = [B.shape[0] for B in problem.B]
        rank = max(self.ranks)
        self.A = np.stack([np.pad(A.T, ((0, rank - A.shape[1]), (0, 0))) for A in problem.A])
        self.B = np.stack([np.pad(B, ((0, rank - B.shape[0]), (0, 0))) for B in problem.B])
        self.numbers = {name: number for number, name in enumerate(problem.names)}

    def tasks(self) -> Array:
        """The number of each row's task."""
        names = self.problem.row_names
        return np.fromiter(map(self.numbers.__getitem__, names), np.intp, len(names))

    def forward(self) -> Array:
        p, tasks = self.problem, self.tasks()
        h = S * np.matmul(self.A[tasks], p.x[:, :, None])[:, :, 0]
        y = np.matmul(h[:, None], self.B[tasks])[:, 0]
        y += p.x @ p.W
        y += p.b
        return y

    def step(self) -> tuple[Array, Array]:
        p, tasks, rate = self.problem, self.tasks(), np.float32(self.problem.rate)
        A, B = self.A[tasks], self.B[tasks]
        h = S * np.matmul(A, p.x[:, :, None])[:, :, 0]
        y = np.matmul(h[:, None], B)[:, 0]
        y += p.x @ p.W
        y += p.b
        dh = S * np.matmul(B, p.dy[:, :, None])[:, :, 0]
        dx = np.matmul(dh[:, None], A)[:, 0]
        dx += p.dy @ p.W.T
        # `subtract.at` adds up the gradients of rows of the same task, as an assignment would not.
        np.subtract.at(self.A, tasks, rate * (dh[:, :, None] * p.x[:, None]))
        np.subtract.at(self.B, tasks, rate * (h[:, :, None] * p.dy[:, None]))
        return y, dx

    def factors(self) -> tuple[list[Array], list[Array]]:
        A = [A[:rank].T for A, rank in zip(self.A, self.ranks, strict=True)]
        return A, [B[:rank] for B, rank in zip(self.B, self.ranks, strict=True)]
