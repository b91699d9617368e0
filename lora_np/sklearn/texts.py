"""What the estimators for texts have in common: their encoder, their tokenizer, and the check of texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from .._typing import Array
from ..errors import ArgumentError
from ..io.pretrained import load_encoder
from ..models.bert import BertModel
from ..models.tokens import TokenModel
from ..text import Tokenizer

Tokenize: TypeAlias = Callable[[list[str]], Any]
"""From texts to token ids, (texts, tokens), padded at the end with -1."""


def encoder_and_tokenizer(model: Any, tokenizer: Any) -> tuple[BertModel, Tokenize]:
    """What the parameters `model` and `tokenizer` of an estimator denote."""
    if not isinstance(model, str | os.PathLike | BertModel):
        raise ArgumentError(f"model must be the folder of a pretrained model, or a BertModel, got {model!r}")
    encoder = model if isinstance(model, BertModel) else load_encoder(model)
    return encoder, tokenizer_of(model, tokenizer, encoder.positions)


def tokenizer_of(model: Any, tokenizer: Any, positions: int) -> Tokenize:
    """The tokenizer in a file or folder, by default in that of the model; or a function, as it is."""
    source = model if tokenizer is None else tokenizer
    if isinstance(source, str | os.PathLike):
        return Tokenizer(source, positions).encode
    if tokenizer is None:
        raise ArgumentError("tokenizer must be given if model is not a folder")
    if not callable(tokenizer):
        raise ArgumentError(f"tokenizer must be a path, a function from texts to token ids, or None, got {tokenizer!r}")
    return tokenizer


def checked_texts(X: Any) -> list[str]:
    """A one-dimensional sequence of strings as a list."""
    if isinstance(X, str):
        raise ArgumentError(f"X must be a sequence of strings; use [text] for a single text, got {X!r}")
    if getattr(X, "ndim", 1) != 1:
        raise ArgumentError(f"X must be a one-dimensional sequence of strings, got shape {X.shape}")
    if not hasattr(X, "__len__"):
        raise ArgumentError(f"X must be a sequence of strings, got {X!r}")
    texts = list(X)
    if not texts:
        raise ArgumentError("X must contain at least one text, got none")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ArgumentError(f"X must contain only strings, got {text!r} at index {number}")
    return texts


def token_ids(texts: list[str], tokenize: Tokenize, model: TokenModel) -> Array:
    """The token ids of checked texts, which must fit the model."""
    ids = model.check_input(tokenize(texts), name="tokenizer(X)")
    if len(ids) != len(texts):
        raise ArgumentError(f"tokenizer(X) must have one row for each of {len(texts)} texts, got {len(ids)}")
    return ids


def with_text_input(tags: Any) -> Any:
    """The tags of an estimator whose input is a sequence of strings."""
    tags.input_tags.one_d_array = tags.input_tags.string = True
    tags.input_tags.two_d_array = False
    return tags
