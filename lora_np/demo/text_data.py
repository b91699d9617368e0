"""The labelled sentences of the text demo: film reviews and short messages, split for training and testing."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._typing import Array
from ..errors import FormatError
from ..text import Tokenizer
from .digits import Rows
from .text_files import SENTENCES
from .text_settings import TextSettings, TextStream

REVIEWS, MESSAGES = SENTENCES.names
NEUTRAL = 0.5
"""Reviews with a rating closer to 0 are left out."""


@dataclass(frozen=True)
class Task:
    """Sentences as token ids, with labels."""

    name: str
    classes: tuple[str, str]
    """The names of the labels 0 and 1."""
    training: Rows
    test: Rows


class _Labelled(NamedTuple):
    texts: list[str]
    labels: Array


def load_tasks(folder: Path, tokenizer: Tokenizer, settings: TextSettings) -> tuple[Task, Task]:
    """The sentiment of film reviews, and spam among short messages.

    Parameters
    ----------
    folder : path
        The folder that contains the files of `SENTENCES`.
    tokenizer : Tokenizer
        Truncates to ``settings.max_tokens``.
    settings : TextSettings

    Raises
    ------
    FormatError
        If a file is not in the expected format, or if there are not enough sentences.
    """
    reviews, messages = _read(folder / REVIEWS, _reviews), _read(folder / MESSAGES, _messages)
    short = (tokenizer.encode(reviews.texts) >= 0).sum(axis=1) < settings.max_tokens
    reviews = _Labelled([text for text, kept in zip(reviews.texts, short, strict=True) if kept], reviews.labels[short])
    return (
        _split("sentiment", ("negative", "positive"), reviews, tokenizer, settings),
        _split("spam", ("ham", "spam"), messages, tokenizer, settings),
    )


def _read(file: Path, parse: Callable[[list[str]], _Labelled]) -> _Labelled:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return parse(list(lines)[1:])  # below the header
    except (ValueError, csv.Error) as error:
        raise FormatError(f"{file.name}: not in the expected format: {error}") from error


def _reviews(lines: list[str]) -> _Labelled:
    """Lines of number, mean rating from -4 to 4, and text."""
    rows = [line.rstrip("\r\n").split("\t", 2) for line in lines]
    ratings = np.array([float(rating) for _, rating, _ in rows])
    kept = np.abs(ratings) >= NEUTRAL
    texts = [text for (*_, text), opinion in zip(rows, kept, strict=True) if opinion]
    return _Labelled(texts, (ratings[kept] > 0).astype(np.int64))


def _messages(lines: list[str]) -> _Labelled:
    """Comma-separated number, 1 for spam or 0, and text."""
    rows = list(csv.reader(lines))
    return _Labelled([text for _, _, text in rows], np.array([int(label) for _, label, _ in rows], dtype=np.int64))


def _split(name: str, classes: tuple[str, str], sentences: _Labelled, tokenizer: Tokenizer, settings: TextSettings) -> Task:
    """Shuffle the sentences, drop repeated ones, and take those for testing first."""
    order: dict[str, int] = {}
    for row in settings.generator(TextStream.SPLIT).permutation(len(sentences.texts)):
        order.setdefault(" ".join(sentences.texts[row].lower().split()), int(row))
    chosen = list(order.values())[: settings.test_rows + settings.training_rows]
    if len(chosen) <= settings.test_rows:
        raise FormatError(f"{name}: must have more than {settings.test_rows} different sentences, got {len(chosen)}")
    ids, labels = tokenizer.encode([sentences.texts[row] for row in chosen]), sentences.labels[chosen]
    test, training = slice(settings.test_rows), slice(settings.test_rows, None)
    return Task(name, classes, Rows(ids[training], labels[training]), Rows(ids[test], labels[test]))
