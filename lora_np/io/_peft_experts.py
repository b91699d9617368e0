"""Experts in PEFT's files: reading the factors of wrapped parameters, and writing them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from ._experts import expert_paths, joined, split, wrapped
from ._factors import PREFIX, layer_of, pair
from ._peft_names import alpha_of, rank_of, target_parameters

A, B, WRAPPED = "lora_A.weight", "lora_B.weight", ".base_layer"


def experts_of(parts: dict[str, dict[str, Array]], config: Mapping[str, Any], where: str) -> dict[str, list[LoRALayer]]:
    """Take the factors of wrapped parameters out of those of a file; the layers of the experts of each parameter.

    Several wrappers in one module get the names of its parameters in the order of target_parameters, from the innermost:
    only a base tells the real one (`placed_experts`).
    """
    found: dict[str, list[LoRALayer]] = {}
    for module in dict.fromkeys(_module(path) for path in parts):
        names = target_parameters(config, module)
        if not names:
            continue
        wrappers = [path for path in parts if _module(path) == module]
        expected = [module + WRAPPED * depth for depth in reversed(range(len(names)))]
        if set(wrappers) != set(expected):
            raise FormatError(f"{where}{module}: target_parameters names {', '.join(names)}, the file has {len(wrappers)}")
        settings = {(rank_of(config, name), alpha_of(config, name)) for name in names}
        if len(settings) > 1:
            raise NotSupportedError(f"{where}{module}: which of {', '.join(names)} has which rank and alpha cannot be told")
        for name, path in zip(names, expected, strict=True):
            found[name] = _experts(parts.pop(path), config, name, f"{where}{path}")
    return found


def _module(path: str) -> str:
    while path.endswith(WRAPPED):
        path = path.removesuffix(WRAPPED)
    return path


def _experts(factors: Mapping[str, Array], config: Mapping[str, Any], name: str, where: str) -> list[LoRALayer]:
    if unexpected := factors.keys() - {A, B}:
        raise NotSupportedError(f"{where}.{min(unexpected)} is not supported for experts, neither here nor by PEFT")
    matrix_a, matrix_b, kernel = pair(factors, A, B, where)
    rank, ranks = rank_of(config, name), matrix_a.shape[1]
    if kernel or not isinstance(rank, int) or rank < 1 or ranks % rank or len(matrix_b) != ranks:
        raise FormatError(
            f"{where}: factors of experts must be (experts · r, in) and (out, r · experts) with the rank {rank!r} of the "
            f"configuration, got {factors[A].shape} and {factors[B].shape}"
        )
    scaling = "rslora" if config.get("use_rslora") else "max"
    alpha = alpha_of(config, name)
    return [layer_of(a, b, alpha, where, scaling=scaling) for a, b in split(matrix_a, matrix_b, ranks // rank)]


def expert_tensors(weights: AdapterWeights) -> dict[str, Array]:
    """The factors of all parameters with experts, by their names in a file."""
    tensors: dict[str, Array] = {}
    for name, path in wrapped(weights).items():
        first, second = joined([weights.layers[expert] for expert in expert_paths(weights, name)])
        tensors |= {f"{PREFIX}{path}.{A}": first, f"{PREFIX}{path}.{B}": second}
    return tensors


def check_experts(weights: AdapterWeights) -> None:
    """Raise NotSupportedError for experts that PEFT cannot have."""
    for name in weights.experts:
        paths = expert_paths(weights, name)
        if "." not in name:
            raise NotSupportedError(f"{name!r}: PEFT adapts parameters only of modules inside the model")
        for words, kind in (("a DoRA magnitude", weights.magnitudes), ("a lora_bias", weights.biases)):
            if kind:
                raise NotSupportedError(f"{name!r}: PEFT has no adapters with {words} and with experts")
        layers = [weights.layers[path] for path in paths]
        for entry in ("rank", "scaling", "input_size", "output_size"):
            values = {getattr(layer, entry) for layer in layers}
            if len(values) > 1:
                raise NotSupportedError(f"{name!r}: PEFT has one {entry} for all experts, got {sorted(values)}")
        if any(layer.dropout for layer in layers):
            raise NotSupportedError(f"{name!r}: PEFT has no dropout for experts")
