"""Putting AdapterWeights onto the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .._typing import Array
from ..adapters.base import LoRAAdapterBase
from ..adapters.dora import DoRAAdapter
from ..adapters.multilora import MultiLoRAAdapter
from ..adapters.standard import StandardLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, NotSupportedError
from ..factors.weights import AdapterWeights, in_torch_layout
from ..layers.dense import AffineLayer
from ..layers.embedding import Embedding
from ..layers.lora import LoRALayer
from ..models.adapting import Factory, apply_adapters
from ..models.causal import HEAD, CausalLM
from ..models.finding import find
from ..models.gpt2 import DOWN, QKV, UP, GPT2Block, O
from ..models.replacing import with_arrays


def applied(model: Layer, weights: AdapterWeights) -> Layer:
    """A model with an adapter; see `apply_peft`. Raises ArgumentError if it does not fit."""
    _check_layers(weights)
    model = _untied(model, [weights])
    arrays = _arrays(model, weights)
    factories = {
        path: _on(arrays.pop(path, {}), _factory(weights, path))
        for path in weights.layers
        if path not in weights.embeddings
    }
    return _adapted(model, factories, arrays)


def check_is_task(weights: AdapterWeights) -> None:
    """Raise NotSupportedError for an adapter that a task of MultiLoRA cannot express."""
    if weights.magnitudes:
        raise NotSupportedError("is DoRA, which cannot be a task of MultiLoRA")
    _check_layers(weights)
    for key in [*weights.biases, *weights.embeddings, *weights.rows]:
        raise NotSupportedError(f"changes {key} otherwise than by factors of a weight, which a task of MultiLoRA cannot")


def _check_layers(weights: AdapterWeights) -> None:
    for path in weights.kernels:
        raise NotSupportedError(f"{path!r} is a convolution, which can be merged into a checkpoint, but not applied")
    for path in weights.by_input:
        raise NotSupportedError(f"{path!r} has a DoRA magnitude of its inputs, which can be merged, but not applied")
    for name in weights.experts:
        raise NotSupportedError(f"{name!r} has experts, which can be merged into a checkpoint, but not applied")


def applied_tasks(model: Layer, tasks: Mapping[str, AdapterWeights]) -> Layer:
    """A model with an adapter for each task. Raises ArgumentError if one does not fit, or NotSupportedError."""
    first, *others = tasks.values()
    for weights in others:
        for key in dict.fromkeys([*first.whole, *weights.whole]):
            if not (key in first.whole and key in weights.whole and np.array_equal(first.whole[key], weights.whole[key])):
                raise NotSupportedError(f"the tasks must agree on {key}, which replaces a tensor of the model")
    model = _untied(model, tasks.values())
    arrays = _arrays(model, first)
    paths = dict.fromkeys(path for weights in tasks.values() for path in weights.layers)
    return _adapted(model, {path: _on(arrays.pop(path, {}), _multi_factory(tasks, path)) for path in paths}, arrays)


def _adapted(model: Layer, factories: Mapping[str, Factory], arrays: Mapping[str, Mapping[str, Array]]) -> Layer:
    layers = model.walk()
    return apply_adapters(model, factories, replace={path: with_arrays(layers[path], new) for path, new in arrays.items()})


# ---------------------------------------------------------------- what replaces arrays of the model


def _arrays(model: Layer, weights: AdapterWeights) -> dict[str, dict[str, Array]]:
    """The new arrays of layers, by path and name, in the layout of the layers."""
    layers, transposed_paths = model.walk(), _transposed(model, weights)
    arrays: dict[str, dict[str, Array]] = {}
    is_tied = isinstance(model, CausalLM) and HEAD not in model.children()
    for key, tensor in weights.whole.items():
        if is_tied and key == f"{HEAD}.weight":
            continue  # equal to the embedding
        path, name = _owner(layers, key)
        transposed = name == "weight" and weights.config.get("fan_in_fan_out") and path in transposed_paths
        arrays.setdefault(path, {})[name] = in_torch_layout(layers[path], name, tensor.T if transposed else tensor)
    for key, (indices, values) in weights.rows.items():
        path, name = _owner(layers, key)
        table = np.array(arrays.get(path, {}).get(name, getattr(layers[path], name)))
        if indices.max(initial=0) >= len(table) or values.shape[1:] != table.shape[1:]:
            raise ArgumentError(f"{key}: rows {indices.tolist()} of {values.shape[1]} do not fit {table.shape}")
        table[indices] = values
        arrays.setdefault(path, {})[name] = table
    for path in weights.embeddings:
        layer, change = layers.get(path), weights.layers[path]
        if not isinstance(layer, Embedding):
            raise ArgumentError(f"{path}: the adapter is of an embedding, and the model has none there")
        table = arrays.get(path, {}).get("weight", layer.weight)
        if table.shape != (sizes := (change.input_size, change.output_size)):
            raise ArgumentError(f"{path}: the change has the shape {sizes}, the table {table.shape}")
        new = table + change.merge_weights()
        if path in weights.magnitudes:
            norms = np.linalg.norm(new, axis=0)
            new = new * (weights.magnitudes[path] / np.where(norms == 0, 1, norms))
        arrays.setdefault(path, {})["weight"] = new
    return arrays


def _untied(model: Layer, tasks: Iterable[AdapterWeights]) -> Layer:
    """The model, with a separate head if it uses its embedding as one, and an adapter changes one of the two alone."""
    if not isinstance(model, CausalLM) or HEAD in model.children() or all(_alike(model, weights) for weights in tasks):
        return model
    twin = CausalLM(model.body, model.head)  # as in PEFT, which then computes with two tables
    twin._is_training = twin.head._is_training = model.is_training
    return twin


def _alike(model: CausalLM, weights: AdapterWeights) -> bool:
    """Whether an adapter leaves the embedding and the head of a model equal."""
    table, head = f"{model.head_name}.weight", f"{HEAD}.weight"
    changed = {table, head} & weights.whole.keys()
    only_one = model.head_name in weights.embeddings or HEAD in weights.layers or len(changed) == 1
    return not only_one and (not changed or np.array_equal(weights.whole[table], weights.whole[head]))


def _owner(layers: Mapping[str, Layer], key: str) -> tuple[str, str]:
    """The path of the layer that has a tensor, and the name of the array there."""
    path, _, name = key.rpartition(".")
    layer = layers.get(path)
    if layer is None or not (name in layer.parameter_names or (name == "bias" and isinstance(layer, AffineLayer))):
        raise ArgumentError(f"the model has no {key!r}, which the adapter replaces; drop={key!r} would leave it out")
    return path, name


def _on(arrays: Mapping[str, Array], factory: Factory) -> Factory:
    """The factory, for a base layer with new arrays, which stay trainable."""

    def build(linear: AffineLayer) -> LoRAAdapterBase:
        if not arrays:
            return factory(linear)
        adapter = factory(with_arrays(linear, arrays))
        adapter.frozen -= {"base"}
        return adapter

    return build


def conv1d_paths(model: Layer) -> set[str]:
    """The paths of the layers that are Conv1D in transformers, whose weights are stored as (in, out): those of GPT-2."""
    return {f"{path}.{name}" for path, block in find(model, GPT2Block).items() for name in (QKV, O, UP, DOWN)}


def _transposed(model: Layer, weights: AdapterWeights) -> set[str]:
    """The paths whose weights are (in, out) if fan_in_fan_out is set; an output head is never Conv1D."""
    return ({*weights.layers} | conv1d_paths(model)) - {HEAD}


def as_in_torch(model: Layer, weights: AdapterWeights, config: Mapping[str, Any]) -> AdapterWeights:
    """The content of a model with the tensors of PyTorch's model: a tied head too, and weights of Conv1D as (in, out)."""
    whole = dict(weights.whole)
    if config.get("fan_in_fan_out"):
        whole |= {key: whole[key].T for path in _transposed(model, weights) if (key := f"{path}.weight") in whole}
    if isinstance(model, CausalLM) and HEAD not in model.children() and (key := f"{model.head_name}.weight") in whole:
        whole[f"{HEAD}.weight"] = whole[key]
    return replace(weights, whole=whole)


# ---------------------------------------------------------------- adapters


def _factory(weights: AdapterWeights, path: str) -> Factory:
    def build(linear: AffineLayer) -> LoRAAdapterBase:
        branch = _fitted(weights.layers[path], linear, path)
        if path in weights.nested:
            return weights.nested[path].around(linear, branch)
        if path in weights.magnitudes:
            adapter = DoRAAdapter.around(linear, branch)
            adapter.set_parameter("magnitude", weights.magnitudes[path])
            return adapter
        return StandardLoRAAdapter.around(linear, branch)

    if path not in weights.biases:
        return build
    return lambda linear: _on({"bias": _with_change(weights, path, linear)}, build)(linear)


def _with_change(weights: AdapterWeights, path: str, linear: AffineLayer) -> Array:
    """The bias ``b + s c``."""
    change = weights.layers[path].scaling * weights.biases[path]
    if change.shape != (linear.output_size,):
        raise ArgumentError(f"{path}: lora_B.bias must have shape ({linear.output_size},), got {change.shape}")
    return change if linear.bias is None else linear.bias + change


def _multi_factory(tasks: Mapping[str, AdapterWeights], path: str) -> Factory:
    def build(linear: AffineLayer) -> MultiLoRAAdapter:
        branches = {
            name: _fitted(weights.layers[path], linear, path) if path in weights.layers else _nothing(linear)
            for name, weights in tasks.items()
        }
        nested = {name: weights.nested[path] for name, weights in tasks.items() if path in weights.nested}
        ranks = {name: settings.choices for name, settings in nested.items()}
        adapter = MultiLoRAAdapter.around_tasks(linear, branches, ranks=ranks)
        adapter.task_deployment_ranks = {name: own.current_deployment_rank for name, own in nested.items()}
        return adapter

    return build


def _fitted(layer: LoRALayer, linear: AffineLayer, path: str) -> LoRALayer:
    """The layer in the dtype of the base, whose sizes it must have."""
    if (layer.input_size, layer.output_size) != (linear.input_size, linear.output_size):
        raise ArgumentError(
            f"{path}: the adapter is {layer.input_size} -> {layer.output_size}, "
            f"the layer {linear.input_size} -> {linear.output_size}"
        )
    A, B = layer.matrix_a.astype(linear.dtype), layer.matrix_b.astype(linear.dtype)
    return LoRALayer.from_factors(A, B, layer.alpha, scaling=layer.scaling_rule, **layer.dropout_choices)


def _nothing(linear: AffineLayer) -> LoRALayer:
    """The branch of a task that has no factors for a layer."""
    return LoRALayer(linear.input_size, linear.output_size, 1, dtype=linear.dtype)
