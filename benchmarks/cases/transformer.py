"""A whole transformer: inference, a LoRA training step, a task for each sentence, the activation, the cold start."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from lora_np import FullyConnectedLayer, find, gelu_exact

from .. import ours, processes
from ..encoders import Encoder, RoutedSentences, SentenceProblem, checkpoint, ragged
from ..groups import Group, Row, Settings, contenders, timed
from ..harness import Candidate, Measure
from ..peers import LIBRARIES, PEFT, TRANSFORMERS, is_installed
from ..problem import Array, normal
from .cold_start import alternating

PRODUCTS, ONE, EXPONENTIAL, FORMULA = "its products", "one adapter", "np.exp", "formula"

BIASES = "The bias, the activation and the residual sum are separate passes over memory in NumPy; torch fuses some of them."
REASONS = {TRANSFORMERS: BIASES, PEFT: BIASES}


@cache
def encoder(settings: Settings) -> Encoder:
    return Encoder(settings.model, tiny=settings.quick)


def batches(settings: Settings, *sizes: tuple[int, int]) -> Iterator[tuple[str, Sequence[int] | Array]]:
    """A label and the lengths of the sentences: full batches of the given sizes, and a ragged one."""
    for sentences, tokens in settings.sizes(sizes, [(2, 4)]):
        yield f"{sentences} × {tokens} tokens", [tokens] * sentences
    sentences, longest = (3, 8) if settings.quick else (32, 64)
    lengths = ragged(np.random.default_rng(1), sentences, longest)
    yield f"{sentences} sentences of up to {longest} tokens, {lengths.mean() / longest:.0%} full", lengths


def weights(problem: SentenceProblem, *, backward: bool = False) -> list[Array]:
    """The matrices, (in, out), by which rows must be multiplied; backward, only those above the lowest adapter."""
    layers = find(problem.encoder.model, FullyConnectedLayer)
    if not backward:
        return [layer.matrix for layer in layers.values()]
    lowest = next(iter(problem.factors)).rpartition(".")[0]
    return [layer.matrix.T for path, layer in layers.items() if not path.startswith(lowest)]


def products(problem: SentenceProblem, matrices: Sequence[Array]) -> Candidate:
    """The products of the dense layers alone, as plain `np.matmul`, without padding."""
    rng, widths = np.random.default_rng(2), {size for matrix in matrices for size in matrix.shape}
    x = {width: normal(rng, problem.tokens, width) for width in widths}
    y = {width: np.empty_like(x[width]) for width in widths}

    def run() -> None:
        for matrix in matrices:
            inputs, outputs = matrix.shape
            np.matmul(x[inputs], matrix, out=y[outputs])

    return Candidate(run)


def forward_candidate(make: Callable[[Any], Any], problem: SentenceProblem | RoutedSentences) -> Candidate:
    """Inference. The hidden states of padding, which lora_np sets to zero, are not compared."""
    contender, present = make(problem), problem.ids[..., np.newaxis] >= 0
    return Candidate(contender.forward, lambda: {"y": contender.forward() * present})


def step_candidate(make: Callable[[Any], Any], problem: SentenceProblem) -> Candidate:
    """A training step: forward, backward down to the lowest adapter, and an update by AdamW."""

    def answer() -> dict[str, Array]:
        contender = make(problem)
        y = contender.step() * (problem.ids[..., np.newaxis] >= 0)
        return {"y": y} | problem.changes(contender.factors())

    return Candidate(make(problem.slowly()).step, answer)


def inference_rows(settings: Settings) -> Iterator[Row]:
    for label, lengths in batches(settings, (8, 32), (4, 128), (1, 16)):
        problem = SentenceProblem.random(encoder(settings), lengths)
        candidates: dict[str, Candidate | None] = {PRODUCTS: products(problem, weights(problem))}
        for peer, make in contenders(settings, "Encoder"):
            candidates[peer] = None if make is None else forward_candidate(make, problem)
        yield timed(settings, label, candidates)


def training_rows(settings: Settings) -> Iterator[Row]:
    for label, lengths in batches(settings, (8, 32), (32, 32)):
        problem = SentenceProblem.random(encoder(settings), lengths)
        matrices = weights(problem) + weights(problem, backward=True)
        candidates: dict[str, Candidate | None] = {PRODUCTS: products(problem, matrices)}
        for peer, make in contenders(settings, "AdaptedEncoder", "step"):
            candidates[peer] = None if make is None else step_candidate(make, problem)
        yield timed(settings, label, candidates)


def one_adapter(problem: RoutedSentences) -> Candidate:
    """The encoder with a single LoRA; its answer has the sentences of each task from a separate model."""
    models = {task: ours.with_lora(problem.encoder.model, factors) for task, factors in problem.factors.items()}

    def answer() -> dict[str, Array]:
        results = {task: model.predict(problem.ids) for task, model in models.items()}
        return {"y": np.stack([results[task][row] for row, task in enumerate(problem.tasks)])}

    first = models[problem.tasks[0]]
    return Candidate(lambda: first.predict(problem.ids), answer)


def routed_rows(settings: Settings) -> Iterator[Row]:
    for sentences, tokens, tasks in settings.sizes([(8, 32, 3), (32, 32, 3)], [(4, 4, 3)]):
        problem = RoutedSentences.random(encoder(settings), [tokens] * sentences, tasks)
        candidates: dict[str, Candidate | None] = {ONE: one_adapter(problem)}
        for peer, make in contenders(settings, "RoutedEncoder"):
            candidates[peer] = None if make is None else forward_candidate(make, problem)
        yield timed(settings, f"{sentences} × {tokens} tokens, {tasks} tasks", candidates)


def activation_rows(settings: Settings) -> Iterator[Row]:
    z = normal(np.random.default_rng(3), *((4, 8) if settings.quick else (256, 1536)), std=2)
    one = np.ones_like(z)
    value = {
        "lora_np": Candidate(
            lambda: gelu_exact.value_and_slope(z, slope=False),
            lambda: {"y": gelu_exact.value_and_slope(z, slope=False)[0]},
        ),
        FORMULA: Candidate(lambda: gelu_exact(z), lambda: {"y": gelu_exact(z)}),
    }
    both = {
        "lora_np": Candidate(
            lambda: gelu_exact.value_and_slope(z),
            lambda: dict(zip(("y", "slope"), gelu_exact.value_and_slope(z), strict=True)),
        ),
        FORMULA: Candidate(
            lambda: (gelu_exact(z), gelu_exact.vjp(one, z)), lambda: {"y": gelu_exact(z), "slope": gelu_exact.vjp(one, z)}
        ),
    }
    for label, candidates in (("value", value), ("value and slope", both)):
        yield timed(settings, label, {EXPONENTIAL: Candidate(lambda: np.exp(z))} | candidates)


PROGRAMS = {
    "lora_np": """
from lora_np import load_pretrained
y = load_pretrained(FOLDER).predict([list(range(1, 9))])
""",
    TRANSFORMERS: """
import torch
from transformers import BertModel
torch.set_num_threads(1)
model = BertModel.from_pretrained(FOLDER, add_pooling_layer=False).eval()
with torch.no_grad():
    y = model(torch.arange(1, 9)[None]).last_hidden_state
""",
}
CHECK = "assert y.shape[:2] == (1, 8)\n"


@cache
def starts(settings: Settings) -> dict[str, tuple[Measure, Measure] | None]:
    """Time and memory of each program."""
    wanted = ["lora_np", *(peer for peer in settings.peers if peer in PROGRAMS)]
    with checkpoint(encoder(settings), settings.model) as folder:
        start = f"FOLDER = {str(folder)!r}"  # before the newline that begins each program
        programs = {
            name: start + PROGRAMS[name] + CHECK if is_installed(*LIBRARIES.get(name, ("numpy",))) else None
            for name in wanted
        }
        return alternating(programs, settings.starts)


def start_rows(settings: Settings, *, memory: bool = False) -> Iterator[Row]:
    if processes.can_measure_memory():
        yield Row(
            "import, load the model, one sentence of 8 tokens",
            {name: measures and measures[memory] for name, measures in starts(settings).items()},
        )


GROUPS = (
    Group(
        "encoder",
        "An encoder, inference",
        "The hidden states of all-MiniLM-L6-v2 (6 layers of width 384) from token ids (`predict`), compared with Hugging "
        "Face's `BertModel` under `torch.no_grad`. *Its products* are those of the dense layers alone, computed by plain "
        "`np.matmul` into preallocated arrays, without padding. Sentences of different lengths are padded for "
        "transformers; lora_np computes no padding outside attention.",
        inference_rows,
        PRODUCTS,
        reasons=REASONS,
    ),
    Group(
        "encoder-step",
        "An encoder, a LoRA training step",
        "The same encoder with a LoRA of rank 8 on the query and value layers of all blocks: forward, backward and a step "
        "of AdamW, without dropout. PEFT adapts Hugging Face's model. *Its products* are those of the frozen weights, "
        "forward and backward down to the lowest adapter. Both start with the same factors; AdamW's ε is 1, so that its "
        "first update is proportional to the gradients; with a small ε it would be their sign, which rounding decides for "
        "some.",
        training_rows,
        PRODUCTS,
        reasons=REASONS,
    ),
    Group(
        "encoder-tasks",
        "An encoder, a task for each sentence",
        "Inference with a LoRA for each of three tasks, which the sentences of the batch use in turn, compared with a "
        "single LoRA for all of them. PEFT uses `adapter_names`.",
        routed_rows,
        ONE,
        reasons=REASONS,
    ),
    Group(
        "gelu",
        "Exact GELU",
        "`gelu_exact.value_and_slope` of a float32 array of 256 × 1536 elements, compared with `np.exp` of the same array, "
        "and with the formula that is precise in float64 too.",
        activation_rows,
        EXPONENTIAL,
    ),
    Group(
        "encoder-start",
        "Cold start of an encoder: time",
        "A new interpreter imports what it needs, loads the model's files, which are in the system's cache, and computes "
        "the hidden states of one sentence of 8 tokens.",
        start_rows,
        "lora_np",
    ),
    Group(
        "encoder-resident",
        "Cold start of an encoder: memory",
        "The peak resident memory (VmHWM on Linux) of the same programs. The files that lora_np maps count only as far as "
        "they were read.",
        partial(start_rows, memory=True),
        "lora_np",
        unit="B",
    ),
)
