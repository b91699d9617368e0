"""What an adapter format can hold: everything else is named before anything is written."""

from __future__ import annotations

from collections.abc import Collection

from .._validation import instance
from ..errors import ArgumentError, NotSupportedError
from ..factors.weights import AdapterWeights
from ._peft_config import changed_base

WORDS = {
    "magnitudes": "the DoRA magnitude of",
    "by_input": "the DoRA magnitudes of the inputs of",
    "nested": "the DyLoRA ranks of",
    "whole": "the whole tensor",
    "rows": "the replaced rows of",
    "biases": "the change of the bias of",
    "embeddings": "the low-rank change of the embedding",
    "kernels": "the convolution",
    "experts": "the experts of",
}
"""The fields of AdapterWeights beside its layers."""


def check_holds(target: str, weights: AdapterWeights, held: Collection[str]) -> None:
    """Raise if an adapter has something that a format cannot hold.

    Parameters
    ----------
    target : str
        The name of the format.
    weights : AdapterWeights
    held : collection of str
        The keys of `WORDS` that the format can hold.
    """
    instance("weights", weights, AdapterWeights, "AdapterWeights")
    if not weights.layers:
        raise ArgumentError("weights must contain at least one layer, got none")
    for name, words in WORDS.items():
        found = sorted(getattr(weights, name))
        if found and name not in held:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise NotSupportedError(f"the {target} format cannot hold {words} {found[0]!r}{more}")
    start = changed_base(weights.config)
    if start:
        raise NotSupportedError(f"the {target} format cannot hold the changed base of init_lora_weights={start!r}")
