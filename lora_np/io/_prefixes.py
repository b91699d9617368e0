"""The prefix of a model's body, such as ``bert.``, which checkpoints of the body alone omit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from ..factors.weights import AdapterWeights
from ._experts import with_experts_named
from ._weight_names import path_of_weight, weight_of


def with_prefix_of(weights: AdapterWeights, base: Collection[str]) -> AdapterWeights:
    """An adapter with the names of a base, whose tensors may have a prefix more, or one less.

    An adapter of ``BertForSequenceClassification`` has layers such as ``bert.encoder.layer.0...`` and a ``classifier``. A
    checkpoint of ``BertModel`` has ``encoder.layer.0...``, and transformers reads both from it. A prefix is added or
    removed only if the base then has the weights of all layers.
    """
    keys = changed_tensors(weights)
    if all(key in base for key in keys):
        return weights
    shorter = {key.partition(".")[0] for key in keys}
    longer = {name.partition(".")[0] for name in base}
    found = [_without(f"{prefix}.") for prefix in shorter] + [_with(f"{prefix}.", base) for prefix in longer]
    fitting = [rename for rename in found if all(rename(key) in base for key in keys)]
    return _renamed(weights, fitting[0]) if len(fitting) == 1 else weights


def changed_tensors(weights: AdapterWeights) -> list[str]:
    """The names of the tensors that have a low-rank change."""
    expert = {f"{name}.{number}" for name, count in weights.experts.items() for number in range(count)}
    return [*(weight_of(path) for path in weights.layers if path not in expert), *weights.experts]


def _without(prefix: str) -> Callable[[str], str]:
    return lambda key: key.removeprefix(prefix)


def _with(prefix: str, base: Collection[str]) -> Callable[[str], str]:
    return lambda key: prefix + key if prefix + key in base else key


def _renamed(weights: AdapterWeights, rename: Callable[[str], str]) -> AdapterWeights:
    weights = with_experts_named(weights, {name: rename(name) for name in weights.experts})
    paths = {path: path_of_weight(rename(weight_of(path))) for path in weights.layers}
    by_path = ("layers", "magnitudes", "nested", "biases", "kernels")
    by_key = ("whole", "rows")
    parts: dict[str, Any] = {
        name: {paths[path]: value for path, value in getattr(weights, name).items()} for name in by_path
    }
    parts |= {name: {rename(key): value for key, value in getattr(weights, name).items()} for name in by_key}
    parts |= {name: frozenset(paths[path] for path in getattr(weights, name)) for name in ("embeddings", "by_input")}
    return replace(weights, **parts)
