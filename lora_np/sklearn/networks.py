"""The network that is adapted, and the ranks that its layers can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._typing import Array, Generator
from .._validation import positive_int
from ..adapters import LoRAAdapterBase
from ..errors import ArgumentError
from ..functions.activations import Activation
from ..layers import DenseLayer, Layer, Sequential
from ..models.adapting import has_adapters, rebuilt

BASE, HEAD = "base", "head"
"""The names of the two parts of a network to which a head was added."""


def hidden_layers(input_size: int, sizes: Any, activation: Activation, rng: Generator) -> Sequential:
    """Dense layers of these sizes, each with the activation."""
    widths = np.atleast_1d(sizes).tolist()
    if not widths:
        raise ArgumentError(f"hidden_layer_sizes must hold at least one size, got {sizes!r}")
    layers: dict[str, Layer] = {}
    for number, width in enumerate(widths, start=1):
        width = positive_int("each of hidden_layer_sizes", width)
        layers[f"hidden{number}"] = DenseLayer(input_size, width, activation, rng=rng)
        input_size = width
    return Sequential(layers)


def own_copy(base: Any, input_size: int) -> Sequential:
    """A copy of a given base, after a check that it takes the data."""
    if not isinstance(base, Layer):
        raise ArgumentError(f"base must be a lora_np layer, or None, got {base!r}")
    if has_adapters(base):
        raise ArgumentError("base must have no adapters; lora_np.merge_in_place merges them into it")
    if base.input_size != input_size:
        raise ArgumentError(f"X must have the {base.input_size} features that base takes, got {input_size}")
    copy = base.clone()
    return copy if isinstance(copy, Sequential) else Sequential([copy])


def with_head(base: Sequential, outputs: int, rng: Generator, *, freeze_base: bool) -> Sequential:
    """The base, and after it a linear layer with as many outputs as are needed."""
    head = DenseLayer(base.output_size, outputs, dtype=base.dtype, rng=rng)
    return Sequential({BASE: base, HEAD: head}, frozen=[BASE] if freeze_base else [])


def without_adapters(model: Layer) -> Layer:
    """The network as it was before it was adapted; it shares the arrays."""
    bare: Layer = rebuilt(
        model,
        lambda _, layer: layer.base_layer if isinstance(layer, LoRAAdapterBase) else layer,
        frozen=lambda layer: False,
    )
    return bare


def choice_of_outputs(total: int, chosen: Array, dtype: Any) -> DenseLayer:
    """A layer that keeps some of the outputs, in this order."""
    layer = DenseLayer(total, len(chosen), dtype=dtype, rng=0)
    layer.set_parameter("weight", np.eye(total)[:, chosen])
    return layer


def rank_and_alpha(layer: Layer, rank: int, alpha: float) -> tuple[int, float]:
    """The rank, or the full rank of a layer that is smaller, with the alpha that keeps the scaling ``alpha / rank``."""
    own = min(rank, layer.input_size, layer.output_size)
    return own, (alpha if own == rank or alpha < 0 else alpha * own / rank)


def nested_ranks(active_ranks: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The active ranks of a layer that has no more than `rank`, and their probabilities.

    Ranks above it become its own, with all of their probability: then one shared draw gives every layer of a network the
    rank that it has when the network is deployed at the rank drawn.
    """
    own = np.minimum(active_ranks, rank)
    ranks, counts = np.unique(own, return_counts=True)
    return tuple(ranks.tolist()), tuple((counts / len(own)).tolist())
