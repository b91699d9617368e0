"""Models compared with their merged and their reloaded copies, at every rank or task."""

from collections.abc import Iterator
from dataclasses import dataclass

from .._typing import Array
from ..adapters import DyLoRAAdapter, MultiLoRAAdapter
from ..layers import Layer
from ..models.adapting import merge_in_place
from ..models.finding import select_task
from .training import largest_difference


@dataclass(frozen=True)
class MergeResult:
    """A model compared with its merged copy."""

    model: str
    variant: str
    """The rank or the task that was selected."""
    layers: int
    """The number of merged adapters."""
    difference: float
    """The largest difference of an output."""


def merge(name: str, model: Layer, inputs: Array) -> list[MergeResult]:
    """Merge a copy of the model at each of its ranks or tasks."""
    results = []
    for variant in variants(model):
        merged = model.clone()
        layers = merge_in_place(merged)
        difference = largest_difference(merged.predict(inputs), model.predict(inputs))
        results.append(MergeResult(name, variant, layers, difference))
    return results


def difference(model: Layer, other: Layer, inputs: Array) -> float:
    """The largest difference between the outputs of two models, over all ranks or tasks."""
    pairs = zip(variants(model), variants(other), strict=True)
    return max(largest_difference(model.predict(inputs), other.predict(inputs)) for _ in pairs)


def variants(model: Layer) -> Iterator[str]:
    """Select each rank or task of a model in turn, and yield its name; once, unnamed, for a model without either."""
    layers = model.walk().values()
    dynamic = [layer for layer in layers if isinstance(layer, DyLoRAAdapter)]
    shared = [layer for layer in layers if isinstance(layer, MultiLoRAAdapter)]
    for rank in dynamic[0].active_ranks if dynamic else ():
        for adapter in dynamic:
            adapter.set_deployment_rank(rank)
        yield f"rank {rank}"
    for task in list(shared[0].task_adapters) if shared else ():
        select_task(model, task)
        yield task
    if not dynamic and not shared:
        yield ""
