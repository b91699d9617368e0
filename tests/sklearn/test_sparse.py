"""Sparse input, and a warning for unscaled input."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from lora_np import Adam, ArgumentError, DenseLayer, MeanSquaredError, fit
from lora_np.sklearn import LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor
from lora_np.sklearn.scaling import warn_unless_scaled
from lora_np.sklearn.sparse import ROWS, SparseRows

from .conftest import blobs, network

X, Y = blobs()
X = np.where(np.abs(X) > 1, X, 0)
TASK = np.tile(["a", "b", "a"], len(Y) // 3)
QUICK = {"epochs": 3, "base_epochs": 3, "random_state": 0, "early_stopping": True, "n_iter_no_change": 2}
KINDS = [LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def tasks_of(kind):
    return {"task": TASK} if kind.__name__.startswith("Multi") else {}


def outputs(estimator, X):
    method = getattr(estimator, "transform", None) or getattr(estimator, "predict_proba", estimator.predict)
    return method(X, **tasks_of(type(estimator)))


@every_kind
def test_the_tags_say_that_sparse_input_is_taken(kind):
    assert kind().__sklearn_tags__().input_tags.sparse


@every_kind
@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_array, sparse.coo_matrix])
@pytest.mark.parametrize("given_base", [True, False])
def test_sparse_input_is_dense_input(kind, form, given_base):
    dense, other = (kind(network() if given_base else None, **QUICK) for _ in range(2))
    weights = np.arange(len(X)) % 3
    dense.fit(X, Y, sample_weight=weights, **tasks_of(kind))
    other.fit(form(X), Y, sample_weight=weights, **tasks_of(kind))
    np.testing.assert_array_equal(outputs(other, form(X)), outputs(dense, X))


@every_kind
def test_only_batches_become_arrays(kind, monkeypatch):
    seen, whole = [], sparse.csr_array.toarray
    monkeypatch.setattr(sparse.csr_array, "toarray", lambda self: seen.append(self.shape[0]) or whole(self))
    estimator = kind(batch_size=16, **QUICK).fit(sparse.csr_array(X), Y, **tasks_of(kind))
    assert set(seen) <= set(range(1, 17))
    seen.clear()
    many = sparse.csr_array(np.tile(X, (30, 1)))
    tasks = {"task": ["a"] * 1500 + ["b"] * 1200} if kind.__name__.startswith("Multi") else {}
    method = estimator.transform if kind is LoRATransformer else estimator.predict
    found = method(many, **tasks)
    assert seen == [ROWS, ROWS, 2700 - 2 * ROWS]
    np.testing.assert_allclose(found, method(many.toarray(), **tasks), rtol=1e-12)


def test_partial_fit_takes_sparse_input():
    dense, other = (LoRAClassifier(network(), random_state=0) for _ in range(2))
    for _ in range(2):
        dense.partial_fit(X, Y, [0, 1, 2])
        other.partial_fit(sparse.csr_array(X), Y, [0, 1, 2])
    np.testing.assert_array_equal(outputs(other, X), outputs(dense, X))


def test_float32_is_kept():
    classifier = LoRAClassifier(**QUICK).fit(sparse.csr_array(X.astype(np.float32)), Y)
    assert classifier.predict_proba(sparse.csr_array(X)).dtype == np.float32


def test_words_are_classified_in_a_pipeline():
    texts = [f"the {noun} was {word}" for noun in ("film", "book", "song") for word in ("good", "great", "bad", "awful")]
    labels = ["good" in text for text in texts]
    pipeline = make_pipeline(TfidfVectorizer(), LoRAClassifier(epochs=40, random_state=0)).fit(texts, labels)
    assert pipeline.score(texts, labels) == 1


def test_the_base_must_fit_the_features():
    with pytest.raises(ArgumentError, match="X must have 4 features, the input size of base, got 3"):
        LoRAClassifier(network(), **QUICK).fit(sparse.csr_array(X[:, :3]), Y)
    rows = SparseRows(sparse.csr_array(X))
    with pytest.raises(ArgumentError, match=r"inputs must have shape \(..., 3\), got \(90, 4\)"):
        fit(DenseLayer(3, 1, rng=0), (rows, Y[:, None]), MeanSquaredError(), Adam(), 1, 8)


def test_a_checkpoint_of_sparse_rows_is_one_of_the_array(tmp_path):
    histories = []
    for inputs in (SparseRows(sparse.csr_array(X)), X):
        layer, random = DenseLayer(4, 1, rng=0), np.random.default_rng(0)
        history = fit(layer, (inputs, 1.0 * Y[:, None]), MeanSquaredError(), Adam(), 2, 8, rng=random,
                      checkpoint=tmp_path / "run", resume=True)  # fmt: skip
        histories.append(history.step_losses)
    assert histories[0] == histories[1]


# ---------------------------------------------------------------- features that are not scaled


@every_kind
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_unscaled_features_are_noticed(kind, form):
    large = X * [1, 1, 5000, 1]
    match = r"the root mean square of feature 2 of X is 4\.\d+e\+03: training may not converge"
    with pytest.warns(ConvergenceWarning, match=match) as warned:
        kind(network(), epochs=1, learning_rate=1e-9).fit(form(large), Y, **tasks_of(kind))
    assert len(warned) == 1


@pytest.mark.parametrize("factor", [1e-9, 1, 30])
def test_scaled_features_are_not_noticed(factor):
    LoRAClassifier(epochs=1, base_epochs=1, learning_rate=1e-9).fit(factor * X, Y)  # warnings are errors


def test_features_are_large_from_a_root_mean_square_above_1000():
    X = np.array([[0.0, 1000.0], [1.0, -1000.0]])
    warn_unless_scaled(X)  # warnings are errors
    with pytest.warns(ConvergenceWarning, match="feature 1 of X"):
        warn_unless_scaled(X * 1.0001)
