"""Texts: their token ids, by the package `tokenizers` (extra ``text``), and predictions in batches of similar length."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

import numpy as np

from ._typing import Array
from ._validation import positive_int
from .base import Layer
from .errors import ArgumentError, FormatError, NotSupportedError
from .run import Tasks, checked_rank

FILE = "tokenizer.json"


@final
class Tokenizer:
    """The tokenizer of a pretrained model.

    Parameters
    ----------
    path : path
        A tokenizer.json, or a folder that contains one.
    max_tokens : int, default 512
        Longer texts are truncated to this length; BERT has 512 positions.

    Raises
    ------
    ArgumentError
        If `max_tokens` is not a positive integer.
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
        file = os.path.join(file, FILE) if os.path.isdir(file) else file
        if not os.path.isfile(file):
            raise FormatError(f"{file}: no such file")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(file)
        except Exception as error:  # the package raises plain Exception
            raise FormatError(f"{file}: not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=positive_int("max_tokens", max_tokens))

    def encode(self, texts: str | Iterable[str]) -> Array:
        """The token ids of texts.

        Parameters
        ----------
        texts : iterable of str
            A single string counts as one text.

        Returns
        -------
        array of int64, shape (texts, tokens)
            Each row is padded at its end with -1, the input of a `TokenModel`.

        Raises
        ------
        ArgumentError
            If a text is not a string, or if it contains a lone surrogate.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        for text in listed:
            if not isinstance(text, str):
                raise ArgumentError(f"texts must be strings, got {text!r}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ArgumentError(f"texts must be valid Unicode, got {text!r}") from error
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(listed)]
        ids = np.full((len(encoded), max(map(len, encoded), default=0)), -1, np.int64)
        for row, tokens in zip(ids, encoded, strict=True):
            row[: len(tokens)] = tokens
        return ids


def by_length(ids: Array, batch_size: int = 64) -> Iterator[tuple[Array, Array]]:
    """Divide sentences into batches of similar length, shortest first, so that attention works on little padding.

    Parameters
    ----------
    ids : array of int, shape (sentences, tokens)
        Padded at the end with -1.
    batch_size : int, default 64

    Yields
    ------
    rows : array of int, shape (batch,)
        The indices of the sentences.
    ids : array of int, shape (batch, tokens)
        Their ids, padded to the longest sentence of the batch.
    """
    lengths = (ids >= 0).sum(axis=1)
    order = lengths.argsort(kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, ids[rows, : lengths[rows[-1]]]


def predict_by_length(
    model: Layer,
    ids: Any,
    *,
    tasks: Sequence[str | None] | None = None,
    rank: int | Iterable[int] | None = None,
    batch_size: int = 64,
) -> Array:
    """``model.predict(ids)`` in batches of similar length: faster for many sentences, equal up to rounding.

    Parameters
    ----------
    model : Layer
        A model of sentences with one output row for each, such as `SentenceEncoder` or `SequenceClassifier`.
    ids : array of int, shape (sentences, tokens)
    tasks : sequence of str or None, optional
        The task of each sentence; by default, the current one.
    rank : int or sequence of int, optional
        A rank, or a rank for each sentence; by default, the deployment rank.
    batch_size : int, default 64

    Returns
    -------
    array, shape (sentences, output_size)
        In the order of `ids`.

    Raises
    ------
    ArgumentError
        If an argument is invalid.
    """
    batch_size, ids = positive_int("batch_size", batch_size), model.check_input(ids, name="ids")
    names = None if tasks is None else tuple(tasks)
    if names is not None:
        Tasks.of(names, len(ids))
    ranks = _ranks(rank, len(ids))
    outputs = np.empty((len(ids), model.output_size), model.dtype)
    for rows, batch in by_length(ids, batch_size):
        own_rank = ranks[rows] if isinstance(ranks, np.ndarray) else ranks
        outputs[rows] = model.predict(batch, tasks=None if names is None else [names[row] for row in rows], rank=own_rank)
    return outputs


def _ranks(rank: Any, sentences: int) -> int | Array | None:
    """A rank, or an array with one for each sentence, which can be reordered; a function could not."""
    ranks = checked_rank(rank, sentences)
    if callable(ranks):
        raise ArgumentError(f"rank must be an integer, or an integer for each sentence, got {rank!r}")
    return ranks
