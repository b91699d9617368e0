"""What several adapters have besides their low-rank layers, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .._typing import Array
from ..errors import NotSupportedError
from ..layers.lora import LoRALayer
from .weights import AdapterWeights, Rows


def with_others(
    layers: Mapping[str, LoRALayer], sets: Sequence[AdapterWeights], weights: Mapping[str, Sequence[float]]
) -> AdapterWeights:
    """The weighted sum of adapters, of which the sums of the low-rank layers, and the weights by path, are given.

    Biases add up: ``c = Σ w_i s_i c_i / s``. Whole tensors and rows replace those of the base, and cannot be added.

    Raises
    ------
    NotSupportedError
        If adapters replace the same tensor by different ones, if a layer is an embedding for only some of them, or a
        convolution of different kernels, or if a parameter has different numbers of experts.
    """
    whole: dict[str, Array] = {}
    rows: dict[str, Rows] = {}
    biases: dict[str, Array] = {}
    for number, one in enumerate(sets):
        for key, tensor in one.whole.items():
            if not np.array_equal(whole.setdefault(key, tensor), tensor):
                raise NotSupportedError(_different(key))
        for key, some in one.rows.items():
            if not all(map(np.array_equal, rows.setdefault(key, some), some)):
                raise NotSupportedError(_different(key))
        for path, bias in one.biases.items():
            change = weights[path][number] * one.layers[path].scaling / layers[path].scaling * bias
            biases[path] = biases[path] + change if path in biases else change
    embeddings = frozenset(path for one in sets for path in one.embeddings)
    for path in embeddings:
        if any(path in one.layers and path not in one.embeddings for one in sets):
            raise NotSupportedError(f"{path!r} is an embedding for only some of the adapters")
    kernels: dict[str, tuple[int, ...]] = {}
    for path in layers:
        found = {one.kernels.get(path, ()) for one in sets if path in one.layers}
        if len(found) > 1:
            raise NotSupportedError(f"{path!r} is a convolution of different kernels: {', '.join(map(str, sorted(found)))}")
        if kernel := found.pop():
            kernels[path] = kernel
    experts: dict[str, int] = {}
    for one in sets:
        for name, count in one.experts.items():
            if experts.setdefault(name, count) != count:
                raise NotSupportedError(f"{name!r} has {experts[name]} experts in one adapter, and {count} in another")
    return AdapterWeights(
        layers, whole=whole, rows=rows, biases=biases, embeddings=embeddings, kernels=kernels, experts=experts
    )


def _different(key: str) -> str:
    return f"{key} is replaced by different tensors, which cannot be added; drop={key!r} would leave it out"
