"""A language model: tokens one by one, prompts at once, and what it costs to start."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from lora_np import FullyConnectedLayer, find, generate

from .. import peers, processes
from ..decoders import Decoder, PromptProblem, bf16_checkpoint
from ..groups import Group, Row, Settings, timed
from ..harness import Candidate, Measure
from ..peers import LIBRARIES, TRANSFORMERS, is_installed
from ..problem import Array, normal
from .cold_start import alternating

PRODUCTS, WEIGHTS = "its products", "its weights"
STORED = "lora_np, stored"
REASONS = {TRANSFORMERS: "Activations, norms and sums are separate passes over memory in NumPy; torch fuses some of them."}


@cache
def decoder(settings: Settings) -> Decoder:
    return Decoder(tiny=settings.quick)


class Ours:
    """`generate` of lora_np."""

    def __init__(self, problem: PromptProblem) -> None:
        self.problem = problem

    def tokens(self) -> Array:
        """The greedy tokens of each prompt, (prompts, new)."""
        problem = self.problem
        return np.stack([*generate(problem.decoder.model, problem.ids, problem.new)], axis=1)


def products(problem: PromptProblem, rows: int) -> Candidate:
    """The products of the dense layers and the head with some rows, by plain `np.matmul`; the head for one row a prompt."""
    model, rng = problem.decoder.model, np.random.default_rng(1)
    pairs = [(layer.matrix, rows) for layer in find(model, FullyConnectedLayer).values()]
    pairs.append((model.head.matrix, len(problem.ids)))
    x = {shape: normal(rng, *shape) for shape in {(count, len(matrix)) for matrix, count in pairs}}

    def run() -> None:
        for matrix, count in pairs:
            np.matmul(x[count, len(matrix)], matrix)

    return Candidate(run)


def token_rows(settings: Settings) -> Iterator[Row]:
    cases = settings.sizes([(1, 16, 16), (4, 16, 16), (4, 64, 1)], [(1, 3, 4), (2, 3, 4), (2, 5, 1)])
    for prompts, tokens, new in cases:
        problem = PromptProblem.random(decoder(settings), prompts, tokens, new)
        label = f"{prompts} × {tokens} tokens, the next" if new == 1 else f"a token after {prompts} × {tokens} tokens"
        candidates: dict[str, Candidate | None] = {PRODUCTS: products(problem, prompts * tokens if new == 1 else prompts)}
        candidates["lora_np"] = candidate(Ours(problem), new)
        for peer in settings.peers:
            if peer == TRANSFORMERS:
                module = peers.load(peer)
                candidates[peer] = None if module is None else candidate(module.Decoder(problem), new)
        yield timed(settings, label, candidates)


def candidate(contender: Any, new: int) -> Candidate:
    return Candidate(contender.tokens, lambda: {"tokens": contender.tokens()}, scale=1 / new)


LOAD = """
from lora_np import generate, load_pretrained
model = load_pretrained(FOLDER, weights=WEIGHTS)
y = [int(token) for (token,) in generate(model, [list(range(1, 9))], 4)]
"""
PROGRAMS = {
    "lora_np": "WEIGHTS = 'decoded'" + LOAD,
    STORED: "WEIGHTS = 'stored'" + LOAD,
    TRANSFORMERS: """
import torch
from transformers import LlamaForCausalLM
torch.set_num_threads(1)
model = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
ids = torch.arange(1, 9)[None]
y = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)[0, 8:].tolist()
""",
}
CHECK = "assert len(y) == 4\n"


@cache
def starts(settings: Settings) -> Mapping[str, tuple[Measure, Measure] | None]:
    """Time and memory of each program."""
    wanted = ["lora_np", STORED, *(peer for peer in settings.peers if peer in PROGRAMS)]
    with bf16_checkpoint(decoder(settings)) as folder:
        start = f"FOLDER = {str(folder)!r}\n"
        programs = {
            name: start + PROGRAMS[name] + CHECK if is_installed(*LIBRARIES.get(name, ("numpy",))) else None
            for name in wanted
        }
        return alternating(programs, settings.starts)


def start_rows(settings: Settings) -> Iterator[Row]:
    if processes.can_measure_memory():
        values = {name: measures and measures[0] for name, measures in starts(settings).items()}
        yield Row("import, load the model, 4 tokens after 8", values)


def resident_rows(settings: Settings) -> Iterator[Row]:
    if processes.can_measure_memory():
        values = {name: measures and measures[1] for name, measures in starts(settings).items()}
        size = float(sum(array.nbytes for array in decoder(settings).weights.values()))
        rounds = len(next(measure for measure in values.values() if measure is not None).rounds)
        yield Row("the same program", {WEIGHTS: Measure((size,) * rounds), **values})


GROUPS = (
    Group(
        "decoder",
        "A language model, greedy tokens",
        "`generate` with a Llama of the sizes of SmolLM2-135M (30 layers of width 576, a vocabulary of 49,152) and random "
        "weights: the time of one of 16 tokens, or of a pass over prompts that ends with the next token. *Its products* "
        "are those of the dense layers and the head alone, computed by plain `np.matmul`. Hugging Face's `generate` keeps "
        "keys and values too.",
        token_rows,
        PRODUCTS,
        reasons=REASONS,
    ),
    Group(
        "decoder-start",
        "Cold start of a language model: time",
        "A new interpreter imports what it needs, loads the model's BF16 file, which is in the system's cache, and "
        'generates four tokens. *Stored* keeps the matrices as BF16: `load_pretrained(..., weights="stored")`.',
        start_rows,
        "lora_np",
    ),
    Group(
        "decoder-resident",
        "Cold start of a language model: memory",
        "The peak resident memory (VmHWM on Linux) of the same programs, compared with the size of the weights in float32.",
        resident_rows,
        WEIGHTS,
        unit="B",
    ),
)
