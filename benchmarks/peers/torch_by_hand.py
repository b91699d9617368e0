"""Hand-written LoRA in torch: a module, autograd, and an in-place update."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..problem import FIT_EPSILON, SCALE, Array, FitProblem, MixedProblem, Problem

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


class FitLayer(nn.Module):
    """``y = x W + (x A) B`` with W frozen, as a linear layer."""

    def __init__(self, W: Array, A: Array) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(W.T.copy()))
        self.register_buffer("bias", torch.zeros(W.shape[1]))
        self.A, self.B = nn.Parameter(torch.tensor(A)), nn.Parameter(torch.zeros(A.shape[1], W.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias) + (x @ self.A) @ self.B


class Epochs:
    """The loop over the batches of an epoch, with Adam fused, which is its fastest form."""

    def __init__(self, problem: FitProblem, model: nn.Module, *, fused: bool = True) -> None:
        self.model, self.batch, self.loss = model, problem.batch, nn.CrossEntropyLoss()
        self.x, self.labels = torch.tensor(problem.x), torch.tensor(problem.labels)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, problem.rate, eps=FIT_EPSILON, **({"fused": True} if fused else {}))

    def epoch(self) -> list[float]:
        losses, order = [], torch.arange(len(self.x))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            self.optimizer.zero_grad()
            loss = self.loss(self.model(self.x[rows]), self.labels[rows])
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses


class Fit(Epochs):
    """Hand-written layers."""

    def __init__(self, problem: FitProblem) -> None:
        self.layers = [FitLayer(W, A) for W, A in zip(problem.W, problem.A, strict=True)]
        first, *others = self.layers
        super().__init__(problem, nn.Sequential(first, *(part for layer in others for part in (nn.ReLU(), layer))))

    def factors(self) -> tuple[list[Array], list[Array]]:
        return [layer.A.detach().numpy() for layer in self.layers], [layer.B.detach().numpy() for layer in self.layers]


class MixedLoRA:
    """The factors of each row are gathered, padded to the same rank and stacked, for a batched product.

    The step gathers those of the tasks present first, because the gradient of a gather is as large as what it gathers from.
    """

    def __init__(self, problem: MixedProblem) -> None:
        self.problem, self.rate = problem, problem.rate
        self.weight, self.bias = torch.tensor(problem.W.T.copy()), torch.tensor(problem.b)
        self.ranks = [A.shape[1] for A in problem.A]
        rank = max(self.ranks)
        self.A = torch.tensor(np.stack([np.pad(A, ((0, 0), (0, rank - A.shape[1]))) for A in problem.A]))
        self.B = torch.tensor(np.stack([np.pad(B, ((0, rank - B.shape[0]), (0, 0))) for B in problem.B]))
        self.tasks = torch.tensor(problem.tasks)
        self.x, self.dy = torch.tensor(problem.x, requires_grad=True), torch.tensor(problem.dy)

    def output(self, A: Tensor, B: Tensor, tasks: Tensor) -> Tensor:
        h = torch.bmm(self.x[:, None], A[tasks])
        return linear(self.x, self.weight, self.bias) + SCALE * torch.bmm(h, B[tasks])[:, 0]

    def forward(self) -> Array:
        with torch.no_grad():
            return self.output(self.A, self.B, self.tasks).numpy()

    def step(self) -> tuple[Array, Array]:
        present, tasks = torch.unique(self.tasks, return_inverse=True)
        A, B = self.A[present].requires_grad_(), self.B[present].requires_grad_()
        y = self.output(A, B, tasks)
        dx, dA, dB = torch.autograd.grad(y, (self.x, A, B), self.dy)
        self.A.index_add_(0, present, dA, alpha=-self.rate)
        self.B.index_add_(0, present, dB, alpha=-self.rate)
        return y.detach().numpy(), dx.numpy()

    def factors(self) -> tuple[list[Array], list[Array]]:
        A = [A[:, :rank].numpy() for A, rank in zip(self.A, self.ranks, strict=True)]
        return A, [B[:rank].numpy() for B, rank in zip(self.B, self.ranks, strict=True)]
