"""The number of parameters that each method trains."""

from dataclasses import dataclass

from ..layers import Layer
from .digits import VIEWS
from .ranks import with_dylora, with_lora
from .settings import Settings
from .tasks import with_multilora


@dataclass(frozen=True)
class Count:
    """The number of trainable parameters of one method."""

    method: str
    parameters: int
    share: float
    """As a fraction of the parameters that full fine-tuning trains."""


def count(base: Layer, settings: Settings) -> list[Count]:
    """Count the trainable parameters of every method that adapts the base."""
    rng = settings.generator()
    highest, task_rank = settings.ranks[-1], settings.task_rank
    counts = {"full fine-tuning": base.parameter_count}
    counts |= {f"rank-{rank} LoRA": with_lora(base, rank, rng).parameter_count for rank in settings.ranks}
    counts[f"DyLoRA, ranks up to {highest}"] = with_dylora(base, settings.ranks, rng).parameter_count
    counts[f"rank-{task_rank} MultiLoRA, per task"] = with_multilora(base, task_rank, rng).parameter_count // len(VIEWS)
    return [Count(method, parameters, parameters / base.parameter_count) for method, parameters in counts.items()]
