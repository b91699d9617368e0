"""Adapters without their base: the low-rank layers of a file or model, keyed by the path of the adapted layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from .._typing import Array
from ..adapters.base import LoRAAdapterBase
from ..adapters.dora import DoRAAdapter
from ..adapters.dylora import DyLoRAAdapter, at_rank
from ..adapters.multilora import MultiLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, NotSupportedError
from ..layers.lora import LoRALayer
from .settings import DyLoRASettings


@final
@dataclass(frozen=True)
class AdapterWeights:
    """Low-rank layers, keyed by the path of the adapted layer.

    Parameters
    ----------
    layers : mapping of str to LoRALayer
    magnitudes : mapping of str to array, optional
        For layers adapted by DoRA: the magnitude m, shape (output_size,).
    nested : mapping of str to DyLoRASettings, optional
        For layers of a DyLoRAAdapter: its settings.
    config : mapping, optional
        The configuration of the file, unchanged.

    Raises
    ------
    ArgumentError
        If `magnitudes` or `nested` has a path that is not in `layers`.
    """

    layers: Mapping[str, LoRALayer]
    magnitudes: Mapping[str, Array] = field(default_factory=dict)
    nested: Mapping[str, DyLoRASettings] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("magnitudes", "nested"):
            unknown = [path for path in getattr(self, kind) if path not in self.layers]
            if unknown:
                raise ArgumentError(f"paths of {kind} must be paths of layers, got {unknown[0]!r}")

    def delta(self, path: str) -> Array:
        """The update ``s A B`` that the layer adds to the base's weight, shape (input_size, output_size).

        Raises
        ------
        NotSupportedError
            If the layer is adapted by DoRA.
        """
        if path in self.magnitudes:
            raise NotSupportedError(f"{path!r} is adapted by DoRA, which does not add a matrix to the weight")
        return self.layers[path].merge_weights()

    def at_rank(self, rank: int | None = None) -> AdapterWeights:
        """Plain layers instead of those of DyLoRA, each at an active rank; by default, at its deployment rank.

        Raises
        ------
        ArgumentError
            If a rank is given that is not an active rank of every DyLoRA layer, or if there is no DyLoRA layer.
        """
        if rank is not None and not self.nested:
            raise ArgumentError(f"rank {rank} requires DyLoRA layers, and the adapter has none")
        layers = dict(self.layers)
        for path, settings in self.nested.items():
            chosen = settings.current_deployment_rank if rank is None else rank
            try:
                settings.check_rank(chosen)
            except ArgumentError as error:
                raise ArgumentError(f"{path}: {error}") from error
            layers[path] = layers[path].at_rank(chosen)
        return replace(self, layers=layers, nested={})

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(layer.parameter_count for layer in self.layers.values()) + sum(
            magnitude.size for magnitude in self.magnitudes.values()
        )


def extract(model: Layer, *, task: str | None = None, rank: int | None = None) -> AdapterWeights:
    """Copy the low-rank layers of a model's adapters.

    Parameters
    ----------
    model : Layer
        A model with adapters, or a single adapter, whose path is then ``""``.
    task : str, optional
        The task of each MultiLoRAAdapter. Defaults to its current task.
    rank : int, optional
        The active rank at which each DyLoRAAdapter is extracted, as a plain adapter. By default it is extracted at its full
        rank, with its settings.

    Raises
    ------
    ArgumentError
        If the model has no adapter, or if a task or active rank does not exist.
    NotSupportedError
        If the branch of an adapter is not a pair of trained factors.
    """
    return _extracted(_adapters(model), task, rank)


def extract_tasks(model: Layer, tasks: Iterable[str], *, rank: int | None = None) -> dict[str, AdapterWeights]:
    """The result of `extract` for each task, with a single walk through the model."""
    adapters = _adapters(model)
    return {task: _extracted(adapters, task, rank) for task in tasks}


def _adapters(model: Layer) -> dict[str, LoRAAdapterBase]:
    adapters = {path: layer for path, layer in model.walk().items() if isinstance(layer, LoRAAdapterBase)}
    if not adapters:
        raise ArgumentError(f"model must have an adapter, but {model.layer_name} has none")
    return adapters


def _extracted(adapters: Mapping[str, LoRAAdapterBase], task: str | None, rank: int | None) -> AdapterWeights:
    layers: dict[str, LoRALayer] = {}
    magnitudes: dict[str, Array] = {}
    nested: dict[str, DyLoRASettings] = {}
    for path, adapter in adapters.items():
        layer = adapter.lora_layer
        if isinstance(adapter, MultiLoRAAdapter) and task is not None:
            layer = adapter.get_task_adapter(task)
        if not isinstance(layer, LoRALayer):
            raise NotSupportedError(f"{path!r}: the branch of a {type(adapter).__name__} is not a pair of trained factors")
        if isinstance(adapter, DyLoRAAdapter):
            if rank is None:
                nested[path] = DyLoRASettings.of(adapter)
            else:
                layer = at_rank(adapter, rank)
        if isinstance(adapter, DoRAAdapter):
            magnitudes[path] = adapter.magnitude.copy()
        layers[path] = layer.clone()
    return AdapterWeights(layers, magnitudes, nested)
