"""Hand-written LoRA in torch: a module, autograd, and an in-place update."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..problem import SCALE, Array, MixedProblem, Problem

torch.set_num_threads(1)


class Layer(nn.Module):
    """``y = x W + b + s (x A) B`` with W and b frozen."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(problem.W.T.copy()))
        self.register_buffer("bias", torch.tensor(problem.b))
        self.A, self.B = nn.Parameter(torch.tensor(problem.A)), nn.Parameter(torch.tensor(problem.B))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias) + SCALE * (x @ self.A) @ self.B


class LoRA:
    """One layer."""

    def __init__(self, problem: Problem) -> None:
        self.layer, self.rate = Layer(problem), problem.rate
        self.x, self.dy = torch.tensor(problem.x, requires_grad=True), torch.tensor(problem.dy)

    def forward(self) -> Array:
        with torch.no_grad():
            return self.layer(self.x).numpy()

    def step(self) -> tuple[Array, Array]:
        y = self.layer(self.x)
        dx, dA, dB = torch.autograd.grad(y, (self.x, self.layer.A, self.layer.B), self.dy)
        with torch.no_grad():
            self.layer.A.sub_(dA, alpha=self.rate)
            self.layer.B.sub_(dB, alpha=self.rate)
        return y.detach().numpy(), dx.numpy()

    def factors(self) -> tuple[Array, Array]:
        return self.layer.A.detach().numpy(), self.layer.B.detach().numpy()


class MixedLoRA:
    """The forward pass gathers the factors of each row, padded to the same rank and stacked, for a batched product.

    The step loops over tasks, because gathering would have to scatter a gradient as large as all factors.
    """

    def __init__(self, problem: MixedProblem) -> None:
        self.problem, self.rate = problem, problem.rate
        self.weight, self.bias = torch.tensor(problem.W.T.copy()), torch.tensor(problem.b)
        self.A = [torch.tensor(A, requires_grad=True) for A in problem.A]
        self.B = [torch.tensor(B, requires_grad=True) for B in problem.B]
        rank = max(A.shape[1] for A in problem.A)
        self.padded_A = torch.tensor(np.stack([np.pad(A, ((0, 0), (0, rank - A.shape[1]))) for A in problem.A]))
        self.padded_B = torch.tensor(np.stack([np.pad(B, ((0, rank - B.shape[0]), (0, 0))) for B in problem.B]))
        self.tasks = torch.tensor(problem.tasks)
        self.x, self.dy = torch.tensor(problem.x, requires_grad=True), torch.tensor(problem.dy)
        self.rows = {task: torch.tensor(rows) for task, rows in problem.present.items()}

    def forward(self) -> Array:
        with torch.no_grad():
            base = linear(self.x, self.weight, self.bias)
            h = torch.bmm(self.x[:, None], self.padded_A[self.tasks])
            return (base + SCALE * torch.bmm(h, self.padded_B[self.tasks])[:, 0]).numpy()

    def step(self) -> tuple[Array, Array]:
        x, groups = self.x, self.rows.items()
        order = torch.cat(list(self.rows.values()))
        parts = [SCALE * (x[rows] @ self.A[task]) @ self.B[task] for task, rows in groups]
        y = linear(x, self.weight, self.bias).index_add(0, order, torch.cat(parts))
        trained = [factor for task in self.rows for factor in (self.A[task], self.B[task])]
        dx, *gradients = torch.autograd.grad(y, [x, *trained], self.dy)
        with torch.no_grad():
            torch._foreach_add_(trained, gradients, alpha=-self.rate)
        return y.detach().numpy(), dx.numpy()

    def factors(self) -> tuple[list[Array], list[Array]]:
        return [A.detach().numpy() for A in self.A], [B.detach().numpy() for B in self.B]
