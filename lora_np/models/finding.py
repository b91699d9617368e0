"""Finding layers in a model, and selecting the task or rank of its adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from .._validation import instance
from ..adapters.base import LoRAAdapterBase
from ..adapters.multilora import MultiLoRAAdapter
from ..adapters.rank_choice import RankChoice, rank_choices
from ..base import Layer
from ..errors import ArgumentError, InvalidOperationError

Kind = TypeVar("Kind")
Adapter = TypeVar("Adapter", MultiLoRAAdapter, RankChoice)


def find(model: Layer, kind: Callable[..., Kind]) -> dict[str, Kind]:
    """The layers of a given class in a model, by dotted path; the path of the model itself is the empty string.

    Examples
    --------
    >>> from lora_np import DenseLayer, Sequential, find, relu
    >>> list(find(Sequential([DenseLayer(8, 16, relu, rng=0), DenseLayer(16, 3, rng=1)]), DenseLayer))
    ['0', '1']
    """
    instance("model", model, Layer, "a layer")
    instance("kind", kind, type, "a class")
    return {path: layer for path, layer in model.walk().items() if isinstance(layer, cast(type[Kind], kind))}


def has_adapters(model: Layer) -> bool:
    """Whether the model contains an adapter."""
    return bool(find(model, LoRAAdapterBase))


def has_multi_lora_adapters(model: Layer) -> bool:
    """Whether the model contains a MultiLoRAAdapter."""
    return bool(find(model, MultiLoRAAdapter))


def select_task(model: Layer, task: str) -> int:
    """Set the current task of every MultiLoRAAdapter in the model.

    Returns
    -------
    int
        The number of MultiLoRA adapters.

    Raises
    ------
    ArgumentError
        If the task is unknown to one of the adapters; nothing is changed.
    InvalidOperationError
        If the model has no MultiLoRAAdapter.
    """
    adapters = required(find(model, MultiLoRAAdapter), model, "MultiLoRAAdapter whose task could be selected")
    check_each(adapters, lambda adapter: adapter.get_task_adapter(task))
    for adapter in adapters.values():
        adapter.current_task = task
    return len(adapters)


def select_rank(model: Layer, rank: int) -> int:
    """Set the deployment rank of every DyLoRAAdapter in the model, and of every task with ranks.

    Returns
    -------
    int
        The number of DyLoRA adapters and tasks.

    Raises
    ------
    ArgumentError
        If the rank is not an active rank of every adapter and task with ranks; nothing is changed.
    InvalidOperationError
        If the model has neither.
    """
    instance("model", model, Layer, "a layer")
    adapters = required(rank_choices(model), model, "DyLoRAAdapter or task whose rank could be selected")
    check_rank(adapters, rank)
    for adapter in adapters.values():
        adapter.current_deployment_rank = rank
    return len(adapters)


def check_rank(adapters: Mapping[str, RankChoice], rank: int) -> None:
    """Raise ArgumentError if a rank is not an active rank of each adapter."""
    check_each(adapters, lambda adapter: adapter.check_rank(rank))


def check_each(adapters: Mapping[str, Adapter], check: Callable[[Adapter], object]) -> None:
    """Check every adapter, before any is changed; the message of an ArgumentError begins with the path of the adapter."""
    for path, adapter in adapters.items():
        try:
            check(adapter)
        except ArgumentError as error:
            raise ArgumentError(f"{path or adapter.layer_name}: {error}") from error


def required(adapters: dict[str, Kind], model: Layer, what: str) -> dict[str, Kind]:
    """The adapters that were found; an InvalidOperationError if there are none."""
    if not adapters:
        raise InvalidOperationError(f"{model.layer_name} has no {what}")
    return adapters
