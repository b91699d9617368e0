"""All of scikit-learn's checks of estimators, and common uses of estimators in scikit-learn."""

import importlib.util
import inspect
import io
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import lora_np.sklearn
from lora_np.sklearn import LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor

from .conftest import blobs, network

ROOT = Path(__file__).parents[2]
KINDS = [LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor]
QUICK = {"hidden_layer_sizes": (16,), "epochs": 2, "base_epochs": 10, "learning_rate": 0.03, "batch_size": 64}


def every_kind(test):
    return pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)(test)


def outputs(estimator, X):
    return estimator.transform(X) if hasattr(estimator, "transform") else estimator.predict(X)


def checks(*estimators):
    pairs = [pair for estimator in estimators for pair in estimator_checks_generator(estimator)]
    ids = [f"{type(estimator).__name__}-{check.func.__name__}" for estimator, check in pairs]
    return pytest.mark.parametrize(("estimator", "check"), pairs, ids=ids)


@checks(*(kind(**QUICK) for kind in KINDS))
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@checks(LoRARegressor(adapter="dylora", **QUICK), LoRATransformer(adapter="dora", **QUICK))
def test_scikit_learns_checks_with_other_adapters(estimator, check):
    check(estimator)


@every_kind
def test_a_copy_is_not_fitted_and_learns_the_same(kind, base):
    X, y = blobs()
    fitted = kind(base, random_state=0, **QUICK).fit(X, y)
    copy = clone(fitted)
    assert not hasattr(copy, "model_")
    np.testing.assert_array_equal(outputs(copy.fit(X, y), X), outputs(fitted, X))


@every_kind
def test_another_seed_learns_something_else(kind):
    X, y = blobs()
    first, second = (kind(random_state=seed, **QUICK).fit(X, y) for seed in (0, 1))
    assert (first.model_.predict(X) != second.model_.predict(X)).any()


def test_random_states_are_those_of_scikit_learn():
    X, y = blobs()

    def learned(random_state):
        return LoRAClassifier(random_state=random_state, **QUICK).fit(X, y).predict_proba(X)

    np.testing.assert_array_equal(learned(3), learned(np.random.RandomState(3)))
    assert (learned(None) != learned(None)).any()
    state = np.random.RandomState(3)
    assert (learned(state) != learned(state)).any()
    with pytest.raises(ValueError, match="cannot be used to seed"):
        learned("a")


@every_kind
def test_the_given_base_stays_as_it_is(kind):
    X, y = blobs()
    base = network()
    before = base.get_parameters()
    estimator = kind(base, **QUICK).fit(X, y)
    np.testing.assert_array_equal(base.get_parameters(), before)
    theirs, ours = (model.named_parameters(frozen=True).values() for model in (base, estimator.model_))
    assert not any(np.may_share_memory(a, b) for a, b in itertools.product(theirs, list(ours)))
    assert estimator.base is base


@every_kind
def test_fitted_estimators_go_through_pickle_and_joblib(kind, tmp_path):
    X, y = blobs()
    estimator = kind(**QUICK).fit(X, y)
    joblib.dump(estimator, tmp_path / "estimator")
    for copy in (pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "estimator")):
        np.testing.assert_array_equal(outputs(copy, X), outputs(estimator, X))


@every_kind
def test_notebooks_show_it(kind, base):
    assert kind.__name__ in kind(base)._repr_html_()
    assert kind.__name__ in repr(kind(base))


@pytest.mark.parametrize("kind", [LoRAClassifier, MultiLoRAClassifier], ids=lambda kind: kind.__name__)
def test_a_grid_search_finds_the_rank(kind):
    X, y = blobs()
    # With a base whose outputs are constant, a rank-1 adapter cannot separate three classes.
    flat = network()
    flat.set_parameters(np.zeros(flat.parameter_count))
    flat[0].set_parameter("weight", np.random.default_rng(0).standard_normal((4, 6)))
    search = GridSearchCV(kind(flat, targets=["1"], epochs=20, random_state=0), {"rank": [1, 3]}, cv=3).fit(X, y)
    assert search.best_params_ == {"rank": 3}
    assert search.score(X, y) > 0.85


def test_a_transformer_feeds_a_classifier_in_a_pipeline():
    X, y = blobs()
    pipeline = make_pipeline(StandardScaler(), LoRATransformer(**QUICK), LoRAClassifier(**QUICK))
    assert cross_validate(pipeline, X, y, cv=3)["test_score"].mean() > 0.9


def test_tasks_are_routed_through_pipelines_and_cross_validation():
    (X, y), tasks = blobs(), np.tile(["a", "a", "a", "b", "b", "b"], 15)
    y = np.where(tasks == "a", y, 2 - y)
    with config_context(enable_metadata_routing=True):
        classifier = MultiLoRAClassifier(random_state=0, epochs=20, base_epochs=10)
        classifier.set_fit_request(task=True).set_predict_request(task=True).set_score_request(task=True)
        classifier.set_predict_proba_request(task=True)
        pipeline = make_pipeline(StandardScaler(), classifier).fit(X, y, task=tasks)
        assert pipeline[-1].tasks_ == ("a", "b")
        np.testing.assert_array_equal(pipeline.predict(X, task=tasks), y)
        np.testing.assert_array_equal(pipeline.predict_proba(X, task=tasks).argmax(axis=1), y)
        assert pipeline.score(X, y, task=tasks) == 1
        scores = cross_validate(pipeline, X, y, params={"task": tasks}, cv=3, error_score="raise")["test_score"]
        # Both tasks have the same X: without the task, no model can get more than two thirds right.
        assert scores.min() > 0.9


# ---------------------------------------------------------------- the extra


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    spec = importlib.util.spec_from_file_location("without_scikit_learn", lora_np.sklearn.__file__)
    with pytest.raises(ImportError, match=r'lora_np\.sklearn needs scikit-learn: pip install "lora_np\[sklearn\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_importing_lora_np_leaves_it_alone():
    code = "import sys, lora_np; print([name for name in sys.modules if 'sklearn' in name])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_exported_names():
    classes = {name for name, value in vars(lora_np.sklearn).items() if inspect.isclass(value)}
    assert classes == {kind.__name__ for kind in KINDS} | {"LoRATextClassifier", "SentenceEmbedder"}


# ---------------------------------------------------------------- progress


class Screen(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize(("verbose", "terminal"), [(True, True), (True, False), (False, True)])
def test_progress_is_shown_on_a_terminal_to_those_who_want_it(verbose, terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Screen(terminal))
    LoRAClassifier(verbose=verbose, **QUICK).fit(*blobs())
    lines = [line.split(", loss")[0].strip() for line in sys.stderr.getvalue().replace("\n", "").split("\r")[1:]]
    expected = [f"base: epoch {n} of 10" for n in range(1, 11)] + ["adapters: epoch 1 of 2", "adapters: epoch 2 of 2"]
    assert lines == (expected if verbose and terminal else [])
    assert sys.stderr.getvalue().count("\n") == (2 if lines else 0)
    assert capsys.readouterr().out == ""
