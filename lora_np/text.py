"""Texts: their token ids, by the package `tokenizers` (extra ``text``), and predictions in batches of similar length."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, final

import numpy as np

from ._typing import Array
from ._validation import integer, positive_int
from .base import Layer
from .errors import ArgumentError, FormatError, NotSupportedError
from .io._gguf_tokenizer import end_of, tokenizer_of
from .io._json import read_json
from .io.gguf import GGUFFile
from .run import Tasks, checked_rank

FILE = "tokenizer.json"


@final
class Tokenizer:
    """The tokenizer of a pretrained model.

    Parameters
    ----------
    path : path
        A tokenizer.json, or a folder that contains one.
    max_tokens : int or None, default 512
        Longer texts are truncated to this length; BERT has 512 positions. None: they are not truncated.

    Raises
    ------
    ArgumentError
        If `max_tokens` is not a positive integer.
    FormatError
        If the file is missing or damaged.
    NotSupportedError
        If the package `tokenizers` is not installed.

    Attributes
    ----------
    end : int or None
        The id of the token that ends a text, at which a generated text stops: ``eos_token_id`` of generation_config.json or
        config.json beside tokenizer.json, or of a GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str], max_tokens: int | None = 512) -> None:
        tokenizers = _package()
        file = os.fspath(path)
        file = os.path.join(file, FILE) if os.path.isdir(file) else file
        if not os.path.isfile(file):
            raise FormatError(f"{file}: no such file")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(file)
        except Exception as error:  # the package raises plain Exception
            raise FormatError(f"{file}: not a tokenizer: {error}") from error
        self._set(tokenizer, max_tokens, _end_beside(file))

    def _set(self, tokenizer: Any, max_tokens: int | None, end: int | None) -> None:
        self._tokenizer, self.end = tokenizer, end
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if max_tokens is not None:
            tokenizer.enable_truncation(max_length=positive_int("max_tokens", max_tokens))

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str], max_tokens: int | None = None) -> Self:
        """The tokenizer in a GGUF file, built of its vocabulary and merges.

        Parameters
        ----------
        path : path
            A file with a byte-level BPE tokenizer that divides texts into words as GPT-2 or SmolLM do.
        max_tokens : int, optional
            Longer texts are truncated to this length; by default, they are not.

        Raises
        ------
        ArgumentError
            If `max_tokens` is not a positive integer.
        FormatError
            If the file is damaged, or contains no tokenizer.
        NotSupportedError
            If the tokenizer is of another kind, or if the package `tokenizers` is not installed.

        Notes
        -----
        Nothing is added to a text, except the token of its beginning if the file says so. Special tokens in a text, such as
        ``<|im_start|>``, become their ids, so that the markup of a chat is a part of the text. That of SmolLM2 and other
        models with ChatML is::

            <|im_start|>system
            You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
            <|im_start|>user
            What is the capital of France?<|im_end|>
            <|im_start|>assistant
        """
        _package()
        with GGUFFile(path) as file:
            tokenizer, end = tokenizer_of(file), end_of(file)
        made = cls.__new__(cls)
        made._set(tokenizer, max_tokens, end)
        return made

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

    def id_of(self, token: str) -> int | None:
        """The id of a token, such as ``"<|im_end|>"``; None if the vocabulary does not contain it."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens and padding; bytes that are not UTF-8 become U+FFFD.

        Raises
        ------
        ArgumentError
            If an id is not an integer.
        """
        text: str = self._tokenizer.decode([number for token in ids if (number := integer("each of ids", token)) >= 0])
        return text

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of token ids as they come, in pieces whose concatenation is that of `decode`.

        A piece ends with a complete character, which may take several tokens.
        """
        known: list[int] = []
        text = shown = ""
        for token in ids:
            known.append(token)
            text = self.decode(known)
            if text != shown and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        if text != shown:
            yield text[len(shown) :]


def _package() -> Any:
    """The package `tokenizers`."""
    try:
        import tokenizers
    except ImportError as error:
        raise NotSupportedError('texts need the package tokenizers: pip install "lora_np[text]"') from error
    return tokenizers


def _end_beside(file: str) -> int | None:
    """The id of the token that ends a text, from the configuration beside a tokenizer.json."""
    for name in ("generation_config.json", "config.json"):
        place = os.path.join(os.path.dirname(file), name)
        entries = read_json(place) if os.path.isfile(place) else None
        end = entries.get("eos_token_id") if isinstance(entries, dict) else None
        end = end[0] if isinstance(end, list) and end else end
        if isinstance(end, int) and not isinstance(end, bool):
            return end
    return None


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
