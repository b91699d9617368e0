"""Experts: several weights in one parameter, (experts, out, in) or (experts, in, out), each with a low-rank change.

PEFT wraps such a parameter, which `target_parameters` names, and keeps the factors of all experts in one pair: A of shape
(experts · r, in), expert by expert, and B of shape (out, r · experts), component by component. If it adapts several
parameters of a module, their wrappers are nested, the first parameter of the module innermost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from .safetensors import SafetensorsFile

Base = Mapping[str, SafetensorsFile]
"""A checkpoint: the files of its tensors, by the names of these."""


def split(A: Array, B: Array, count: int) -> list[tuple[Array, Array]]:
    """The factors (in, r) and (r, out) of each expert, of those of all: (in, count · r) and (r · count, out)."""
    inputs, outputs = len(A), B.shape[1]
    As = A.T.reshape(count, -1, inputs)  # (count, r, in)
    Bs = B.reshape(-1, count, outputs)  # (r, count, out)
    return [(As[number].T, Bs[:, number]) for number in range(count)]


def joined(layers: Sequence[LoRALayer]) -> tuple[Array, Array]:
    """The factors (count · r, in) and (out, r · count) of all experts, as PEFT stores them."""
    A = np.concatenate([layer.matrix_a.T for layer in layers])
    B = np.stack([layer.matrix_b.T for layer in layers], axis=-1)  # (out, r, count)
    return A, B.reshape(len(B), -1)


def expert_paths(weights: AdapterWeights, name: str) -> list[str]:
    """The paths of the experts in a parameter."""
    return [f"{name}.{number}" for number in range(weights.experts[name])]


def wrapped(weights: AdapterWeights) -> dict[str, str]:
    """The path of the wrapper of each parameter with experts in PEFT's files: nested in a module, the first innermost."""
    paths: dict[str, str] = {}
    for name in reversed(list(weights.experts)):
        path = name.rpartition(".")[0]
        while path in paths.values():
            path += ".base_layer"
        paths[name] = path
    return paths


# ---------------------------------------------------------------- the parameters of a base


class Placed(NamedTuple):
    """An adapter with the names of the parameters of a base."""

    adapter: AdapterWeights
    transposed: frozenset[str]
    """The parameters that are (experts, in, out)."""


def placed_experts(weights: AdapterWeights, base: Base) -> Placed:
    """Match the experts of each module to its parameters in a base, by their shapes.

    A file does not tell in which order a module has its parameters, nor whether they are transposed.

    Raises
    ------
    FormatError
        If a parameter is missing, or no order of the parameters fits.
    NotSupportedError
        If several do.
    """
    modules: dict[str, list[str]] = {}
    for name in weights.experts:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    names: dict[str, str] = {}
    transposed: list[str] = []
    for found in modules.values():
        order, is_transposed = _placed(weights, found, base)
        names |= dict(zip(found, order, strict=True))
        transposed += order if is_transposed else []
    return Placed(with_experts_named(weights, names), frozenset(transposed))


def _placed(weights: AdapterWeights, names: Sequence[str], base: Base) -> tuple[tuple[str, ...], bool]:
    """The parameters that the wrappers of a module adapt, and whether they are transposed."""
    for name in names:
        if name not in base:
            raise FormatError(f"missing tensor {name!r}, which the adapter changes")
    shapes = {name: base[name].info(name).shape for name in names}
    wanted = [_shapes(weights, name) for name in names]
    fitting = [
        (order, is_transposed)
        for order in permutations(names)
        for is_transposed in (False, True)
        if all(shapes[name] in wanted[i][is_transposed] for i, name in enumerate(order))
    ]
    if not fitting:
        raise FormatError(
            f"the experts of the adapter have the shapes {[shape[False][-1] for shape in wanted]}, also transposed, "
            f"the parameters {', '.join(f'{name!r} {shapes[name]}' for name in names)}"
        )
    if len(fitting) > 1:
        raise NotSupportedError(
            f"the shapes {list(shapes.values())} do not tell which of {', '.join(map(repr, names))} is which, "
            "or whether they are transposed"
        )
    return fitting[0]


def _shapes(weights: AdapterWeights, name: str) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The shapes that a parameter may have as it is, and transposed; a matrix is never transposed."""
    count, layer = weights.experts[name], weights.layers[f"{name}.0"]
    sizes = layer.output_size, layer.input_size
    plain: list[tuple[int, ...]] = [(count, *sizes)]
    return ([sizes, *plain] if count == 1 else plain), [(count, *sizes[::-1])]


def with_experts_named(weights: AdapterWeights, names: Mapping[str, str]) -> AdapterWeights:
    """The adapter with other names of the parameters with experts."""
    paths = {f"{old}.{number}": f"{new}.{number}" for old, new in names.items() for number in range(weights.experts[old])}
    layers = {paths.get(path, path): layer for path, layer in weights.layers.items()}
    return replace(weights, layers=layers, experts={names.get(old, old): count for old, count in weights.experts.items()})
