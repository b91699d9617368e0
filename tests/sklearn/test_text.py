"""Estimators for texts, over a tiny random BERT; scikit-learn's own checks, which pass numbers, are repeated with texts."""

import copy
import inspect
import io
import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks, get_tags

from lora_np import (
    SGD,
    AdamW,
    ArgumentError,
    ArgumentOutOfRangeError,
    DyLoRAAdapter,
    FormatError,
    InvalidOperationError,
    NotSupportedError,
    StandardLoRAAdapter,
    _archive,
    apply_lora,
    find,
    load_layer,
    save_layer,
)
from lora_np.adapters import LoRAAdapterBase
from lora_np.io.pretrained import load_pretrained
from lora_np.models.bert import BertModel
from lora_np.models.heads import SentenceEncoder
from lora_np.sklearn import LoRAClassifier, LoRATextClassifier, SentenceEmbedder
from lora_np.sklearn import texts as texts_module
from lora_np.text import Tokenizer

from .conftest import blobs, network

tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).parents[2]
BERT = ROOT / "tests" / "models" / "data" / "bert"
TOPICS = {
    "animals": ["cat", "dog", "horse", "cow", "sheep", "goat"],
    "fruit": ["apple", "pear", "plum", "cherry", "melon", "grape"],
    "tools": ["hammer", "saw", "drill", "wrench", "file", "plane"],
}
FILLERS = ["the", "a", "big", "small", "old", "new", "one", "two"]
WORDS = ["[UNK]", "[CLS]", "[SEP]", *FILLERS, *(word for words in TOPICS.values() for word in words)]
QUICK = {"rank": 4, "learning_rate": 0.02, "epochs": 2, "head_epochs": 5, "batch_size": 16, "random_state": 0}


def sentences(count=48, seed=0):
    """Texts of different lengths, each about one topic, and their topics."""
    random = np.random.default_rng(seed)
    labels = np.array(list(TOPICS))[np.arange(count) % 3]
    lengths = random.integers(1, 9, count)
    texts = []
    for label, length in zip(labels, lengths, strict=True):
        words = [*random.choice(TOPICS[label], (length + 1) // 2), *random.choice(FILLERS, length // 2)]
        texts.append(" ".join(random.permutation(words)))
    return texts, labels


TEXTS, LABELS = sentences()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A pretrained model: the weights of the golden tests, and a tokenizer of words."""
    folder = tmp_path_factory.mktemp("bert")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((BERT / name).read_bytes())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def tokenize(texts):
    """A tokenizer of one's own: an id for each word, without special tokens."""
    ids = np.full((len(texts), max(len(text.split()) for text in texts)), -1)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text.split())] = [WORDS.index(word) if word in WORDS else 0 for word in text.split()]
    return ids


def encoder(blocks=3, dtype=np.float64):
    config = {"hidden_size": 8, "num_hidden_layers": blocks, "num_attention_heads": 2, "intermediate_size": 12}
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 12, "type_vocab_size": 2}
    return BertModel.new(config | sizes, dtype=dtype, rng=0)


def bits(model):
    return {name: array.tobytes() for name, array in model.named_parameters(frozen=True).items()}


@pytest.fixture(scope="session")
def fitted(folder):
    """A classifier, which no test may change."""
    return LoRATextClassifier(folder, **QUICK | {"epochs": 5}).fit(TEXTS, LABELS)


# ---------------------------------------------------------------- both estimators

BOTH = [SentenceEmbedder, LoRATextClassifier]
both = pytest.mark.parametrize("kind", BOTH, ids=lambda kind: kind.__name__)


def build(kind, *arguments, **options):
    return kind(*arguments, **({} if kind is SentenceEmbedder else QUICK) | options)


def outputs(estimator, texts):
    return estimator.transform(texts) if isinstance(estimator, SentenceEmbedder) else estimator.predict_proba(texts)


@both
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_mixin_order,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    ],
)
def test_scikit_learns_checks_without_data(kind, check):
    check(kind.__name__, kind("a folder"))


@both
def test_tags_say_that_the_input_is_texts(kind):
    tags = get_tags(kind("a folder"))
    assert (tags.input_tags.one_d_array, tags.input_tags.string, tags.input_tags.two_d_array) == (True, True, False)
    assert tags.requires_fit == tags.target_tags.required == (kind is LoRATextClassifier)


@both
def test_parameters_are_stored_as_given(kind):
    given = {name: object() for name in inspect.signature(kind).parameters}
    estimator = kind(**given)
    assert estimator.get_params(deep=False) == given
    assert vars(estimator) == given


@both
def test_texts_come_in_any_sequence_of_strings(kind, folder):
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(TEXTS, index=np.arange(len(TEXTS))[::-1] * 10)
    expected = outputs(build(kind, folder).fit(TEXTS, LABELS), TEXTS)
    for texts in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), series):
        np.testing.assert_array_equal(outputs(build(kind, folder).fit(texts, LABELS), texts), expected)


@both
@pytest.mark.parametrize(
    ("X", "words"),
    [
        ("a cat", r"use \[text\] for a single text, got 'a cat'"),
        ([["a cat"], ["a dog"]], r"X must contain only strings, got \['a cat'\] at index 0"),
        (np.array([["a cat"], ["a dog"]]), r"X must be a one-dimensional sequence of strings, got shape \(2, 1\)"),
        (np.zeros((2, 3)), r"X must be a one-dimensional sequence of strings, got shape \(2, 3\)"),
        (["a cat", 5], "X must contain only strings, got 5 at index 1"),
        (["a cat", None], "X must contain only strings, got None at index 1"),
        ([b"a cat", "a dog"], "X must contain only strings, got b'a cat' at index 0"),
        (None, "X must be a sequence of strings, got None"),
        (iter(["a cat", "a dog"]), "X must be a sequence of strings, got <list_iterator"),
        ([], "X must contain at least one text, got none"),
    ],
    ids=["str", "lists", "2-D", "numbers", "a number", "missing", "bytes", "None", "iterator", "empty"],
)
def test_anything_but_texts_is_refused(kind, X, words, folder, fitted):
    with pytest.raises(ArgumentError, match=words):
        build(kind, folder).fit(X, ["x", "y"])
    with pytest.raises(ArgumentError, match=words):
        outputs(SentenceEmbedder(folder) if kind is SentenceEmbedder else fitted, X)


@both
def test_data_frames_are_refused(kind, folder):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ArgumentError, match=r"one-dimensional sequence of strings, got shape \(2, 1\)"):
        build(kind, folder).fit(pandas.DataFrame({"text": ["a cat", "a dog"]}), ["x", "y"])


@both
@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"model": None}, ArgumentError, "model must be the folder of a pretrained model, or a BertModel, got None"),
        ({"model": SentenceEncoder(encoder())}, ArgumentError, "model must be the folder .*, got SentenceEncoder"),
        ({"model": "no such folder"}, FormatError, "config.json: no such file"),
        ({"model": encoder()}, ArgumentError, "tokenizer must be given if model is not a folder"),
        ({"tokenizer": 3}, ArgumentError, "tokenizer must be a path, a function .*, or None, got 3"),
        ({"tokenizer": "no such file"}, FormatError, "no such file: no such file"),
        (
            {"tokenizer": lambda texts: [[1, 2]]},
            ArgumentError,
            r"tokenizer\(X\) must have one row for each of 48 texts, got 1",
        ),
        ({"tokenizer": lambda texts: [[0.5]] * 48}, ArgumentError, r"tokenizer\(X\) must be integer token ids"),
        ({"tokenizer": lambda texts: [[99]] * 48}, ArgumentError, r"tokenizer\(X\) must contain ids in 0\.\.49, .*got 99"),
        ({"tokenizer": lambda texts: [[-1]] * 48}, ArgumentError, r"tokenizer\(X\) must have at least one token"),
        ({"batch_size": 0}, ArgumentOutOfRangeError, "batch_size must be at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_models_and_tokenizers_are_refused(kind, parameters, error, words, folder):
    estimator = build(kind, **{"model": folder} | parameters)
    with pytest.raises(error, match=words):
        outputs(estimator.fit(TEXTS, LABELS), TEXTS)


@both
def test_the_order_and_the_company_of_texts_do_not_matter(kind, folder, fitted):
    estimator = SentenceEmbedder(folder) if kind is SentenceEmbedder else fitted
    expected, order = outputs(estimator, TEXTS), np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_allclose(outputs(estimator, np.array(TEXTS)[order]), expected[order], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs(estimator, TEXTS[5:6]), expected[5:6], rtol=1e-4, atol=1e-6)


@both
def test_unknown_words_and_long_texts_are_accepted(kind, folder, fitted):
    estimator = SentenceEmbedder(folder) if kind is SentenceEmbedder else fitted
    result = outputs(estimator, ["a xylophone", "", "cat " * 10, "cat " * 50])
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[3], result[2], rtol=1e-5)  # 12 positions, two of which are special


@both
def test_an_encoder_and_a_function_replace_the_folder(kind):
    model = encoder()
    before = bits(model)
    estimator = build(kind, model, tokenize).fit(TEXTS, LABELS)
    assert outputs(estimator, TEXTS).dtype == np.float64
    assert estimator.model is model
    assert bits(model) == before


@both
def test_a_tokenizer_may_be_elsewhere(kind, folder, tmp_path):
    file = tmp_path / "words.json"
    file.write_bytes((Path(folder) / "tokenizer.json").read_bytes())
    expected = outputs(build(kind, folder).fit(TEXTS, LABELS), TEXTS)
    for tokenizer in (file, str(file), folder):
        found = build(kind, Path(folder), tokenizer).fit(TEXTS, LABELS)
        np.testing.assert_array_equal(outputs(found, TEXTS), expected)


@both
def test_copies_pickle_and_joblib_give_the_same(kind, folder, tmp_path):
    for model, tokenizer in ((folder, None), (encoder(), tokenize)):
        estimator = build(kind, model, tokenizer).fit(TEXTS, LABELS)
        joblib.dump(estimator, tmp_path / "estimator")
        expected = outputs(estimator, TEXTS)
        for twin in (pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "estimator"), copy.deepcopy(estimator)):
            np.testing.assert_array_equal(outputs(twin, TEXTS), expected)
        np.testing.assert_array_equal(outputs(clone(estimator).fit(TEXTS, LABELS), TEXTS), expected)


@both
def test_numpys_global_generator_is_left_alone(kind, folder):
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    outputs(build(kind, folder).fit(TEXTS, LABELS), TEXTS)
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


# ---------------------------------------------------------------- embeddings


def test_embeddings_are_those_of_the_encoder(folder):
    expected = SentenceEncoder(load_pretrained(folder)).predict(Tokenizer(folder, 12).encode(TEXTS))
    for batch_size in (1, 7, 64):
        found = SentenceEmbedder(folder, batch_size=batch_size).fit_transform(TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_fit_refuses_a_batch_size_already(folder):
    with pytest.raises(ArgumentOutOfRangeError, match="batch_size must be at least 1, got 0"):
        SentenceEmbedder(folder, batch_size=0).fit(TEXTS)


def test_a_pass_has_batch_size_texts(folder, monkeypatch):
    rows, predict = [], SentenceEncoder.predict
    monkeypatch.setattr(
        SentenceEncoder, "predict", lambda model, ids, **run: (rows.append(len(ids)), predict(model, ids))[1]
    )
    SentenceEmbedder(folder, batch_size=20).transform(TEXTS)
    assert rows == [20, 20, 8]


def test_the_embedder_needs_no_fit(folder):
    embedder = SentenceEmbedder(folder)
    first = embedder.transform(TEXTS)
    np.testing.assert_array_equal(embedder.fit(TEXTS[:1]).transform(TEXTS), first)


def test_a_folder_is_loaded_once(folder, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(texts_module, "load_encoder", lambda path: loads.append(path) or load_pretrained(path))
    embedder = SentenceEmbedder(folder)
    assert loads == []
    embedder.fit(TEXTS).transform(TEXTS)
    embedder.transform(TEXTS)
    embedder.get_feature_names_out()
    assert loads == [folder]
    embedder.set_params(tokenizer=tokenize).transform(TEXTS)
    assert len(loads) == 2
    assert len(pickle.dumps(SentenceEmbedder(folder).fit(TEXTS))) < 1000


def test_an_encoder_with_adapters_embeds(folder):
    adapted = apply_lora(encoder(), StandardLoRAAdapter, targets=["query"], rank=2, rng=0)
    adapted.set_parameters(np.random.default_rng(0).normal(size=adapted.parameter_count))
    difference = SentenceEmbedder(adapted, tokenize).transform(TEXTS) - SentenceEmbedder(encoder(), tokenize).transform(
        TEXTS
    )
    assert np.abs(difference).max() > 1e-3


def test_features_have_names_and_become_data_frames(folder):
    pandas = pytest.importorskip("pandas")
    names = [f"sentenceembedder{number}" for number in range(16)]
    assert list(SentenceEmbedder(folder).get_feature_names_out()) == names
    series = pandas.Series(TEXTS, index=np.arange(len(TEXTS)) * 10)
    frame = SentenceEmbedder(folder).set_output(transform="pandas").fit_transform(series)
    assert list(frame.columns) == names
    assert (frame.index == series.index).all()
    np.testing.assert_array_equal(frame.to_numpy(), SentenceEmbedder(folder).transform(TEXTS))


def test_embeddings_feed_a_classifier_in_a_pipeline(folder):
    pipeline = make_pipeline(SentenceEmbedder(folder), LogisticRegression(C=1e4, max_iter=1000))
    assert cross_val_score(pipeline, TEXTS, LABELS, cv=3).mean() > 0.6
    assert pipeline.fit(TEXTS, LABELS).predict(["cat", "pear"]).shape == (2,)


# ---------------------------------------------------------------- classification


def test_it_learns(folder):
    unseen, answers = sentences(60, seed=1)
    classifier = LoRATextClassifier(folder, **QUICK | {"epochs": 60, "learning_rate": 0.05}).fit(*sentences(96))
    curve = classifier.loss_curve_
    assert curve.shape == (60,)
    assert curve[-1] < 0.1 * curve[0]
    assert classifier.score(unseen, answers) > 0.8
    assert classifier.set_deployment_rank(1).score(unseen, answers) > 0.5


def test_texts_of_weight_0_are_not_trained_on(folder):
    weights = np.where(LABELS == "fruit", 0.0, 1.0)
    wrong = np.where(LABELS == "fruit", "tools", LABELS)
    wrong[0] = LABELS[0]
    found, expected = (
        build(LoRATextClassifier, folder).fit([*TEXTS, "pear"], [*y, "fruit"], [*weights, 1]) for y in (wrong, LABELS)
    )
    np.testing.assert_array_equal(found.predict_proba(TEXTS), expected.predict_proba(TEXTS))
    with pytest.raises(ArgumentError, match=r"sample_weight must have shape \(48,\)"):
        build(LoRATextClassifier, folder).fit(TEXTS, LABELS, weights[:5])


def test_predictions(fitted):
    probabilities = fitted.predict_proba(TEXTS)
    assert probabilities.shape == (48, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(fitted.predict_log_proba(TEXTS)), probabilities, rtol=1e-5)
    assert fitted.classes_.tolist() == ["animals", "fruit", "tools"]
    np.testing.assert_array_equal(fitted.predict(TEXTS), fitted.classes_[probabilities.argmax(axis=1)])
    assert fitted.score(TEXTS, LABELS) == (fitted.predict(TEXTS) == LABELS).mean()


@pytest.mark.parametrize(
    "y", [LABELS, LABELS.astype(object), np.arange(48) % 2, np.arange(48) % 2 == 0], ids=["str", "object", "int", "bool"]
)
def test_labels_of_any_type_come_back(y, folder):
    classifier = LoRATextClassifier(folder, **QUICK).fit(TEXTS, y)
    assert classifier.classes_.dtype == classifier.predict(TEXTS).dtype == y.dtype
    assert set(classifier.predict(TEXTS)) <= set(y)


def test_one_text_is_enough(folder):
    classifier = LoRATextClassifier(folder, **QUICK).fit(["a cat"], ["animals"])
    assert classifier.predict(["a cat", "a dog"]).tolist() == ["animals"] * 2
    assert classifier.predict_proba(["a cat"]).tolist() == [[1]]


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (LABELS[:-1], ValueError, r"inconsistent numbers of samples: \[48, 47\]"),
        (None, ValueError, "requires y to be passed, but the target y is None"),
        (np.zeros((48, 2)), ValueError, "y should be a 1d array"),
        (np.linspace(0, 1, 48), ValueError, "Unknown label type: continuous"),
        (np.full(48, np.nan), ValueError, "contains NaN"),
    ],
    ids=["length", "None", "2-D", "numbers", "missing"],
)
def test_bad_labels_are_refused(y, error, words, folder):
    with pytest.raises(error, match=words):
        LoRATextClassifier(folder, **QUICK).fit(TEXTS, y)


def test_a_column_of_labels_is_accepted_with_a_warning(folder):
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        LoRATextClassifier(folder, **QUICK).fit(TEXTS, LABELS[:, np.newaxis])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"adapter": "standard"}, "adapter must be one of 'dylora', 'lora', got 'standard'"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": "a"}, "alpha must be a real number, got 'a'"),
        ({"active_ranks": [2, 1]}, "active_ranks must be strictly ascending"),
        ({"active_ranks": [1, 5]}, "active_ranks must be at most max_rank = 4"),
        ({"targets": ["encode"]}, "targets must match dense layers of the model"),
        ({"targets": ".*"}, "train must not name layers to adapt, got 'classifier'"),
        ({"optimizer": SGD(0.1)}, "optimizer must be one of .*, or return an Optimizer for a learning rate"),
        ({"learning_rate": None}, "learning_rate must be a real number, got None"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"head_epochs": 1.5}, "head_epochs must be an integer, got 1.5"),
        ({"model": apply_lora(encoder(), StandardLoRAAdapter, rank=1), "tokenizer": tokenize}, "must not contain adapters"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused_and_leave_the_classifier_as_it_was(parameters, words, folder):
    classifier = LoRATextClassifier(folder, **QUICK).fit(TEXTS, LABELS)
    before = {name: value for name, value in vars(classifier).items() if name not in parameters}
    with pytest.raises(ArgumentError, match=words):
        classifier.set_params(**parameters).fit(TEXTS, LABELS)
    assert {name: value for name, value in vars(classifier).items() if name not in parameters} == before


@pytest.mark.parametrize(
    "use",
    [
        lambda classifier: classifier.predict(TEXTS),
        lambda classifier: classifier.predict_proba(TEXTS),
        lambda classifier: classifier.score(TEXTS, LABELS),
        lambda classifier: classifier.set_deployment_rank(1),
        lambda classifier: classifier.save(io.BytesIO()),
    ],
)
def test_it_must_be_fitted(use, folder):
    with pytest.raises(NotFittedError):
        use(LoRATextClassifier(folder))


def test_random_states(folder):
    def learned(random_state):
        return LoRATextClassifier(folder, **QUICK | {"random_state": random_state}).fit(TEXTS, LABELS).predict_proba(TEXTS)

    np.testing.assert_array_equal(learned(3), learned(3))
    np.testing.assert_array_equal(learned(3), learned(np.random.RandomState(3)))
    assert (learned(3) != learned(4)).any()
    assert (learned(None) != learned(None)).any()


def test_a_grid_search_and_cross_validation(folder):
    search = GridSearchCV(LoRATextClassifier(folder, **QUICK), {"rank": [1, 2]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_["rank"] in (1, 2)
    assert search.predict(TEXTS).shape == (48,)


# ---------------------------------------------------------------- what is trained


def adapted_layers(classifier):
    return {path: type(layer) for path, layer in find(classifier.model_, LoRAAdapterBase).items()}


def test_the_last_two_blocks_are_adapted():
    names = ["attention.self.query", "attention.self.value", "intermediate.dense", "output.dense"]
    classifier = LoRATextClassifier(encoder(3), tokenize, **QUICK).fit(TEXTS, LABELS)
    assert adapted_layers(classifier) == {
        f"bert.encoder.layer.{block}.{name}": DyLoRAAdapter for block in (1, 2) for name in names
    }
    assert classifier.active_ranks_ == (1, 2, 3, 4)
    one = LoRATextClassifier(encoder(1), tokenize, **QUICK).fit(TEXTS, LABELS)
    assert list(adapted_layers(one)) == [f"bert.encoder.layer.0.{name}" for name in names]


def test_other_layers_and_lora(folder):
    classifier = LoRATextClassifier(folder, adapter="lora", targets=["layer.0.attention.self.key"], **QUICK)
    classifier.fit(TEXTS, LABELS)
    assert adapted_layers(classifier) == {"bert.encoder.layer.0.attention.self.key": StandardLoRAAdapter}
    assert classifier.active_ranks_ == ()
    with pytest.raises(InvalidOperationError, match='an estimator fitted with adapter="dylora"'):
        classifier.set_deployment_rank(1)


def test_only_the_adapters_and_the_head_train(folder):
    classifier = LoRATextClassifier(folder, **QUICK).fit(TEXTS, LABELS)
    trained = {name for name in classifier.model_.named_parameters() if ".lora." not in name}
    assert trained == {"classifier.weight", "classifier.bias"}
    stored = bits(load_pretrained(folder))
    frozen = {
        name.removeprefix("bert.").replace(".base.", "."): content
        for name, content in bits(classifier.model_).items()
        if name.startswith("bert.") and ".lora." not in name
    }
    assert frozen == stored


def test_a_given_encoder_is_copied():
    model = encoder(1)
    classifier = LoRATextClassifier(model, tokenize, **QUICK).fit(TEXTS, LABELS)
    before = classifier.predict_proba(TEXTS)
    for array in model.named_parameters(frozen=True).values():
        array[...] = 0
    np.testing.assert_array_equal(classifier.predict_proba(TEXTS), before)


def test_the_adapters_start_from_a_head_trained_on_the_frozen_encoder(folder, monkeypatch):
    curves, descend = {}, LoRATextClassifier._descend_to_zero

    def watch(classifier, label, *arguments):
        history = descend(classifier, label, *arguments)
        curves[label] = history.epoch_losses
        return history

    monkeypatch.setattr(LoRATextClassifier, "_descend_to_zero", watch)
    whole = {"batch_size": 48, "epochs": 2, "head_epochs": 40}
    classifier = LoRATextClassifier(folder, **QUICK | whole).fit(TEXTS, LABELS)
    assert curves["head"][-1] < 0.9 * curves["head"][0]
    assert curves["adapters"][0] == pytest.approx(curves["head"][-1], rel=1e-3)
    np.testing.assert_array_equal(classifier.loss_curve_, curves["adapters"])


def test_a_sorted_start_changes_the_training(folder):
    usual, found = (LoRATextClassifier(folder, sorted_start=start, **QUICK) for start in (None, 1))
    curves = usual.fit(TEXTS, LABELS).loss_curve_, found.fit(TEXTS, LABELS).loss_curve_
    assert not np.array_equal(*curves)
    with pytest.raises(ArgumentError, match="sorted_start must be a fraction"):
        LoRATextClassifier(folder, sorted_start=1.5, **QUICK).fit(TEXTS, LABELS)


def test_a_small_layer_has_its_full_rank_and_the_same_scaling():
    classifier = LoRATextClassifier(encoder(1), tokenize, **QUICK | {"rank": 10, "alpha": 20.0}).fit(TEXTS, LABELS)
    adapters = find(classifier.model_, DyLoRAAdapter).values()
    assert {adapter.max_rank for adapter in adapters} == {8}
    assert {adapter.scaling_at(8) for adapter in adapters} == {2.0}


def test_the_rank_is_chosen_after_training(folder):
    classifier = LoRATextClassifier(folder, active_ranks=[1, 4], **QUICK | {"epochs": 5}).fit(TEXTS, LABELS)
    ids = Tokenizer(folder, 12).encode(TEXTS)
    full = classifier.predict_proba(TEXTS)
    low = classifier.set_deployment_rank(1).predict_proba(TEXTS)
    assert np.abs(full - low).max() > 1e-3
    logits = classifier.model_.predict(ids, rank=1)
    np.testing.assert_array_equal(logits.argmax(axis=1), low.argmax(axis=1))
    np.testing.assert_array_equal(classifier.set_deployment_rank(4).predict_proba(TEXTS), full)
    with pytest.raises(ArgumentError, match=r"rank must be one of the trained ranks \(1, 4\), got 2"):
        classifier.set_deployment_rank(2)


class Recorder(SGD):
    """SGD that notes the learning rate of each step."""

    rates = ()

    def updates_at(self, rate):
        type(self).rates += (rate,)

    def update(self, name, gradient, parameter, part=None):
        if name.endswith("bias"):  # that of the head: once a step
            self.updates_at(self.learning_rate)
        return super().update(name, gradient, parameter, part)


def test_the_learning_rate_decays_linearly_in_both_parts(folder):
    Recorder.rates = ()
    LoRATextClassifier(folder, optimizer=Recorder, **QUICK).fit(TEXTS, LABELS)
    expected = [0.02 * (1 - step / steps) for steps in (15, 6) for step in range(steps)]
    np.testing.assert_allclose(Recorder.rates, expected, rtol=1e-12)


def test_progress_is_that_of_the_head_then_of_the_adapters(folder, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    LoRATextClassifier(folder, verbose=True, **QUICK | {"head_epochs": 1}).fit(TEXTS, LABELS)
    lines = [line.split(", loss")[0].strip() for line in screen.getvalue().replace("\n", "").split("\r")[1:]]
    assert lines == ["head: epoch 1 of 1", "adapters: epoch 1 of 2", "adapters: epoch 2 of 2"]


# ---------------------------------------------------------------- files


def through_file(classifier, **options):
    file = io.BytesIO()
    classifier.save(file)
    file.seek(0)
    return LoRATextClassifier.load(file, **options)


@pytest.mark.parametrize("path", [str, Path])
def test_it_comes_back_the_same(path, folder, tmp_path):
    classifier = LoRATextClassifier(path(folder), optimizer=partial(AdamW, weight_decay=0.1), **QUICK).fit(TEXTS, LABELS)
    classifier.set_deployment_rank(2).save(tmp_path / "classifier.npz")
    twin = LoRATextClassifier.load(tmp_path / "classifier.npz")
    np.testing.assert_array_equal(twin.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    np.testing.assert_array_equal(twin.predict(TEXTS), classifier.predict(TEXTS))
    ours, theirs = ({k: v for k, v in vars(e).items() if k.endswith("_") and k != "model_"} for e in (classifier, twin))
    np.testing.assert_equal(theirs, ours)
    assert twin.model == folder
    others = [{k: v for k, v in e.get_params().items() if k not in ("model", "optimizer")} for e in (classifier, twin)]
    assert others[0] == others[1]
    assert [item.name for item in tmp_path.iterdir()] == ["classifier.npz"]
    logits = load_layer(tmp_path / "classifier.npz").predict(Tokenizer(folder, 12).encode(TEXTS))
    np.testing.assert_array_equal(logits.argmax(axis=1), classifier.predict_proba(TEXTS).argmax(axis=1))
    np.testing.assert_array_equal(
        twin.fit(TEXTS, LABELS).predict_proba(TEXTS), classifier.fit(TEXTS, LABELS).predict_proba(TEXTS)
    )


def test_an_encoder_comes_back_with_the_network(folder):
    model = encoder()
    classifier = LoRATextClassifier(model, folder, **QUICK).fit(TEXTS, LABELS)
    twin = through_file(classifier)
    np.testing.assert_array_equal(twin.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert bits(twin.model) == bits(model)
    np.testing.assert_array_equal(twin.fit(TEXTS, LABELS).predict_proba(TEXTS), classifier.predict_proba(TEXTS))


def test_a_tokenizer_that_has_moved_is_given_to_load(folder, tmp_path):
    moved = tmp_path / "tokenizer.json"
    moved.write_bytes((Path(folder) / "tokenizer.json").read_bytes())
    classifier = LoRATextClassifier(folder, moved, **QUICK).fit(TEXTS, LABELS)
    classifier.save(tmp_path / "classifier.npz")
    moved.unlink()
    with pytest.raises(FormatError, match="no such file"):
        LoRATextClassifier.load(tmp_path / "classifier.npz")
    twin = LoRATextClassifier.load(tmp_path / "classifier.npz", tokenizer=folder)
    assert twin.tokenizer == folder
    np.testing.assert_array_equal(twin.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    own = LoRATextClassifier.load(tmp_path / "classifier.npz", tokenizer=tokenize)
    assert own.predict(["cat"]).shape == (1,)


def test_what_json_cannot_hold_is_refused_and_leaves_no_file(tmp_path):
    classifier = LoRATextClassifier(encoder(1), tokenize, **QUICK).fit(TEXTS, LABELS)
    with pytest.raises(NotSupportedError, match="tokenizer cannot be saved without pickle: <function tokenize"):
        classifier.save(tmp_path / "classifier.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_random_state_that_is_an_object_is_left_out(folder):
    state = np.random.RandomState(0)
    classifier = LoRATextClassifier(folder, **QUICK | {"random_state": state}).fit(TEXTS, LABELS)
    assert through_file(classifier).random_state is None
    assert classifier.random_state is state


def test_other_files_are_refused(folder, fitted, tmp_path):
    path = tmp_path / "file.npz"
    save_layer(network(), path)
    with pytest.raises(FormatError, match=r"must contain a LoRATextClassifier, got only a layer"):
        LoRATextClassifier.load(path)
    LoRAClassifier(network(), epochs=1).fit(*blobs()).save(path)
    with pytest.raises(FormatError, match="must contain a LoRATextClassifier, got a LoRAClassifier"):
        LoRATextClassifier.load(path)
    fitted.save(path)
    with pytest.raises(FormatError, match="must contain a LoRAClassifier, got a LoRATextClassifier"):
        LoRAClassifier.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda said: said.pop("parameters"),
        lambda said: said["parameters"].update(unknown=1),
        lambda said: said["parameters"].update(rank=0),
        lambda said: said["parameters"].update(optimizer="adan"),
        lambda said: said["attributes"]["classes_"].update(dtype="no dtype"),
    ],
)
def test_a_damaged_description_is_refused(damage, fitted):
    file = io.BytesIO()
    fitted.save(file)
    header, arrays = _archive.read(file)
    damage(header["estimator"])
    damaged = io.BytesIO()
    _archive.write(damaged, header, arrays)
    with pytest.raises(FormatError, match=r"description of the estimator is damaged"):
        LoRATextClassifier.load(damaged)


def test_a_description_of_another_network_is_refused(fitted):
    file, other = io.BytesIO(), io.BytesIO()
    fitted.save(file)
    save_layer(network(), other)
    (header, arrays), (description, _) = _archive.read(other), _archive.read(file)
    damaged = io.BytesIO()
    _archive.write(damaged, header | {"estimator": description["estimator"]}, arrays)
    with pytest.raises(FormatError, match="the network must be a SequenceClassifier, got Sequential"):
        LoRATextClassifier.load(damaged)


def test_another_process_predicts_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "classifier.npz")
    code = f"""
import json
from lora_np.sklearn import LoRATextClassifier
classifier = LoRATextClassifier.load({str(tmp_path / "classifier.npz")!r})
print(json.dumps(classifier.predict_proba({TEXTS!r}).tolist()))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(json.loads(result.stdout), fitted.predict_proba(TEXTS))
