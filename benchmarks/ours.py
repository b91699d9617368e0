"""lora_np as its users call it, in the form that the cases expect."""

from collections.abc import Iterator, Mapping
from functools import partial

from numpy import float32

from lora_np import (
    Adam,
    AdamW,
    DenseLayer,
    FullyConnectedLayer,
    Layer,
    LoRALayer,
    MultiLoRAAdapter,
    Sequential,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    find,
    fit,
    relu,
)
from lora_np.models.adapting import Factory, apply_adapters

from .encoders import EPSILON, RANK, Factors, RoutedSentences, SentenceProblem
from .problem import FIT_EPSILON, SCALE, Array, FitProblem, MixedProblem, Problem

MEMORY = ("lean", "fast", "max")


def variants(contender: type) -> Iterator[tuple[str, partial]]:
    """The default configuration, and variants that pack the frozen weights, which costs memory."""
    for memory in MEMORY:
        yield "lora_np" if memory == "lean" else f"lora_np {memory}", partial(contender, memory=memory)


def frozen_base(W: Array, b: Array) -> DenseLayer:
    base = DenseLayer(*W.shape, dtype=float32, rng=0)
    base.set_parameter("weight", W)
    base.set_parameter("bias", b)
    return base


def _packed(layer: Layer, memory: str) -> None:
    if memory != "lean":
        layer.pack(memory=memory)


class LoRA:
    """One adapter."""

    def __init__(self, problem: Problem, memory: str = "lean") -> None:
        self.problem = problem
        base = frozen_base(problem.W, problem.b)
        self.adapter = StandardLoRAAdapter(base, problem.rank, SCALE * problem.rank, rng=0)
        self.adapter.set_parameter("lora.matrix_a", problem.A)
        self.adapter.set_parameter("lora.matrix_b", problem.B)
        _packed(self.adapter, memory)

    def forward(self) -> Array:
        return self.adapter.predict(self.problem.x)

    def step(self) -> tuple[Array, Array]:
        y = self.adapter.forward(self.problem.x)
        dx = self.adapter.backward(self.problem.dy)
        self.adapter.update_parameters(self.problem.rate)
        return y, dx

    def factors(self) -> tuple[Array, Array]:
        return self.adapter.lora_layer.get_matrix_a(), self.adapter.lora_layer.get_matrix_b()


class Fit:
    """An epoch of `fit`."""

    def __init__(self, problem: FitProblem) -> None:
        self.problem = problem
        *hidden, last = problem.W
        layers = [DenseLayer(*W.shape, relu, dtype=float32, rng=0) for W in hidden]
        base = Sequential([*layers, DenseLayer(*last.shape, dtype=float32, rng=0)])
        for number, W in enumerate(problem.W):
            base.set_parameter(f"{number}.weight", W)
        ranks = {str(number): A.shape[1] for number, A in enumerate(problem.A)}
        self.model = apply_adapters(
            base, {path: partial(StandardLoRAAdapter, rank=rank, rng=0) for path, rank in ranks.items()}
        )
        for number, A in enumerate(problem.A):
            self.model.set_parameter(f"{number}.lora.matrix_a", A)
        self.optimizer = Adam(problem.rate, epsilon=FIT_EPSILON)

    def epoch(self) -> list[float]:
        p = self.problem
        data, loss = (p.x, p.labels), SoftmaxCrossEntropy()
        return fit(self.model, data, loss, self.optimizer, 1, p.batch, shuffle=False, rng=0).step_losses

    def factors(self) -> tuple[list[Array], list[Array]]:
        branches = [adapter.lora_layer for adapter in find(self.model, StandardLoRAAdapter).values()]
        return [branch.get_matrix_a() for branch in branches], [branch.get_matrix_b() for branch in branches]


class MixedLoRA:
    """An adapter with a task for each row."""

    def __init__(self, problem: MixedProblem, memory: str = "lean") -> None:
        self.problem = problem
        branches = {
            name: LoRALayer.from_factors(A, B, SCALE * A.shape[1])
            for name, A, B in zip(problem.names, problem.A, problem.B, strict=True)
        }
        self.adapter = MultiLoRAAdapter.around_tasks(frozen_base(problem.W, problem.b), branches)
        _packed(self.adapter, memory)

    def forward(self) -> Array:
        return self.adapter.predict(self.problem.x, tasks=self.problem.row_names)

    def step(self) -> tuple[Array, Array]:
        y = self.adapter.forward(self.problem.x, tasks=self.problem.row_names)
        dx = self.adapter.backward(self.problem.dy)
        self.adapter.update_parameters(self.problem.rate)
        return y, dx

    def factors(self) -> tuple[list[Array], list[Array]]:
        branches: Mapping = self.adapter.task_adapters
        return [layer.get_matrix_a() for layer in branches.values()], [layer.get_matrix_b() for layer in branches.values()]


def own(model: Layer, memory: str) -> Layer:
    """The model itself, or a copy to pack: packed arrays are packed for every model that shares them."""
    return model if memory == "lean" else model.clone()


class Encoder:
    """A whole encoder."""

    def __init__(self, problem: SentenceProblem, memory: str = "lean") -> None:
        self.ids, self.model = problem.ids, own(problem.encoder.model, memory)
        for layer in find(self.model, FullyConnectedLayer).values():
            _packed(layer, memory)

    def forward(self) -> Array:
        return self.model.predict(self.ids)


def branch(factors: tuple[Array, Array]) -> LoRALayer:
    return LoRALayer.from_factors(*factors, SCALE * RANK)


def with_lora(model: Layer, factors: Factors) -> Layer:
    """The model with a LoRA on each target."""

    def factory(path: str) -> Factory:
        return lambda base: StandardLoRAAdapter.around(base, branch(factors[path]))

    return apply_adapters(model, {path: factory(path) for path in factors})


class AdaptedEncoder:
    """A LoRA on each target, trained with AdamW."""

    def __init__(self, problem: SentenceProblem, memory: str = "lean") -> None:
        self.problem, self.model = problem, with_lora(own(problem.encoder.model, memory), problem.factors).train()
        self.optimizer = AdamW(problem.rate, epsilon=EPSILON)
        _packed(self.model, memory)

    def step(self) -> Array:
        y = self.model.forward(self.problem.ids)
        self.model.backward(self.problem.dy)
        self.model.apply_updates(self.optimizer.updates(self.model))
        return y

    def factors(self) -> Factors:
        adapters = find(self.model, StandardLoRAAdapter)
        return {path: (a.lora_layer.get_matrix_a(), a.lora_layer.get_matrix_b()) for path, a in adapters.items()}


class RoutedEncoder:
    """A LoRA for each task on each target, and a task for each sentence."""

    def __init__(self, problem: RoutedSentences, memory: str = "lean") -> None:
        self.problem = problem

        def factory(path: str) -> Factory:
            branches = {task: branch(factors[path]) for task, factors in problem.factors.items()}
            return lambda base: MultiLoRAAdapter.around_tasks(base, branches)

        factories = {path: factory(path) for path in problem.encoder.adapted}
        self.model = apply_adapters(own(problem.encoder.model, memory), factories)
        _packed(self.model, memory)

    def forward(self) -> Array:
        return self.model.predict(self.problem.ids, tasks=self.problem.tasks)
