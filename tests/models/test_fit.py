"""`fit` on encoders with heads: classes of sentences, and of tokens, whose padding is ignored."""

import numpy as np
import pytest

from lora_np import Adam, ArgumentError, DyLoRAAdapter, SoftmaxCrossEntropy, apply_lora, fit
from lora_np.models.bert import BertModel
from lora_np.models.heads import SequenceClassifier, TokenClassifier

CLASSES, VOCABULARY, WIDTH = 3, 20, 7
CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": WIDTH + 2,
    "type_vocab_size": 2,
}


def build(kind):
    model = kind(BertModel.new(CONFIG, dtype=np.float64, rng=0), CLASSES, rng=1)
    options = {"max_rank": 4, "active_ranks": [1, 4], "rng": 2}
    return apply_lora(model, DyLoRAAdapter, ["query", "value"], train=["classifier"], **options)


def data(kind, rows=30):
    """Sentences of different lengths; the class of a token is its id modulo 3, and that of a sentence its first token's."""
    random = np.random.default_rng(0)
    ids = random.integers(0, VOCABULARY, (rows, WIDTH))
    ids[1:][np.arange(WIDTH) >= random.integers(1, WIDTH + 1, (rows - 1, 1))] = -1
    classes = np.where(ids < 0, -1, ids % CLASSES)
    return ids, classes if kind is TokenClassifier else classes[:, 0]


def padded(array):
    return np.pad(array, ((0, 0), (0, 2)), constant_values=-1)


def train(model, samples, epochs=20):
    return fit(model, samples, SoftmaxCrossEntropy(), Adam(0.05), epochs, 8, rng=0)


both = pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier], ids=lambda kind: kind.__name__)


@both
def test_it_learns(kind):
    history = train(build(kind), data(kind))
    assert history.epoch_losses[-1] < 0.85 * history.epoch_losses[0]


@both
def test_more_padding_changes_nothing(kind):
    found, expected = build(kind), build(kind)
    ids, targets = data(kind)
    train(expected, (ids, targets), 3)
    train(found, (padded(ids), targets if targets.ndim == 1 else padded(targets)), 3)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-9, atol=1e-12)


def test_the_loss_of_tokens_is_their_mean():
    model, (ids, classes) = build(TokenClassifier), data(TokenClassifier)
    tokens = ids >= 0
    expected = SoftmaxCrossEntropy()(model.predict(ids)[tokens], classes[tokens])
    history = fit(model, (ids, classes), SoftmaxCrossEntropy(), Adam(0.0), 1, len(ids))
    assert history.step_losses == pytest.approx([expected], rel=1e-13)


@both
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids, targets: (ids * 1.0, targets), r"inputs must be integer token ids .*, got float64 of shape \(30, 7\)"),
        (lambda ids, targets: (np.where(ids == 5, 20, ids), targets), r"inputs must contain ids in 0\.\.19, .*got 20"),
        (lambda ids, targets: (np.where(np.arange(7) == 1, -1, ids), targets), "inputs must be padded only at the end"),
        (lambda ids, targets: (ids, targets[1:]), r"the same, non-zero number of rows .*\(30, 7\) and \(29"),
        (lambda ids, targets: (ids, np.where(targets == 2, 3, targets)), r"targets must be labels in 0\.\.2"),
        (lambda ids, targets: (ids, targets[..., np.newaxis]), r"targets must be labels of shape \(30.*, got \(30,.* 1\)"),
    ],
)
def test_bad_samples_are_refused_before_the_first_step(kind, change, words):
    model = build(kind)
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=words):
        train(model, change(*data(kind)))
    np.testing.assert_array_equal(model.get_parameters(), before)
