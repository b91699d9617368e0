"""Samples with several labels."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import accuracy_score
from sklearn.neural_network import MLPClassifier

from lora_np import ArgumentError, BinaryCrossEntropy
from lora_np.sklearn import LoRAClassifier, LoRARegressor, MultiLoRAClassifier, from_sklearn, to_sklearn

from .conftest import blobs, network

X, CENTRE = blobs()
Y = np.stack([CENTRE == 0, CENTRE != 1, CENTRE == 3], axis=1).astype(int)  # 2, 0 or 1 labels; nothing has the third
QUICK = {"epochs": 20, "base_epochs": 5, "learning_rate": 0.03, "random_state": 0}


def test_each_label_has_a_probability_of_its_own():
    classifier = LoRAClassifier(**QUICK).fit(X, Y)
    assert classifier.multilabel_
    assert classifier.classes_.tolist() == [0, 1, 2]
    logits, p = classifier.decision_function(X), classifier.predict_proba(X)
    np.testing.assert_array_equal(logits, classifier.model_.predict(X))
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits)), rtol=1e-12)
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(X)), p, rtol=1e-12)
    assert np.isfinite(classifier.predict_log_proba(1e4 * X)).all()
    np.testing.assert_array_equal(classifier.predict(X), p > 0.5)
    assert classifier.score(X, Y) == accuracy_score(Y, classifier.predict(X)) > 0.95


def test_the_loss_is_the_binary_cross_entropy():
    model = network()
    first = LoRAClassifier(model, **QUICK | {"epochs": 1, "batch_size": 1000}).fit(X, Y).loss_
    np.testing.assert_allclose(first, BinaryCrossEntropy()(model.predict(X), Y), rtol=1e-12)


@pytest.mark.parametrize("kind", [np.float64, bool, csr_array])
def test_other_forms_of_the_same_labels(kind):
    y = csr_array(Y) if kind is csr_array else Y.astype(kind)
    ours, theirs = (LoRAClassifier(network(), **QUICK).fit(X, each).predict(X) for each in (Y, y))
    np.testing.assert_array_equal(ours, theirs)


def test_partial_fit_and_warm_starts_need_no_classes():
    classifier = LoRAClassifier(network(), warm_start=True, **QUICK).partial_fit(X, Y)
    for _ in range(30):
        classifier.partial_fit(X, Y)
    assert classifier.score(X, Y) > 0.95
    assert classifier.fit(X, Y).n_iter_ > 31


def test_two_labels_are_not_two_classes():
    classifier = LoRAClassifier(**QUICK).fit(X, Y[:, :2])
    assert classifier.decision_function(X).shape == (len(X), 2)
    assert classifier.score(X, Y[:, :2]) > 0.95


def test_labels_go_through_files(tmp_path):
    classifier = LoRAClassifier(**QUICK).fit(X, Y)
    classifier.save(tmp_path / "file")
    np.testing.assert_array_equal(LoRAClassifier.load(tmp_path / "file").predict_proba(X), classifier.predict_proba(X))
    np.testing.assert_allclose(classifier.merge().predict_proba(X), classifier.predict_proba(X), rtol=1e-9)


def test_held_out_samples_may_have_several_labels():
    classifier = LoRAClassifier(early_stopping=True, **QUICK).fit(X, Y)
    assert len(classifier.validation_loss_curve_) == classifier.n_iter_


@pytest.mark.parametrize("labels", [2, 3])
def test_they_go_to_scikit_learn_and_back(labels):
    classifier = LoRAClassifier(**QUICK).fit(X, Y[:, :labels])
    mlp = to_sklearn(classifier)
    assert isinstance(mlp, MLPClassifier)
    np.testing.assert_allclose(mlp.predict_proba(X), classifier.predict_proba(X), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(mlp.predict(X), classifier.predict(X))
    np.testing.assert_allclose(from_sklearn(mlp).predict(X), classifier.decision_function(X), rtol=1e-10, atol=1e-12)


def test_a_task_has_one_label_for_each_sample():
    assert not MultiLoRAClassifier(**QUICK).fit(X, CENTRE).merge("default").multilabel_


def test_classes_and_labels_are_not_mixed():
    with pytest.raises(ArgumentError, match=r"y must have one column, as in earlier calls, got shape \(90, 3\)"):
        LoRAClassifier(network(), **QUICK).partial_fit(X, CENTRE, [0, 1, 2]).partial_fit(X, Y)
    labelled = LoRAClassifier(network(), **QUICK).partial_fit(X, Y)
    with pytest.raises(ArgumentError, match=r"y must have 3 columns, as in earlier calls, got shape \(90,\)"):
        labelled.partial_fit(X, CENTRE)
    with pytest.raises(ArgumentError, match=r"y must have 3 columns, as in earlier calls, got shape \(90, 2\)"):
        labelled.partial_fit(X, Y[:, :2])


@pytest.mark.parametrize(("y", "error", "message"), [
    (2 * Y - 1, ArgumentError, "y must contain only 0 and 1 if it has several columns, got -1 to 1"),
    (Y + 0.5, ValueError, "Unknown label type"),
    (3 * Y + np.arange(3), ValueError, "y should be a 1d array, got an array of shape"),
])  # fmt: skip
def test_bad_labels_are_refused(y, error, message):
    with pytest.raises(error, match=message):
        LoRAClassifier(network(), **QUICK).fit(X, y)


def test_classes_of_several_labels_have_no_weights():
    with pytest.raises(ArgumentError, match="class_weight must be None if samples have several labels, got 'balanced'"):
        LoRAClassifier(network(), class_weight="balanced", **QUICK).fit(X, Y)


def test_values_are_not_labels():
    assert LoRARegressor(network(), **QUICK).fit(X, Y).output_shape_ == (3,)
