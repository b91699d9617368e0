"""The text encoders of OpenCLIP in single-file checkpoints: SDXL's second one, and that of SD 2.

Their modules have other names in transformers, and so in adapters; queries, keys and values are the rows of one parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer

TENSORS = {
    "attn.in_proj_weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj.weight": ("self_attn.out_proj",),
    "mlp.c_fc.weight": ("mlp.fc1",),
    "mlp.c_proj.weight": ("mlp.fc2",),
}
"""The weights of a block, and the modules of transformers whose rows they stack."""

NAME = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def transformers_modules(tensor: str) -> list[str]:
    """The modules of transformers whose weights a tensor of OpenCLIP holds, as consecutive rows; else none."""
    match = NAME.fullmatch(tensor)
    modules = TENSORS.get(match[2], ()) if match else ()
    return [f"text_model.encoder.layers.{match[1]}.{module}" for module in modules] if match else []


class Place(NamedTuple):
    """Consecutive rows of a weight that holds several modules."""

    tensor: str
    start: int
    stop: int
    total: int


def stacked(weights: AdapterWeights, places: Mapping[str, Place]) -> AdapterWeights:
    """An adapter with one layer for each weight that holds several modules, under the name of that weight.

    Its rank is the sum of theirs: A has their columns side by side, and B is block-diagonal.

    Parameters
    ----------
    weights : AdapterWeights
    places : mapping of str to Place
        The layers to stack, by path.

    Raises
    ------
    FormatError
        If a layer has other sizes than its rows.
    NotSupportedError
        If only some of the modules of a weight are adapted by DoRA, or one with a magnitude of its inputs.
    """
    layers = {path: layer for path, layer in weights.layers.items() if path not in places}
    magnitudes = {path: m for path, m in weights.magnitudes.items() if path not in places}
    for tensor in dict.fromkeys(place.tensor for place in places.values()):
        parts = {path: place for path, place in places.items() if place.tensor == tensor}
        for path in parts.keys() & weights.by_input:
            raise NotSupportedError(f"{path!r} has a DoRA magnitude of its inputs, which {tensor} shares with others")
        layers[tensor] = _stacked(weights, parts)
        dora = {place.start: weights.magnitudes[path] for path, place in parts.items() if path in weights.magnitudes}
        if dora:
            magnitudes[tensor] = np.concatenate([dora[start] for start in sorted(dora)])
            if len(magnitudes[tensor]) < next(iter(parts.values())).total:
                raise NotSupportedError(
                    f"{tensor}: DoRA of only some of the modules that it stacks cannot be merged: {', '.join(parts)}"
                )
    return replace(weights, layers=layers, magnitudes=magnitudes)


def _stacked(weights: AdapterWeights, parts: Mapping[str, Place]) -> LoRALayer:
    changes = [weights.layers[path] for path in parts]
    inputs = changes[0].input_size
    for (path, place), layer in zip(parts.items(), changes, strict=True):
        sizes, wanted = (layer.input_size, layer.output_size), (inputs, place.stop - place.start)
        if sizes != wanted:
            given = f"{sizes[0]} -> {sizes[1]}"
            raise FormatError(f"{path!r} must be {wanted[0]} -> {wanted[1]}, as its rows of {place.tensor}, got {given}")
    A = np.concatenate([layer.matrix_a for layer in changes], axis=1)
    B = np.zeros((A.shape[1], next(iter(parts.values())).total), A.dtype)
    first = 0
    for layer, place in zip(changes, parts.values(), strict=True):
        B[first : first + layer.rank, place.start : place.stop] = layer.scaling * layer.matrix_b
        first += layer.rank
    return LoRALayer.from_factors(A, B)
