"""The network to adapt, and the ranks that its layers can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._typing import Array, Generator
from .._validation import positive_int
from ..errors import ArgumentError
from ..functions.activations import Activation
from ..layers import DenseLayer, Layer, Sequential
from ..models.finding import has_adapters

BASE, HEAD = "base", "head"
"""The names of the two parts of a network with an added head."""


def hidden_layers(input_size: int, sizes: Any, activation: Activation, dtype: Any, rng: Generator) -> Sequential:
    """Dense layers of the given sizes, each with the activation."""
    widths = np.atleast_1d(sizes).tolist()
    if not widths:
        raise ArgumentError(f"hidden_layer_sizes must contain at least one size, got {sizes!r}")
    layers: dict[str, Layer] = {}
    for number, width in enumerate(widths, start=1):
        width = positive_int("each of hidden_layer_sizes", width)
        layers[f"hidden{number}"] = DenseLayer(input_size, width, activation, dtype=dtype, rng=rng)
        input_size = width
    return Sequential(layers)


def own_copy(base: Any, input_size: int) -> Sequential:
    """A copy of the given base, which must fit the data."""
    if not isinstance(base, Layer):
        raise ArgumentError(f"base must be a lora_np layer or None, got {base!r}")
    if has_adapters(base):
        raise ArgumentError("base must not contain adapters; lora_np.merge_in_place merges them into its weights")
    if base.input_size != input_size:
        raise ArgumentError(f"X must have {base.input_size} features, the input size of base, got {input_size}")
    copy = base.clone()
    return copy if isinstance(copy, Sequential) else Sequential([copy])


def with_head(base: Sequential, outputs: int, rng: Generator, *, freeze_base: bool) -> Sequential:
    """The base, followed by a linear layer with the given number of outputs."""
    head = DenseLayer(base.output_size, outputs, dtype=base.dtype, rng=rng)
    return Sequential({BASE: base, HEAD: head}, frozen=[BASE] if freeze_base else [])


def choice_of_outputs(total: int, chosen: Array, dtype: Any) -> DenseLayer:
    """A layer that selects some of the outputs, in the given order."""
    layer = DenseLayer(total, len(chosen), dtype=dtype, rng=0)
    layer.set_parameter("weight", np.eye(total)[:, chosen])
    return layer


def rank_and_alpha(layer: Layer, rank: int, alpha: float) -> tuple[int, float]:
    """The rank of a layer, at most its full rank, and the alpha that keeps the scaling ``alpha / rank``."""
    own = min(rank, layer.input_size, layer.output_size)
    return own, (alpha if own == rank or alpha < 0 else alpha * own / rank)


def nested_ranks(active_ranks: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The active ranks of a layer whose maximum is `rank`, and their probabilities.

    Higher ranks are replaced by `rank`, which takes over their probability. A shared draw then gives every layer the rank
    that it has when the network is deployed at the rank drawn.
    """
    own = np.minimum(active_ranks, rank)
    ranks, counts = np.unique(own, return_counts=True)
    return tuple(ranks.tolist()), tuple((counts / len(own)).tolist())
