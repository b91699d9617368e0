"""Adding a task to every MultiLoRA adapter of a model, and removing it, either everywhere or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..adapters.multilora import MultiLoRAAdapter
from ..base import Layer
from ..errors import InvalidOperationError
from .finding import check_each, find, required


def add_task(
    model: Layer,
    task_name: str,
    rank: int,
    alpha: float = -1.0,
    active_ranks: Sequence[int] | None = None,
    **options: Any,
) -> int:
    """Add a task to every MultiLoRAAdapter in the model; the current tasks do not change.

    Parameters
    ----------
    model : Layer
    task_name, rank, alpha, active_ranks
    **options
        As in `MultiLoRAAdapter.add_task`.

    Returns
    -------
    int
        The number of MultiLoRA adapters.

    Raises
    ------
    ArgumentError
        If one of the adapters has the task already or refuses an argument, such as a rank above the sizes of its layer;
        nothing is changed.
    InvalidOperationError
        If the model has no MultiLoRAAdapter.

    Examples
    --------
    >>> from lora_np import DenseLayer, MultiLoRAAdapter, Sequential, add_task, apply_lora, relu, remove_task
    >>> base = Sequential([DenseLayer(8, 16, relu, rng=0), DenseLayer(16, 6, rng=1)])
    >>> model = apply_lora(base, MultiLoRAAdapter, default_task_name="sentiment", default_rank=2, rng=0)
    >>> add_task(model, "topics", rank=4, alpha=8, active_ranks=[1, 2, 4])
    2
    >>> remove_task(model, "topics")
    2
    """
    adapters = _adapters(model)
    check_each(adapters, lambda adapter: adapter.check_task(task_name, rank, alpha, active_ranks, **options))
    for adapter in adapters.values():
        adapter.add_task(task_name, rank, alpha, active_ranks, **options)
    return len(adapters)


def remove_task(model: Layer, task_name: str) -> int:
    """Remove a task from every MultiLoRAAdapter in the model that has it; see `MultiLoRAAdapter.remove_task`.

    Returns
    -------
    int
        The number of adapters that had the task: 0 if it is unknown.

    Raises
    ------
    InvalidOperationError
        If it is the last task of an adapter, or if the model has no MultiLoRAAdapter; nothing is changed.
    """
    adapters = [adapter for adapter in _adapters(model).values() if task_name in list(adapter)]
    for adapter in adapters:
        if len(adapter) == 1:
            raise InvalidOperationError(f"{adapter.layer_name}: {task_name!r} is the last task and cannot be removed")
    for adapter in adapters:
        adapter.remove_task(task_name)
    return len(adapters)


def _adapters(model: Layer) -> dict[str, MultiLoRAAdapter]:
    return required(find(model, MultiLoRAAdapter), model, "MultiLoRAAdapter whose tasks could change")
