"""Weights of samples and of classes, and parameters given by name."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight

import lora_np
from lora_np import SGD, Adam, AdamW, ArgumentError, Momentum
from lora_np.sklearn import LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor
from lora_np.sklearn.names import ACTIVATIONS, OPTIMIZERS

from .conftest import blobs, network

X, Y = blobs()
TASK = np.tile(["a", "b", "a"], len(Y) // 3)
FULL = {"epochs": 3, "base_epochs": 3, "batch_size": 1000, "random_state": 0, "learning_rate": 0.05}
KINDS = [LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def outputs(estimator):
    return estimator.model_.predict(X, tasks=["a"] * len(X) if hasattr(estimator, "tasks_") else None)


def tasks_of(kind, task=TASK):
    return {"task": task} if kind.__name__.startswith("Multi") else {}


@every_kind
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_a_weight_is_the_number_of_times_that_a_sample_occurs(kind, seed):
    counts = np.random.default_rng(seed).integers(0, 4, len(Y))
    counts[:6] = 1  # every class and both tasks occur
    weighted = kind(**FULL).fit(X, Y, sample_weight=counts, **tasks_of(kind))
    repeated = kind(**FULL).fit(X.repeat(counts, axis=0), Y.repeat(counts), **tasks_of(kind, TASK.repeat(counts)))
    np.testing.assert_allclose(outputs(weighted), outputs(repeated), rtol=1e-6, atol=1e-9)


def test_ranks_do_not_depend_on_the_number_of_samples():
    counts = np.arange(len(Y)) % 4
    weighted, repeated = (LoRAClassifier(adapter="dylora", **FULL | {"epochs": 10}) for _ in range(2))
    weighted.fit(X, Y, sample_weight=counts)
    repeated.fit(X.repeat(counts, axis=0), Y.repeat(counts))
    np.testing.assert_allclose(outputs(weighted), outputs(repeated), rtol=1e-6, atol=1e-9)


@every_kind
def test_equal_weights_are_no_weights(kind):
    plain = kind(**FULL).fit(X, Y, **tasks_of(kind))
    equal = kind(**FULL).fit(X, Y, sample_weight=np.full(len(Y), 2.5), **tasks_of(kind))
    np.testing.assert_allclose(outputs(equal), outputs(plain), rtol=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if hasattr(kind, "partial_fit")], ids=lambda kind: kind.__name__)
def test_partial_fit_takes_weights_too(kind):
    first = {"classes": [0, 1, 2]} if "Classifier" in kind.__name__ else {}
    weights = np.where(Y == 0, 0.0, 1.0)
    options = tasks_of(kind) | {"sample_weight": weights}
    estimator = kind(network(), **FULL).partial_fit(X, Y, **first, **options)
    changed = kind(network(), **FULL).partial_fit(X, np.where(Y == 0, 2, Y), **first, **options)
    np.testing.assert_array_equal(outputs(estimator), outputs(changed))  # the first samples are not trained on
    before = outputs(estimator)
    estimator.partial_fit(X, Y, **options)
    changed.partial_fit(X, np.where(Y == 0, 1, Y), **options)
    np.testing.assert_array_equal(outputs(estimator), outputs(changed))
    assert (outputs(estimator) != before).any()


@pytest.mark.parametrize(("weights", "message"), [
    (np.ones(3), r"sample_weight must have shape \(90,\), one number per row, got \(3,\)"),
    (-np.ones(90), "sample_weight must be finite and not negative, got -1"),
    (np.full(90, np.nan), "sample_weight must be finite and not negative, got nan"),
    (np.zeros(90), "sample_weight must contain a number greater than 0, got only zeros"),
    (["a"] * 90, "sample_weight must be"),
])  # fmt: skip
@every_kind
def test_bad_weights_are_refused(kind, weights, message):
    estimator = kind(network(), **FULL)
    with pytest.raises(ArgumentError, match=message):
        estimator.fit(X, Y, sample_weight=weights)
    assert not hasattr(estimator, "model_")


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0}, {0: 0.5, 1: 1, 2: 4.0}])
@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, len(Y))])
def test_the_weight_of_a_class_multiplies_those_of_its_samples(class_weight, weights):
    rows = np.concatenate([np.flatnonzero(Y == 0)[:5], np.flatnonzero(Y)])  # a class that is rare
    own = np.ones(len(rows)) if weights is None else weights[rows]
    by_class = LoRAClassifier(class_weight=class_weight, **FULL)
    by_class.fit(X[rows], Y[rows], None if weights is None else weights[rows])
    by_sample = LoRAClassifier(**FULL).fit(X[rows], Y[rows], own * compute_sample_weight(class_weight, Y[rows]))
    np.testing.assert_array_equal(outputs(by_class), outputs(by_sample))
    plain = LoRAClassifier(**FULL).fit(X[rows], Y[rows], own)
    assert (outputs(plain) != outputs(by_class)).any()


def test_partial_fit_cannot_balance_classes_that_it_has_not_seen():
    with pytest.raises(ArgumentError, match="class_weight must not be 'balanced' for partial_fit"):
        LoRAClassifier(network(), class_weight="balanced").partial_fit(X, Y, [0, 1, 2])
    weighted = LoRAClassifier(network(), class_weight={0: 0.0}, **FULL).partial_fit(X, Y, [0, 1, 2])
    dropped = LoRAClassifier(network(), **FULL).partial_fit(X, Y, [0, 1, 2], sample_weight=Y > 0)
    np.testing.assert_array_equal(outputs(weighted), outputs(dropped))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(("name", "kind"), {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW}.items())
def test_optimizers_have_names(name, kind):
    assert name in OPTIMIZERS
    by_name, by_class = (LoRAClassifier(optimizer=optimizer, **FULL).fit(X, Y) for optimizer in (name, partial(kind)))
    np.testing.assert_array_equal(outputs(by_name), outputs(by_class))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_names(name, tmp_path):
    activation = getattr(lora_np, {"logistic": "sigmoid"}.get(name, name))
    by_name, by_value = (LoRARegressor(activation=each, **FULL).fit(X, Y) for each in (name, activation))
    np.testing.assert_array_equal(outputs(by_name), outputs(by_value))
    by_name.save(tmp_path / "file")
    assert LoRARegressor.load(tmp_path / "file").activation == name


@every_kind
def test_no_alpha_means_the_rank(kind):
    none, rank = (kind(network(), rank=2, alpha=alpha, **FULL).fit(X, Y, **tasks_of(kind)) for alpha in (None, 2.0))
    np.testing.assert_array_equal(outputs(none), outputs(rank))


# ---------------------------------------------------------------- outputs of classifiers


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_the_decision_function(classes):
    rows = classes > Y
    classifier = LoRAClassifier(**FULL).fit(X[rows], Y[rows])
    logits = classifier.decision_function(X)
    assert logits.shape == ((len(X),) if classes == 2 else (len(X), 3))
    chosen = (logits > 0).astype(int) if classes == 2 else logits.argmax(axis=1)
    np.testing.assert_array_equal(classifier.classes_[chosen], classifier.predict(X))
    odds = np.exp(logits) if classes == 2 else np.exp(logits - logits[:, :1])
    p = classifier.predict_proba(X)
    np.testing.assert_allclose(odds, p[:, 1] / p[:, 0] if classes == 2 else p / p[:, :1], rtol=1e-9)


@pytest.mark.parametrize("kind", [LoRAClassifier, MultiLoRAClassifier], ids=lambda kind: kind.__name__)
def test_logarithms_of_probabilities(kind):
    classifier = kind(**FULL).fit(X, Y)
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(X)), classifier.predict_proba(X), rtol=1e-12)
    far = classifier.predict_log_proba(1e4 * X)
    assert np.isfinite(far).all()
    assert far.min() < -800  # the probability is 0


def test_classes_that_a_task_lacks_have_the_logarithm_of_zero():
    classifier = MultiLoRAClassifier(**FULL).fit(X, Y, task=np.where(Y == 2, "b", "a"))
    logarithms = classifier.predict_log_proba(X[:4], ["a", "b", "a", "b"])
    np.testing.assert_array_equal(np.isneginf(logarithms), [[0, 0, 1], [1, 1, 0]] * 2)
    np.testing.assert_allclose(np.exp(logarithms).sum(axis=1), 1)
