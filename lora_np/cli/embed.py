"""``lora-np embed``: sentence embeddings of texts."""

import argparse

from ..models.heads import SentenceEncoder
from ._texts import add_texts, encoder_at, print_line, results, tokenizer_at
from .verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the folder of a pretrained encoder, such as all-MiniLM-L6-v2")
    add_texts(parser)


def _run(arguments: argparse.Namespace) -> int:
    model = SentenceEncoder(encoder_at(arguments.model))
    tokenizer = tokenizer_at(arguments, model.positions)
    for text, embedding in results(model, tokenizer, arguments):
        print_line({"text": text, "embedding": [float(number) for number in embedding]})
    return 0


EMBED = Verb(
    name="embed",
    summary="print the sentence embedding of each text, of length 1, as lines of JSON",
    example='lora-np embed all-MiniLM-L6-v2 "A cat." "A dog."\nlora-np embed all-MiniLM-L6-v2 < sentences.txt',
    add_arguments=_add_arguments,
    run=_run,
)
