"""PEFT as its users write it, in eager float32; the adapted layer is called directly, without the model around it."""

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from ..encoders import EPSILON, RANK, TARGETS, Factors, RoutedSentences, SentenceProblem
from ..problem import SCALE, Array, FitProblem, MixedProblem, Problem
from .torch_by_hand import Epochs
from .with_transformers import bert, inputs

torch.set_num_threads(1)


class Net(nn.Module):
    """One linear layer."""

    def __init__(self, W: Array, b: Array) -> None:
        super().__init__()
        self.linear = nn.Linear(*W.shape)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor(W.T.copy()))
            self.linear.bias.copy_(torch.tensor(b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def config(rank: int, *targets: str) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=list(targets or ("linear",)), lora_dropout=0.0)


def set_factors(layer: nn.Module, name: str, A: Array, B: Array) -> None:
    with torch.no_grad():
        layer.lora_A[name].weight.copy_(torch.tensor(A.T.copy()))
        layer.lora_B[name].weight.copy_(torch.tensor(B.T.copy()))


def get_factors(layer: nn.Module, name: str) -> tuple[Array, Array]:
    return layer.lora_A[name].weight.detach().numpy().T, layer.lora_B[name].weight.detach().numpy().T


class LoRA:
    """An adapter from `get_peft_model`, trained with SGD."""

    def __init__(self, problem: Problem) -> None:
        self.layer = get_peft_model(Net(problem.W, problem.b), config(problem.rank)).base_model.model.linear
        set_factors(self.layer, "default", problem.A, problem.B)
        self.x, self.dy = torch.tensor(problem.x, requires_grad=True), torch.tensor(problem.dy)
        self.optimizer = torch.optim.SGD([p for p in self.layer.parameters() if p.requires_grad], lr=problem.rate)

    def forward(self) -> Array:
        with torch.no_grad():
            return self.layer(self.x).numpy()

    def step(self) -> tuple[Array, Array]:
        self.x.grad = None
        y = self.layer(self.x)
        y.backward(self.dy)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return y.detach().numpy(), self.x.grad.numpy()

    def factors(self) -> tuple[Array, Array]:
        return get_factors(self.layer, "default")


class Fit(Epochs):
    """A model from `get_peft_model`, trained with Adam as constructed by default."""

    def __init__(self, problem: FitProblem) -> None:
        layers = [nn.Linear(*W.shape) for W in problem.W]
        with torch.no_grad():
            for layer, W in zip(layers, problem.W, strict=True):
                layer.weight.copy_(torch.tensor(W.T.copy()))
                layer.bias.zero_()
        first, *others = layers
        model = nn.Sequential(first, *(part for layer in others for part in (nn.ReLU(), layer)))
        rank = max(A.shape[1] for A in problem.A)
        names = [str(2 * number) for number in range(len(layers))]
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, rank_pattern=self._ranks(problem))
        lora.alpha_pattern = dict(lora.rank_pattern)
        self.model = get_peft_model(model, lora)
        self.adapted = [self.model.base_model.model[2 * number] for number in range(len(layers))]
        for layer, A, W in zip(self.adapted, problem.A, problem.W, strict=True):
            set_factors(layer, "default", A, np.zeros((A.shape[1], W.shape[1]), np.float32))
        super().__init__(problem, self.model, fused=False)

    @staticmethod
    def _ranks(problem: FitProblem) -> dict[str, int]:
        return {str(2 * number): A.shape[1] for number, A in enumerate(problem.A)}

    def factors(self) -> tuple[list[Array], list[Array]]:
        pairs = [get_factors(layer, "default") for layer in self.adapted]
        return [A for A, _ in pairs], [B for _, B in pairs]


class MixedLoRA:
    """The forward pass uses `adapter_names`; PEFT cannot train on mixed batches, so a step runs one sub-batch per task.

    The model contains only the tasks in the batch: others would not cost anything except the time to set them up.
    """

    def __init__(self, problem: MixedProblem) -> None:
        self.problem = problem
        first, *others = problem.present
        ranks = [A.shape[1] for A in problem.A]
        model = get_peft_model(Net(problem.W, problem.b), config(ranks[first]), adapter_name=problem.names[first])
        self.layer = model.base_model.model.linear
        for task in others:
            # What add_adapter does to the layer; add_adapter itself takes minutes for hundreds of tasks.
            self.layer.update_layer(problem.names[task], ranks[task], SCALE * ranks[task], config(ranks[task]))
        for task in problem.present:
            set_factors(self.layer, problem.names[task], problem.A[task], problem.B[task])
        model.eval()
        self.x, self.dy = torch.tensor(problem.x), torch.tensor(problem.dy)
        self.groups = {problem.names[task]: torch.tensor(rows) for task, rows in problem.present.items()}
        factors = [f for name in self.groups for f in (self.layer.lora_A[name].weight, self.layer.lora_B[name].weight)]
        for factor in factors:
            factor.requires_grad_(True)
        self.optimizer = torch.optim.SGD(factors, lr=problem.rate)

    def forward(self) -> Array:
        with torch.no_grad():
            return self.layer(self.x, adapter_names=self.problem.row_names).numpy()

    def step(self) -> tuple[Array, Array]:
        x = self.x.detach().requires_grad_(True)
        y = torch.empty_like(self.dy)
        for name, rows in self.groups.items():
            # What set_adapter does, without looping over all adapters to freeze and unfreeze them.
            self.layer._active_adapter = [name]
            part = self.layer(x[rows])
            part.backward(self.dy[rows])
            y[rows] = part.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return y.numpy(), x.grad.numpy()

    def factors(self) -> tuple[list[Array], list[Array]]:
        As, Bs = list(self.problem.A), list(self.problem.B)
        for task in self.problem.present:
            As[task], Bs[task] = get_factors(self.layer, self.problem.names[task])
        return As, Bs


class Tasks:
    """A model with many tasks, to which one more is added and then removed."""

    def __init__(self, W: Array, b: Array, tasks: int, rank: int) -> None:
        self.rank = rank
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about a second adapter on the same layer
            self.model = get_peft_model(Net(W, b), config(rank), adapter_name="task0")
            for number in range(1, tasks):
                self.model.add_adapter(f"task{number}", config(rank))

    def add_and_remove(self) -> None:
        self.model.add_adapter("new", config(self.rank))
        self.model.delete_adapter("new")

    def count(self) -> int:
        return len(self.model.peft_config)


def adapted_layers(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    return {path: model.base_model.model.get_submodule(path) for path in paths}


class AdaptedEncoder:
    """Hugging Face's encoder with an adapter on each target, trained with AdamW."""

    def __init__(self, problem: SentenceProblem) -> None:
        self.model = get_peft_model(bert(problem), config(RANK, *TARGETS)).train()
        self.layers = adapted_layers(self.model, problem.factors)
        for path, factors in problem.factors.items():
            set_factors(self.layers[path], "default", *factors)
        self.inputs, self.dy = inputs(problem), torch.tensor(problem.dy)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, problem.rate, eps=EPSILON, weight_decay=0.01, fused=True)

    def step(self) -> Array:
        y = self.model(**self.inputs).last_hidden_state
        y.backward(self.dy)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return y.detach().numpy()

    def factors(self) -> Factors:
        return {path: get_factors(layer, "default") for path, layer in self.layers.items()}


class RoutedEncoder:
    """The same with an adapter for each task, and `adapter_names`."""

    def __init__(self, problem: RoutedSentences) -> None:
        first, *others = problem.factors
        self.model = get_peft_model(bert(problem), config(RANK, *TARGETS), adapter_name=first)
        for task in others:
            self.model.add_adapter(task, config(RANK, *TARGETS))
        for task, factors in problem.factors.items():
            for path, layer in adapted_layers(self.model, factors).items():
                set_factors(layer, task, *factors[path])
        self.model.eval()
        self.inputs = inputs(problem) | {"adapter_names": problem.tasks}

    def forward(self) -> Array:
        with torch.no_grad():
            return self.model(**self.inputs).last_hidden_state.numpy()
