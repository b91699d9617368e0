"""The tokenizer of a GGUF file, built of its vocabulary and merges with the package `tokenizers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, NotSupportedError
from ._gguf_header import Value
from .gguf import GGUFFile

if TYPE_CHECKING:
    import tokenizers

MODEL, PRE, TOKENS, TYPES, MERGES = (
    f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges")
)
BEGIN, ADDS_BEGIN, END = (f"tokenizer.ggml.{name}" for name in ("bos_token_id", "add_bos_token", "eos_token_id"))

SPECIAL, USER_DEFINED = 3, 4
"""The types of tokens that are never divided: special ones, which are no text, such as the end, and others."""


def tokenizer_of(file: GGUFFile) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019).

    Raises
    ------
    FormatError
        If the vocabulary or the merges are missing or do not fit together.
    NotSupportedError
        If the tokenizer is of another kind, or divides texts into words by another rule.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    metadata, path = file.metadata, file.path
    kind = metadata.get(MODEL)
    if not (isinstance(kind, str) and kind == "gpt2"):
        raise NotSupportedError(f"{path}: metadata {MODEL!r}: must be 'gpt2', byte-level BPE, got {kind!r}")
    words = _words(metadata, path)
    tokens, merges = _texts(metadata, TOKENS, path), _texts(metadata, MERGES, path)
    if len(set(tokens)) != len(tokens):
        raise FormatError(f"{path}: metadata {TOKENS!r}: a token occurs twice")
    if any(merge.count(" ") != 1 for merge in merges):
        raise FormatError(f"{path}: metadata {MERGES!r}: each must be two tokens, separated by a space")
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    try:
        model = models.BPE({token: i for i, token in enumerate(tokens)}, pairs)
    except Exception as error:  # the package raises plain Exception
        raise FormatError(f"{path}: metadata {MERGES!r}: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = words, decoders.ByteLevel()
    for token, type_ in zip(tokens, _types(metadata, len(tokens), path), strict=True):
        if type_ in (SPECIAL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=type_ == SPECIAL, normalized=False)])
    if metadata.get(ADDS_BEGIN) is True:
        begin = tokens[_id(metadata, BEGIN, len(tokens), path)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, tokens.index(begin))]
        )
    return tokenizer


def end_of(file: GGUFFile) -> int | None:
    """The id of the token that ends a text, if there is one."""
    if END not in file.metadata:
        return None
    return _id(file.metadata, END, len(_texts(file.metadata, TOKENS, file.path)), file.path)


def _words(metadata: Mapping[str, Value], path: str) -> Any:
    """The rule that divides a text into words: that of GPT-2, before which SmolLM separates digits."""
    from tokenizers import pre_tokenizers

    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules = {
        "gpt-2": by_bytes,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes]),
    }
    name = metadata.get(PRE)
    if not (isinstance(name, str) and name in rules):
        raise NotSupportedError(f"{path}: metadata {PRE!r}: must be one of {', '.join(rules)}, got {name!r}")
    return rules[name]


def _texts(metadata: Mapping[str, Value], key: str, path: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list):
        raise FormatError(f"{path}: metadata {key!r}: must be a list of strings")
    return value


def _types(metadata: Mapping[str, Value], count: int, path: str) -> list[int]:
    """The type of each token; all are ordinary if the file does not say."""
    value = metadata.get(TYPES)
    if value is None:
        return [1] * count
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != count:
        raise FormatError(f"{path}: metadata {TYPES!r}: must be {count:,} integers, one for each token")
    types: list[int] = value.tolist()
    return types


def _id(metadata: Mapping[str, Value], key: str, count: int, path: str) -> int:
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise FormatError(f"{path}: metadata {key!r}: must be the id of a token, 0 to {count - 1:,}, got {value!r}")
    return value
