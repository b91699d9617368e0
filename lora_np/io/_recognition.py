"""Which kind of adapter a safetensors file holds, by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

KINDS = (
    (r".+\.lora_down\.weight", "kohya"),
    (r"base_model\.model\..+\.lora_A\.weight", "PEFT"),
    (r".+\.lora_A\.weight|.+(\.lora|_lora|\.lora_linear_layer)\.down\.weight", "diffusers"),
)
"""A pattern of names that each readable kind has."""

OTHERS = (
    (r".+\.hada_w[12]_[ab]", "LoHa"),
    (r".+\.lokr_w[12](_[ab])?", "LoKr"),
    (r".+\.(ia3_l|on_input)", "IA3"),
    (r".+\.(oft_(R|r|blocks|diag)(\.weight)?|boft_[Rs])", "OFT"),
    (r".+\.[ab][12]\.weight", "GLoRA"),
    (r".+\.(diff|diff_b)", "full difference"),
    (r".+\.[wb]_norm", "norm"),
    (r".+\.vera_lambda_[bd]", "VeRA"),
    (r".+\.lora_E", "AdaLoRA"),
    (r"prompt_embeddings", "prompt tuning"),
)
"""Kinds that are not a pair of factors for each matrix, and a pattern of their names."""


def readable_kind(names: Iterable[str]) -> str | None:
    """The kind of a file that lora_np reads: "kohya", "PEFT" (its weights without the configuration), or "diffusers"."""
    return _first(names, KINDS)


def other_kind(names: Iterable[str]) -> str | None:
    """The kind of an adapter file that lora_np does not read, or None."""
    return _first(names, OTHERS)


def _first(names: Iterable[str], table: tuple[tuple[str, str], ...]) -> str | None:
    found = list(names)
    return next((kind for pattern, kind in table if any(map(re.compile(pattern).fullmatch, found))), None)
