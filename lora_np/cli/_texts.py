"""What the commands for texts share: where texts come from, and the tokenizer and batches that they go through."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from .._typing import Array
from ..base import Layer
from ..errors import ArgumentError
from ..io.pretrained import load_encoder
from ..models.bert import BertModel
from ..text import Tokenizer, predict_by_length
from ._adapters import naming

AT_ONCE = 1024
"""The number of texts that are read before the first results are printed."""


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Add the arguments TEXT and the option ``--tokenizer``."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="the texts; by default, the lines of standard input")
    parser.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json, or its folder (default: the model's folder)")


def results(
    model: Layer, tokenizer: Tokenizer, arguments: argparse.Namespace, rank: int | None = None
) -> Iterator[tuple[str, Array]]:
    """Each text with its output row, in the given order."""
    texts = iter(arguments.texts or _lines())
    while some := list(itertools.islice(texts, AT_ONCE)):
        ids = tokenizer.encode(some)
        yield from zip(some, predict_by_length(model, ids, rank=rank), strict=True)


def _lines() -> Iterator[str]:
    """The lines of standard input."""
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"standard input must be text in {error.encoding}: {error.reason}") from error


def encoder_at(path: str) -> BertModel:
    """The pretrained encoder in a folder."""
    if not os.path.isdir(path):
        raise ArgumentError(f"{path}: must be a folder with config.json and model.safetensors")
    return load_encoder(path)


def tokenizer_at(arguments: argparse.Namespace, positions: int) -> Tokenizer:
    """The tokenizer that the options name, or that of the model's folder; texts are truncated to the model's positions."""
    folder = arguments.model if os.path.isdir(arguments.model) else os.path.dirname(arguments.model) or os.curdir
    place = folder if arguments.tokenizer is None else arguments.tokenizer
    with naming(place):
        return Tokenizer(place, positions)


def print_line(values: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(values, ensure_ascii=False), flush=True)
