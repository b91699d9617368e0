"""`Tokenizer`: texts to token ids, by the package `tokenizers` (extra ``text``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, final

import numpy as np

from ._typing import Array
from .errors import ArgumentError, FormatError, NotSupportedError


@final
class Tokenizer:
    """The tokenizer of a pretrained model.

    Parameters
    ----------
    path : path
        A tokenizer.json, or the folder that contains it.
    max_tokens : int, optional
        Longer texts are truncated; by default, to the largest number of positions of BERT, 512.

    Raises
    ------
    FormatError
        If the file is missing or damaged.
    NotSupportedError
        If the package `tokenizers` is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], max_tokens: int = 512) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise NotSupportedError('texts need the package tokenizers: pip install "lora_np[text]"') from error
        file = os.fspath(path)
        file = os.path.join(file, "tokenizer.json") if os.path.isdir(file) else file
        if not os.path.isfile(file):
            raise FormatError(f"{file}: no such file")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(file)
        except Exception as error:  # the package raises plain Exception
            raise FormatError(f"{file}: not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=max_tokens)

    def encode(self, texts: Iterable[str]) -> Array:
        """The token ids of texts, (texts, tokens), each row padded at its end with -1."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        for text in listed:
            if not isinstance(text, str):
                raise ArgumentError(f"texts must be strings, got {text!r}")
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(listed)]
        ids = np.full((len(encoded), max(map(len, encoded), default=0)), -1, np.int64)
        for row, tokens in zip(ids, encoded, strict=True):
            row[: len(tokens)] = tokens
        return ids
