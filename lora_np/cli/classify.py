"""``lora-np classify``: the class of texts."""

import argparse
import os
from collections.abc import Sequence

import numpy as np

from ..errors import ArgumentError, FormatError
from ..functions.activations import softmax
from ..io._json import read_json
from ..io.npz import load_layer
from ..io.peft import load_peft, peft_adapters
from ..models.heads import BODY, SequenceClassifier
from ._adapters import naming, with_adapter
from ._options import add_drop, positive
from ._texts import add_texts, print_line, results, tokenizer_at
from .verb import Verb

CLASSIFIER, LABELS = "classifier.npz", "labels.json"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a SequenceClassifier saved by save_layer, or a folder that contains it as {CLASSIFIER}; beside it, "
        f"tokenizer.json and, for the names of the classes, {LABELS} with a list",
    )
    add_texts(parser)
    parser.add_argument(
        "--adapter", metavar="DIR", help="a PEFT folder with an adapter of the classifier or of its encoder"
    )
    parser.add_argument("--rank", type=positive, metavar="R", help="the rank of DyLoRA adapters")
    add_drop(parser)


def _run(arguments: argparse.Namespace) -> int:
    file = os.path.join(arguments.model, CLASSIFIER) if os.path.isdir(arguments.model) else arguments.model
    model = _classifier(file, arguments.adapter, arguments.drop)
    tokenizer = tokenizer_at(arguments, model.positions)
    labels = _labels(os.path.join(os.path.dirname(file), LABELS), model.output_size)
    for text, logits in results(model, tokenizer, arguments, arguments.rank):
        probabilities = softmax(logits)
        shares = {label: float(share) for label, share in zip(labels, probabilities, strict=True)}
        print_line({"text": text, "label": labels[int(np.argmax(probabilities))], "probabilities": shares})
    return 0


def _classifier(file: str, adapter: str | None, drop: Sequence[str]) -> SequenceClassifier:
    with naming(file):
        if not os.path.isfile(file):
            raise ArgumentError(f"{file}: no such file")
        model = load_layer(file)
        if not isinstance(model, SequenceClassifier):
            raise ArgumentError(f"must be a SequenceClassifier, got a {type(model).__name__}")
    if adapter is not None:
        with naming(adapter):
            return _adapted(model, adapter, drop)
    return model


def _adapted(model: SequenceClassifier, adapter: str, drop: Sequence[str]) -> SequenceClassifier:
    """The model with an adapter, whose paths are those of the classifier or of its encoder."""
    place = next(iter(peft_adapters(adapter).values()))
    if any(path.startswith(f"{BODY}.") for path in load_peft(place, drop=drop).layers):
        whole = with_adapter(model, adapter, drop)
        assert isinstance(whole, SequenceClassifier)
        return whole
    return model.with_children({BODY: with_adapter(model.children()[BODY], adapter, drop)})


def _labels(file: str, classes: int) -> list[str]:
    """The names of the classes; their numbers if there is no file."""
    if not os.path.isfile(file):
        return [str(number) for number in range(classes)]
    labels = read_json(file)
    names = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not names or len(set(labels)) != classes or len(labels) != classes:
        raise FormatError(f"{file}: must contain a list of {classes} different names, got {labels!r}")
    return labels


CLASSIFY = Verb(
    name="classify",
    summary="print the class of each text, with the probabilities of all classes, as lines of JSON",
    example='lora-np classify my-model "What a film!"\nlora-np classify my-model --adapter my-adapter --rank 2 < new.txt',
    add_arguments=_add_arguments,
    run=_run,
)
