"""DyLoRA compared with the other ways to obtain an adapter at every rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..adapters import DyLoRAAdapter, StandardLoRAAdapter
from ..factors.surgery import canonicalize
from ..layers import Layer
from ..models.adapting import apply_lora
from ..terminal.progress import Listener, silent
from .digits import Digits, Rows, shifted
from .settings import Settings, Stream
from .training import Score, dylora_ranks, score, train


@dataclass(frozen=True)
class Curve:
    """The scores of one method at every rank."""

    method: str
    scores: tuple[Score, ...]
    """One per rank."""
    seconds: tuple[float, ...]
    """One per training run."""


@dataclass(frozen=True)
class RankResult:
    """The scores of DyLoRA and of the alternatives."""

    ranks: tuple[int, ...]
    dylora: Curve
    dedicated: Curve
    """A separate LoRA trained for each rank."""
    truncated: Curve
    """The LoRA of the highest rank, of which only the leading components are kept."""
    truncated_by_svd: Curve
    """The same LoRA, refactored by SVD first: the best approximation of its weights at each rank."""
    margin: float
    """The largest acceptable `loss`."""

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All methods."""
        return self.dylora, self.dedicated, self.truncated, self.truncated_by_svd

    @property
    def gain(self) -> float:
        """The accuracy of DyLoRA minus that of the truncated LoRA, at the lowest rank."""
        return self.dylora.scores[0].accuracy - self.truncated.scores[0].accuracy

    @property
    def gain_over_svd(self) -> float:
        """The accuracy of DyLoRA minus that of the LoRA truncated by SVD, at the lowest rank."""
        return self.dylora.scores[0].accuracy - self.truncated_by_svd.scores[0].accuracy

    @property
    def loss(self) -> float:
        """The accuracy of the dedicated LoRA minus that of DyLoRA, at the highest rank."""
        return self.dedicated.scores[-1].accuracy - self.dylora.scores[-1].accuracy

    @property
    def within_margin(self) -> bool:
        """Whether `loss` is at most `margin`."""
        return self.loss <= self.margin


def compare_ranks(base: Layer, digits: Digits, settings: Settings, listen: Listener = silent) -> tuple[RankResult, Layer]:
    """Adapt the base to shifted digits by every method; also returns the DyLoRA model."""
    ranks, test = settings.ranks, digits.testing(shifted)

    rng = settings.generator(Stream.DYLORA)
    dynamic = with_dylora(base, ranks, rng)
    schedule = dylora_ranks(sorted_start=settings.sorted_start)
    seconds = train(dynamic, digits.training(shifted), settings.rank_budget, rng, listen("DyLoRA"), ranks=schedule)
    dylora = Curve("DyLoRA", _score_ranks(dynamic, test, ranks), (seconds,))

    loras, times = zip(*(train_lora(base, digits, settings, rank, listen) for rank in ranks), strict=True)
    dedicated = Curve("one LoRA per rank", tuple(score(lora, test) for lora in loras), times)

    # Given the arrays of a LoRA, a DyLoRA adapter truncates it: at each rank it uses the leading components.
    sliced = with_dylora(base, ranks, settings.generator())
    sliced.load_weights(loras[-1].named_parameters())
    name = f"rank-{ranks[-1]} LoRA, truncated"
    truncated = Curve(name, _score_ranks(sliced, test, ranks), times[-1:])
    canonicalize_branches(sliced)
    truncated_by_svd = Curve(f"{name} by SVD", _score_ranks(sliced, test, ranks), times[-1:])
    return RankResult(ranks, dylora, dedicated, truncated, truncated_by_svd, settings.margin), dynamic


def train_lora(
    base: Layer, digits: Digits, settings: Settings, rank: int, listen: Listener = silent
) -> tuple[Layer, float]:
    """A LoRA trained on shifted digits for one rank, and the training time in seconds."""
    rng = settings.generator(Stream.LORA, rank)
    model = with_lora(base, rank, rng)
    return model, train(model, digits.training(shifted), settings.rank_budget, rng, listen(f"rank-{rank} LoRA"))


def with_lora(base: Layer, rank: int, rng: np.random.Generator) -> Layer:
    """The base with a new LoRA adapter on every dense layer."""
    return apply_lora(base, lambda layer: StandardLoRAAdapter(layer, rank, rng=rng))


def with_dylora(base: Layer, ranks: Sequence[int], rng: np.random.Generator) -> Layer:
    """The base with a new DyLoRA adapter on every dense layer."""
    return apply_lora(base, lambda layer: DyLoRAAdapter(layer, ranks[-1], ranks, rng=rng))


def canonicalize_branches(model: Layer) -> None:
    """Refactor A B of every DyLoRA adapter by SVD, so that the components have descending singular values."""
    for adapter in model.walk().values():
        if isinstance(adapter, DyLoRAAdapter):
            branch = adapter.lora_layer
            branch.load_weights(canonicalize(branch).named_parameters())


def _score_ranks(model: Layer, rows: Rows, ranks: Sequence[int]) -> tuple[Score, ...]:
    return tuple(score(model, rows, rank=rank) for rank in ranks)
