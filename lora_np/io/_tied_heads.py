"""Output heads of language models that are tied to the embedding: the base has one tensor for both."""

from __future__ import annotations

import os

from ..factors.weights import AdapterWeights
from ._checkpoint import Checkpoint
from ._json import read_json

HEADS = ("lm_head", "embed_out")
"""The names of output heads that may be tied to an embedding."""

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")


def is_causal(old: Checkpoint, adapter: AdapterWeights) -> bool:
    """Whether the base is a language model, so that it must have an output head."""
    config = os.path.join(os.path.dirname(next(iter(old.files.values())).path), "config.json")
    entries = read_json(config) if os.path.isfile(config) else {}
    names = entries.get("architectures") if isinstance(entries, dict) else None
    if isinstance(names, list):
        return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return adapter.config.get("task_type") == "CAUSAL_LM"


def tied_table(old: Checkpoint, key: str) -> str | None:
    """The embedding that serves as the output head of the base, if the head is not in the checkpoint."""
    if key in old or key.removesuffix(".weight").rpartition(".")[2] not in HEADS:
        return None
    return next((other for other in old if other.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS), None)
