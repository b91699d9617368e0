"""An epoch of training with Adam."""

from collections.abc import Callable, Iterator
from typing import Any

from .. import ours, peers
from ..groups import Group, Row, Settings, timed
from ..harness import Candidate
from ..peers import PEFT, TORCH
from ..problem import FitProblem

BATCHES = (16, 64, 256)
SIZES = (64, 128, 128, 10)
RANK, SAMPLES = 8, 1024


def candidate(make: Callable[[FitProblem], Any], problem: FitProblem) -> Candidate:
    def answer() -> dict[str, Any]:
        contender = make(problem)
        return problem.answers(contender.epoch(), *contender.factors())

    return Candidate(make(problem.slowly()).epoch, answer)


def rows(settings: Settings) -> Iterator[Row]:
    for batch in settings.sizes(BATCHES, (4,)):
        problem = FitProblem.random(
            (6, 5, 5, 3) if settings.quick else SIZES, RANK, 8 if settings.quick else SAMPLES, batch
        )
        candidates: dict[str, Candidate | None] = {"lora_np": candidate(ours.Fit, problem)}
        for peer in (peer for peer in settings.peers if peer in (PEFT, TORCH)):
            module = peers.load(peer)
            candidates[peer] = None if module is None else candidate(module.Fit, problem)
        yield timed(settings, f"batch {batch}", candidates)


GROUPS = (
    Group(
        "fit",
        "An epoch of training",
        f"The network of the demo, {' → '.join(map(str, SIZES))} with ReLU, a LoRA of rank {RANK} on each layer, softmax "
        f"cross-entropy, Adam: an epoch of {SAMPLES} samples by `fit`. The peers run the usual loop over batches; torch by "
        "hand with the fused form of Adam, PEFT with the default one. Losses and factors after an epoch are compared.",
        rows,
        "lora_np",
        reasons={TORCH: "Its optimizer updates all arrays in one compiled call."},
    ),
)
