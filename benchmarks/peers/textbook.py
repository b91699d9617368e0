"""The LoRA formulas transcribed literally to NumPy."""

import numpy as np

from ..problem import SCALE, Array, MixedProblem, Problem

S = np.float32(SCALE)


class LoRA:
    """``y = x W + b + s (x A) B``."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.A, self.B = problem.A.copy(), problem.B.copy()

    def forward(self) -> Array:
        p = self.problem
        return p.x @ p.W + p.b + S * ((p.x @ self.A) @ self.B)

    def step(self) -> tuple[Array, Array]:
        p, A, B, rate = self.problem, self.A, self.B, np.float32(self.problem.rate)
        h = p.x @ A
        y = p.x @ p.W + p.b + S * (h @ B)
        dh = S * (p.dy @ B.T)
        dx = p.dy @ p.W.T + dh @ A.T
        x, h, dh, dy = (array.reshape(-1, array.shape[-1]) for array in (p.x, h, dh, p.dy))
        self.A = A - rate * (x.T @ dh)
        self.B = B - rate * (S * (h.T @ dy))
        return y, dx

    def factors(self) -> tuple[Array, Array]:
        return self.A, self.B


class MixedLoRA:
    """The base for all rows, and the branch of each task for its rows."""

    def __init__(self, problem: MixedProblem) -> None:
        self.problem = problem
        self.A, self.B = [A.copy() for A in problem.A], [B.copy() for B in problem.B]

    def forward(self) -> Array:
        p = self.problem
        y = p.x @ p.W + p.b
        for task in np.unique(p.tasks):
            rows = p.tasks == task
            y[rows] += S * ((p.x[rows] @ self.A[task]) @ self.B[task])
        return y

    def step(self) -> tuple[Array, Array]:
        p, rate = self.problem, np.float32(self.problem.rate)
        y, dx = p.x @ p.W + p.b, p.dy @ p.W.T
        for task in np.unique(p.tasks):
            rows, A, B = p.tasks == task, self.A[task], self.B[task]
            x, dy = p.x[rows], p.dy[rows]
            h, dh = x @ A, S * (dy @ B.T)
            y[rows] += S * (h @ B)
            dx[rows] += dh @ A.T
            self.A[task] = A - rate * (x.T @ dh)
            self.B[task] = B - rate * (S * (h.T @ dy))
        return y, dx

    def factors(self) -> tuple[list[Array], list[Array]]:
        return self.A, self.B
