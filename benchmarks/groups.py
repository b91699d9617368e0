"""Groups of measurements: each row is a case with a measure for every candidate."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ours, peers
from .harness import Candidate, Clock, Measure, check_agreement, interleave
from .peers import NUMPY_ONLY


@dataclass(frozen=True)
class Settings:
    """How thoroughly to measure, and which peers."""

    peers: tuple[str, ...] = NUMPY_ONLY
    rounds: int = 11
    quick: bool = False
    """Whether to use tiny sizes and as little time as possible."""
    clock: Clock = "cpu"
    """Whether to measure processor time or wall time."""
    model: Path | None = None
    """The folder of a BERT encoder; None for random weights."""

    @property
    def seconds(self) -> float:
        """The time per candidate and case."""
        return self.rounds * (0.002 if self.quick else 0.08)

    @property
    def starts(self) -> int:
        """How often to start each program when measuring cold starts."""
        return -(-self.rounds // 2)

    @property
    def trainings(self) -> int:
        """How often to repeat a training run when measuring its memory, which hardly varies."""
        return -(-self.rounds // 4)

    def sizes(self, full: Iterable[Any], quick: Iterable[Any]) -> Iterable[Any]:
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """One case: a measure by candidate, or None for a peer that is not installed."""

    label: str
    values: Mapping[str, Measure | None]
    x: float | None = None
    """Its position on the axis of a curve."""


@dataclass(frozen=True)
class Group:
    """A set of cases that are measured and shown together."""

    name: str
    title: str
    text: str
    """An explanation of the numbers, in Markdown."""
    rows: Callable[[Settings], Iterator[Row]]
    reference: str
    """The candidate by which the others are divided; its column shows absolute numbers."""
    unit: str = "s"
    axis: str = ""
    """The quantity that grows along the rows of a curve; empty for a group that is not a curve."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a peer is faster, by "peer" or "label of the row: peer"; the page prints the reason if the peer is ahead."""

    def reason(self, row: str, peer: str) -> str:
        return self.reasons.get(f"{row}: {peer}", self.reasons.get(peer, ""))


def contenders(settings: Settings, kind: str, method: str = "forward") -> Iterator[tuple[str, Callable[[Any], Any] | None]]:
    """Functions that create lora_np's variants and the selected peers from a problem; None if a peer is not installed.

    A peer without such a class, or whose class does not have the method, is omitted.
    """
    yield from ours.variants(getattr(ours, kind))
    for peer in settings.peers:
        module = peers.load(peer)
        if module is None:
            yield peer, None
        elif hasattr(getattr(module, kind, None), method):
            yield peer, getattr(module, kind)


def step_candidate(make: Callable[[Any], Any], problem: Any) -> Candidate:
    """A training step: forward, backward with the gradient of the input, and update."""

    def answer() -> dict[str, Any]:
        contender = make(problem)
        y, dx = contender.step()
        answers = {"y": y, "dx": dx}
        A, B = contender.factors()
        if isinstance(A, list):
            return answers | problem.changes(A, B)
        return answers | {"change of A": A - problem.A, "change of B": B - problem.B}

    return Candidate(make(problem.slowly()).step, answer)


def forward_candidate(make: Callable[[Any], Any], problem: Any) -> Candidate:
    """An inference pass."""
    contender = make(problem)
    return Candidate(contender.forward, lambda: {"y": contender.forward()})


def timed(settings: Settings, label: str, candidates: Mapping[str, Candidate | None], x: float | None = None) -> Row:
    """Check that the candidates agree, then time them."""
    present = {name: candidate for name, candidate in candidates.items() if candidate is not None}
    check_agreement(label, present)
    measures = interleave(present, rounds=settings.rounds, seconds=settings.seconds, clock=settings.clock)
    return Row(label, {name: measures.get(name) for name in candidates}, x)
