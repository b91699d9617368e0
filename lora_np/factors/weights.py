"""Adapters without their base: low-rank changes by the path of the adapted layer, and the tensors that replace others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self, final

import numpy as np

from .._typing import Array
from .._validation import integer
from ..adapters.base import LoRAAdapterBase
from ..adapters.dora import DoRAAdapter
from ..adapters.dylora import DyLoRAAdapter
from ..adapters.multilora import MultiLoRAAdapter
from ..adapters.rank_choice import RankChoice
from ..base import Layer
from ..errors import ArgumentError, NotSupportedError
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from .settings import DyLoRASettings


class Rows(NamedTuple):
    """Rows of a table that replace those of the base."""

    indices: Array
    """The row numbers, shape (n,), all different."""
    values: Array
    """The rows, shape (n, columns)."""

    @classmethod
    def of(cls, indices: Iterable[int], values: Array) -> Self:
        """Rows with their numbers, checked: an ArgumentError if they are negative, not all different, or not as many."""
        numbers = np.array([integer("each of indices", index) for index in indices], np.int64)
        if numbers.min(initial=0) < 0 or len(np.unique(numbers)) < len(numbers):
            raise ArgumentError(f"indices must be at least 0 and all different, got {numbers.tolist()}")
        if values.ndim != 2 or len(values) != len(numbers):
            raise ArgumentError(f"values must have a row for each of {len(numbers)} indices, got shape {values.shape}")
        return cls(numbers, values)


@final
@dataclass(frozen=True)
class AdapterWeights:
    """What an adapter does to a base, tensor by tensor: replace it, replace some of its rows, add a low-rank change.

    Tensors of the base have their names in a checkpoint, such as ``classifier.weight``, and PyTorch's layout: the weight of
    a dense layer is (output_size, input_size). A change is added to what a replacement has put there.

    Parameters
    ----------
    layers : mapping of str to LoRALayer
        The low-rank change ``s A B`` of the weight of the layer at each path, the tensor ``<path>.weight``.
    magnitudes : mapping of str to array, optional
        For layers adapted by DoRA: the magnitude m, shape (output_size,), unless the layer is in `by_input`.
    nested : mapping of str to DyLoRASettings, optional
        For layers of a DyLoRAAdapter, or of a task with ranks: its settings.
    config : mapping, optional
        The configuration of the file, unchanged.
    whole : mapping of str to array, optional
        Tensors that replace those of the base, such as a trained head, or that the base lacks, by name. Those of a PEFT
        file stay as they are there, memory-mapped: float16 as float16, and a BF16 matrix as an object that `numpy.asarray`
        widens to float32.
    rows : mapping of str to Rows, optional
        Rows that replace those of the base, such as the embeddings of new tokens, by the name of the tensor.
    biases : mapping of str to array, optional
        The change of the bias, ``b + s c``, by the path of a layer with a low-rank change: c, shape (output_size,).
    embeddings : set of str, optional
        The paths in `layers` of embeddings: their weight is a table (input_size, output_size), as the change ``s A B`` is.
    dropped : sequence of str, optional
        The names of the tensors that a reader has left out as asked.
    kernels : mapping of str to tuple of int, optional
        For convolutions: the size of the kernel, such as (3, 3). The input size of the layer counts the elements of a
        patch: the weight (output_size, channels, 3, 3) is the matrix (output_size, channels · 3 · 3).

    by_input : set of str, optional
        The paths in `magnitudes` whose magnitude is that of each input, as in files of LyCORIS: shape (input_size,), or
        (channels,) for a convolution.
    experts : mapping of str to int, optional
        For parameters that hold the weights of several experts, by the name of the parameter: their number. The layer of
        expert i has the path ``<name>.<i>``. The order is that in which a module has its parameters.

    Raises
    ------
    ArgumentError
        If `magnitudes`, `nested`, `biases`, `embeddings` or `kernels` has a path that is not in `layers`, or an expert is
        not in `layers`.
    """

    layers: Mapping[str, LoRALayer]
    magnitudes: Mapping[str, Array] = field(default_factory=dict)
    nested: Mapping[str, DyLoRASettings] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Array] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    biases: Mapping[str, Array] = field(default_factory=dict)
    embeddings: frozenset[str] = frozenset()
    dropped: tuple[str, ...] = ()
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    experts: Mapping[str, int] = field(default_factory=dict)
    by_input: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for kind in ("magnitudes", "nested", "biases", "embeddings", "kernels"):
            unknown = [path for path in getattr(self, kind) if path not in self.layers]
            if unknown:
                raise ArgumentError(f"paths of {kind} must be paths of layers, got {unknown[0]!r}")
        if self.by_input - self.magnitudes.keys():
            raise ArgumentError(f"paths of by_input must be paths of magnitudes, got {min(self.by_input)!r}")
        for name, count in self.experts.items():
            if count < 1 or any(f"{name}.{number}" not in self.layers for number in range(count)):
                raise ArgumentError(f"layers must have a path {name}.<number> for each expert, of which there are {count}")

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
        arrays = [*self.magnitudes.values(), *self.whole.values(), *self.biases.values()]
        arrays += [rows.values for rows in self.rows.values()]
        return sum(layer.parameter_count for layer in self.layers.values()) + sum(array.size for array in arrays)


def extract(model: Layer, *, task: str | None = None, rank: int | None = None) -> AdapterWeights:
    """Copy everything that trains in a model with adapters: their low-rank layers, and the other arrays as whole tensors.

    Parameters
    ----------
    model : Layer
        A model with adapters, or a single adapter, whose path is then ``""``.
    task : str, optional
        The task of each MultiLoRAAdapter. Defaults to its current task.
    rank : int, optional
        The active rank at which each DyLoRAAdapter, or task with ranks, is extracted, as a plain adapter. By default it is
        extracted at its full rank, with its settings.

    Returns
    -------
    AdapterWeights
        A layer that trains besides the adapters, such as a new head, is in `whole` with all of its arrays; if only its bias
        trains, with its bias. The base of an adapter is there with the arrays that train.

    Raises
    ------
    ArgumentError
        If the model has no adapter, or if a task or active rank does not exist.
    NotSupportedError
        If the branch of an adapter is not a pair of trained factors.
    """
    return _extracted(_adapters(model), trained_tensors(model), task, rank)


def extract_tasks(model: Layer, tasks: Iterable[str], *, rank: int | None = None) -> dict[str, AdapterWeights]:
    """The result of `extract` for each task, with a single walk through the model."""
    adapters, whole = _adapters(model), trained_tensors(model)
    return {task: _extracted(adapters, whole, task, rank) for task in tasks}


def trained_tensors(layer: Layer, path: str = "") -> dict[str, Array]:
    """Copies of the arrays that train outside the branches of adapters, by name and in PyTorch's layout; see `extract`."""
    if isinstance(layer, LoRAAdapterBase):
        if layer.is_base_layer_frozen:
            return {}
        base = layer.base_layer
        return _copies(base, path, _trained(base)) if isinstance(base, AffineLayer) else trained_tensors(base, path)
    trained = _trained(layer)
    found = _copies(layer, path, trained if trained in ([], ["bias"]) else layer.parameter_names)
    for name, child in layer.children().items():
        if name not in layer.frozen:
            found |= trained_tensors(child, _join(path, name))
    return found


def _trained(layer: Layer) -> list[str]:
    return [name for name in layer.parameter_names if name not in layer.frozen]


def _copies(layer: Layer, path: str, names: Iterable[str]) -> dict[str, Array]:
    return {_join(path, name): in_torch_layout(layer, name, getattr(layer, name)).copy() for name in names}


def in_torch_layout(layer: Layer, name: str, array: Array) -> Array:
    """An array of a layer in PyTorch's layout, or back: the function is its own inverse."""
    if isinstance(layer, AffineLayer) and name == "weight":
        return layer.in_layout(array).T  # (out, in)
    return array


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _adapters(model: Layer) -> dict[str, LoRAAdapterBase]:
    adapters = {path: layer for path, layer in model.walk().items() if isinstance(layer, LoRAAdapterBase)}
    if not adapters:
        raise ArgumentError(f"model must have an adapter, but {model.layer_name} has none")
    return adapters


def _extracted(
    adapters: Mapping[str, LoRAAdapterBase], whole: Mapping[str, Array], task: str | None, rank: int | None
) -> AdapterWeights:
    layers: dict[str, LoRALayer] = {}
    magnitudes: dict[str, Array] = {}
    nested: dict[str, DyLoRASettings] = {}
    for path, adapter in adapters.items():
        layer = adapter.lora_layer
        ranks: RankChoice | None = adapter if isinstance(adapter, DyLoRAAdapter) else None
        if isinstance(adapter, MultiLoRAAdapter):
            name = adapter.current_task if task is None else task
            layer, ranks = adapter.get_task_adapter(name), adapter.task_ranks.get(name)
        if not isinstance(layer, LoRALayer):
            raise NotSupportedError(f"{path!r}: the branch of a {type(adapter).__name__} is not a pair of trained factors")
        if ranks is not None:
            if rank is None:
                nested[path] = DyLoRASettings.of(ranks)
            else:
                ranks.check_rank(rank)
                layer = layer.at_rank(rank)
        if isinstance(adapter, DoRAAdapter):
            magnitudes[path] = adapter.magnitude.copy()
        layers[path] = layer.clone()
    return AdapterWeights(layers, magnitudes, nested, whole=whole)
