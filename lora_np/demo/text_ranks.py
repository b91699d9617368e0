"""DyLoRA on sentences, compared with the other ways to obtain an adapter at every rank."""

from dataclasses import dataclass

from ..adapters import DyLoRAAdapter, StandardLoRAAdapter
from ..base import Layer
from ..layers import AffineLayer
from ..terminal.progress import Listener, silent
from .ranks import Curve, canonicalize_branches
from .text_encoder import UpperBlocks
from .text_settings import TextSettings, TextStream
from .text_training import Prepared, adapted, score_texts
from .training import Score, dylora_ranks, train


@dataclass(frozen=True)
class TextRankResult:
    """The scores of DyLoRA and of the alternatives on test sentences."""

    task: str
    training_rows: int
    test_rows: int
    ranks: tuple[int, ...]
    head: Score
    """Of a head on the unchanged encoder."""
    dylora: Curve
    dedicated: Curve
    """A separate LoRA trained for each rank."""
    truncated: Curve
    """The LoRA of the highest rank, of which only the leading components are kept."""
    truncated_by_svd: Curve
    """The same LoRA, refactored by SVD first: the best approximation of its weights at each rank."""

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All methods with a score for each rank."""
        return self.dylora, self.dedicated, self.truncated, self.truncated_by_svd


def compare_ranks(
    upper: UpperBlocks, prepared: Prepared, settings: TextSettings, listen: Listener = silent
) -> tuple[TextRankResult, Layer]:
    """Adapt the encoder to a task by every method; also returns the DyLoRA model."""
    task, head, head_score = prepared
    ranks, highest = settings.ranks, settings.ranks[-1]

    def scores(model: Layer, ranks: tuple[int, ...] = ranks) -> tuple[Score, ...]:
        return tuple(score_texts(model, task.test, rank=rank) for rank in ranks)

    dynamic, seconds = train_dylora(upper, prepared, settings, listen)
    dylora = Curve("DyLoRA", scores(dynamic), (seconds,))

    loras, times = zip(*(train_lora(upper, prepared, settings, rank, listen) for rank in ranks), strict=True)
    dedicated = Curve("one LoRA per rank", tuple(score_texts(lora, task.test) for lora in loras), times)

    # Given the arrays of a LoRA, a DyLoRA adapter truncates it: at each rank it uses the leading components.
    sliced = adapted(upper, head, lambda layer: DyLoRAAdapter(layer, highest, ranks, rng=0))
    sliced.load_weights(loras[-1].named_parameters())
    name = f"rank-{highest} LoRA, truncated"
    truncated = Curve(name, scores(sliced), times[-1:])
    canonicalize_branches(sliced)
    truncated_by_svd = Curve(f"{name} by SVD", scores(sliced), times[-1:])
    rows = len(task.training.labels), len(task.test.labels)
    return TextRankResult(task.name, *rows, ranks, head_score, dylora, dedicated, truncated, truncated_by_svd), dynamic


def train_dylora(
    upper: UpperBlocks, prepared: Prepared, settings: TextSettings, listen: Listener = silent
) -> tuple[Layer, float]:
    """A DyLoRA model, and the training time in seconds."""
    rng = settings.generator(TextStream.DYLORA)

    def adapter(layer: AffineLayer) -> DyLoRAAdapter:
        ranks = settings.ranks
        return DyLoRAAdapter(layer, ranks[-1], ranks, rank_distribution=settings.rank_weights, rng=rng)

    model = adapted(upper, prepared.head, adapter)
    schedule = dylora_ranks(sorted_start=settings.sorted_start)
    return model, train(model, prepared.task.training, settings.dylora_budget, rng, listen("DyLoRA"), ranks=schedule)


def train_lora(
    upper: UpperBlocks, prepared: Prepared, settings: TextSettings, rank: int, listen: Listener = silent
) -> tuple[Layer, float]:
    """A LoRA model for one rank, and the training time in seconds."""
    rng = settings.generator(TextStream.LORA, rank)
    model = adapted(upper, prepared.head, lambda layer: StandardLoRAAdapter(layer, rank, rng=rng))
    return model, train(model, prepared.task.training, settings.budget, rng, listen(f"rank-{rank} LoRA"))
