"""Early stopping, and `fit` with `warm_start`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np import ArgumentError, InvalidOperationError
from lora_np.sklearn import LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor
from lora_np.sklearn.objectives import Classes, Samples, Values
from lora_np.sklearn.stopping import split

from .conftest import blobs, network

X, Y = blobs()
TASK = np.tile(["a", "b", "a"], len(Y) // 3)
QUICK = {"hidden_layer_sizes": (8,), "epochs": 4, "base_epochs": 2, "random_state": 0, "learning_rate": 0.05}
KINDS = [LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
every_warm_kind = pytest.mark.parametrize("kind", [k for k in KINDS if k is not LoRATransformer], ids=lambda k: k.__name__)


def outputs(estimator):
    return estimator.model_.predict(X, tasks=["a"] * len(X) if hasattr(estimator, "tasks_") else None)


# ---------------------------------------------------------------- held-out samples


@settings(max_examples=50, deadline=None)
@given(
    fraction=st.floats(0.1, 0.9),
    has_tasks=st.booleans(),
    has_weights=st.booleans(),
    is_classes=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_split_divides_the_samples_with_equal_shares(fraction, has_tasks, has_weights, is_classes, seed):
    rng = np.random.default_rng(seed)
    y, tasks = np.repeat([0, 1, 1, 1], 20), tuple(np.tile(["a", "b"], 40).tolist())
    x, weights = np.arange(80.0).reshape(80, 1), rng.uniform(1, 2, 80)
    samples = Samples(
        x,
        y if is_classes else y.reshape(80, 1),
        Classes(np.arange(2)) if is_classes else Values((1,)),
        tasks if has_tasks else None,
        weights if has_weights else None,
    )
    parts = split(samples, fraction, rng)
    rows = [part.X[:, 0].astype(int) for part in parts]
    assert sorted(np.concatenate(rows)) == list(range(80))
    assert abs(len(rows[1]) - fraction * 80) <= 1
    for part, own in zip(parts, rows, strict=True):
        np.testing.assert_array_equal(part.y.reshape(-1), y[own])
        assert part.tasks == (tuple(tasks[row] for row in own) if has_tasks else None)
        assert (part.weights is None) if not has_weights else (part.weights == weights[own]).all()
        if is_classes:
            assert abs(np.mean(part.y == 0) - 0.25) < 1.5 / len(own)
        if is_classes and has_tasks:
            assert abs(np.mean((part.y == 1) & (np.array(part.tasks) == "a")) - 0.375) < 1.5 / len(own)


@every_kind
def test_the_best_adapters_on_the_held_out_samples_are_kept(kind, monkeypatch):
    seen = {}

    def splitting(samples, fraction, rng):
        seen["train"], seen["held out"] = split(samples, fraction, rng)
        return seen["train"], seen["held out"]

    monkeypatch.setattr("lora_np.sklearn.estimator.split", splitting)
    options = {"epochs": 40, "n_iter_no_change": 3, "learning_rate": 0.5, "validation_fraction": 0.25}
    estimator = kind(network(), early_stopping=True, **QUICK | options).fit(X, Y)
    curve = estimator.validation_loss_curve_
    assert 3 < len(curve) == estimator.n_iter_ == len(estimator.loss_curve_) < 40
    assert estimator.best_loss_ == curve.min() < curve[-1]
    assert estimator.loss_ == estimator.loss_curve_[-1]
    assert len(seen["held out"].X) == 23
    if kind is not LoRATransformer:  # whose head is dropped
        held_out = seen["held out"]
        loss = held_out.objective.loss(estimator.model_.predict(held_out.X, tasks=held_out.tasks), held_out.targets)
        assert loss == pytest.approx(curve.min(), rel=1e-12)


@every_kind
def test_without_early_stopping_the_training_loss_decides(kind):
    slow = QUICK | {"epochs": 30, "learning_rate": 1e-9}
    estimator = kind(network(), n_iter_no_change=4, tol=0.01, **slow).fit(X, Y)
    assert estimator.n_iter_ == 5  # the first epoch is the best one
    assert len(estimator.validation_loss_curve_) == 0
    assert estimator.best_loss_ == estimator.loss_curve_.min()
    assert kind(network(), n_iter_no_change=30, tol=0.01, **slow).fit(X, Y).n_iter_ == 30


def test_tolerance():
    def epochs(tol):
        return LoRAClassifier(network(), n_iter_no_change=2, tol=tol, **QUICK | {"epochs": 30}).fit(X, Y).n_iter_

    assert epochs(10.0) == 3 < epochs(0.01) <= epochs(0.0)


def test_the_base_is_not_trained_on_held_out_samples():
    changed = Y.astype(float)
    train, held_out = split(Samples(np.arange(90.0).reshape(90, 1), Y, Values(())), 0.1, order_of(0))
    rows = held_out.X[:, 0].astype(int)
    changed[rows] = 100.0
    plain, other = (LoRARegressor(early_stopping=True, **QUICK | {"epochs": 1}).fit(X, y) for y in (Y, changed))
    np.testing.assert_array_equal(outputs(plain), outputs(other))
    assert other.best_loss_ > 100 * plain.best_loss_
    assert len(train.X) == 81


def order_of(seed):
    return LoRARegressor(random_state=seed)._generator().spawn(2)[1]


# ---------------------------------------------------------------- warm start


@every_warm_kind
def test_a_warm_start_trains_the_adapters_further(kind):
    options = {"task": TASK} if kind.__name__.startswith("Multi") else {}
    estimator = kind(warm_start=True, **QUICK).fit(X, Y, **options)
    before, model = outputs(estimator), estimator.model_
    base = {name: a.copy() for name, a in model.named_parameters(frozen=True).items() if name.endswith("base.weight")}
    first, curve = estimator.loss_curve_[0], estimator.loss_curve_
    estimator.fit(X, Y, **options)
    assert estimator.model_ is model
    assert (outputs(estimator) != before).any()
    for name, array in base.items():
        np.testing.assert_array_equal(model.named_parameters(frozen=True)[name], array)
    assert estimator.n_iter_ == 8
    np.testing.assert_array_equal(estimator.loss_curve_[:4], curve)
    assert estimator.loss_curve_[4] < first
    cold = estimator.set_params(warm_start=False).fit(X, Y, **options)
    np.testing.assert_array_equal(outputs(cold), before)


@every_warm_kind
def test_early_stopping_after_a_warm_start(kind):
    estimator = kind(warm_start=True, early_stopping=True, n_iter_no_change=4, **QUICK).fit(X, Y).fit(X, Y)
    assert len(estimator.validation_loss_curve_) == estimator.n_iter_ > 4


def test_a_new_task_may_come_with_a_warm_start():
    classifier = MultiLoRAClassifier(network(), warm_start=True, **QUICK).fit(X, Y, task=["a"] * 90)
    before = classifier.predict_proba(X, ["a"] * 90)
    classifier.fit(X, Y, task=["b"] * 90)
    assert classifier.tasks_ == ("a", "b")
    np.testing.assert_array_equal(classifier.predict_proba(X, ["a"] * 90), before)
    assert classifier.task_classes_["b"].tolist() == [0, 1, 2]


def test_what_does_not_fit_the_earlier_training_is_refused():
    classifier = LoRAClassifier(network(), warm_start=True, **QUICK).fit(X, Y)
    before = outputs(classifier)
    with pytest.raises(ArgumentError, match=r"classes must equal those of the first call, \[0, 1, 2\]"):
        classifier.fit(X, np.minimum(Y, 1))
    with pytest.raises(ValueError, match="3 features"):
        classifier.fit(X[:, :3], Y)
    with pytest.raises(ArgumentError, match="rank must be at least 1"):
        classifier.set_params(rank=0).fit(X, Y)
    np.testing.assert_array_equal(outputs(classifier), before)
    regressor = LoRARegressor(warm_start=True, **QUICK).fit(X, Y)
    with pytest.raises(ArgumentError, match="y must have shape"):
        regressor.fit(X, np.stack([Y, Y], axis=1))
    merged = classifier.set_params(rank=4).merge()
    with pytest.raises(InvalidOperationError, match="adapters, but they have been merged"):
        merged.fit(X, Y)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_iter_no_change": 0}, "n_iter_no_change must be at least 1"),
        ({"tol": -1e-4}, "tol must be at least 0"),
        ({"tol": "small"}, "tol must be a real number"),
        ({"validation_fraction": 0.0}, "validation_fraction must be between 0 and 1, got 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1, got 1.0"),
    ],
)
@every_kind
def test_bad_parameters_are_refused(kind, parameters, message):
    estimator = kind(network(), **QUICK | parameters)
    with pytest.raises(ArgumentError, match=message):
        estimator.fit(X, Y)
    assert not hasattr(estimator, "model_")


@every_warm_kind
def test_partial_fit_has_no_early_stopping(kind):
    first = {"classes": [0, 1, 2]} if "Classifier" in kind.__name__ else {}
    with pytest.raises(ArgumentError, match="early_stopping must be False for partial_fit"):
        kind(network(), early_stopping=True).partial_fit(X, Y, **first)


def test_attributes_do_not_exist_before_fit():
    assert not any(hasattr(LoRAClassifier(), name) for name in ("n_iter_", "loss_", "best_loss_", "loss_curve_"))


def test_curves_are_saved(tmp_path):
    classifier = LoRAClassifier(network(), early_stopping=True, **QUICK).fit(X, Y)
    classifier.save(tmp_path / "file")
    loaded = LoRAClassifier.load(tmp_path / "file")
    assert loaded.get_params() | {"base": None} == classifier.get_params() | {"base": None}
    np.testing.assert_array_equal(loaded.validation_loss_curve_, classifier.validation_loss_curve_)
    assert loaded.best_loss_ == classifier.best_loss_
