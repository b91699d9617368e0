"""Fitted estimators in files: saved without pickle, restored completely, and rejected if damaged."""

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from lora_np import SGD, AdamW, FormatError, Momentum, NotSupportedError, _archive, load_layer, save_layer, tanh
from lora_np.sklearn import LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor
from lora_np.sklearn.files import _encoded

from .conftest import blobs, network

ROOT = Path(__file__).parents[2]
QUICK = {"epochs": 2, "base_epochs": 2, "random_state": 0}
KINDS = [LoRAClassifier, LoRARegressor, LoRATransformer, MultiLoRAClassifier, MultiLoRARegressor]


def outputs(estimator, X):
    return estimator.transform(X) if hasattr(estimator, "transform") else estimator.predict(X)


def through_file(estimator):
    file = io.BytesIO()
    estimator.save(file)
    return type(estimator).load(file)


@pytest.mark.parametrize("base", [None, network(), network(5)], ids=["no base", "base", "features"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_comes_back_the_same(kind, base, tmp_path):
    X, y = blobs()
    estimator = kind(base, rank=2, **QUICK).fit(X, y)
    estimator.save(tmp_path / "estimator.npz")
    copy = kind.load(tmp_path / "estimator.npz")
    np.testing.assert_array_equal(outputs(copy, X), outputs(estimator, X))
    assert copy.get_params() | {"base": None} == estimator.get_params() | {"base": None}
    ours, theirs = ({k: v for k, v in vars(e).items() if k.endswith("_") and k != "model_"} for e in (estimator, copy))
    np.testing.assert_equal(theirs, ours)
    assert (copy.base is None) == (base is None)
    if base is not None:
        np.testing.assert_array_equal(copy.base.predict(X), base.predict(X))
    np.testing.assert_array_equal(outputs(copy.fit(X, y), X), outputs(estimator.fit(X, y), X))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_file_is_that_of_the_network_too(kind, tmp_path):
    X, y = blobs()
    estimator = kind(**QUICK).fit(X, y)
    estimator.save(tmp_path / "estimator.npz")
    np.testing.assert_array_equal(load_layer(tmp_path / "estimator.npz").predict(X), estimator.model_.predict(X))
    assert [path.name for path in tmp_path.iterdir()] == ["estimator.npz"]


def test_tasks_and_labels_come_back():
    X, y = blobs()
    tasks, names = np.tile(["a", "b"], 45), np.array(["x", "y", "z"], object)
    estimator = MultiLoRAClassifier(**QUICK).fit(X, names[y], task=tasks)
    copy = through_file(estimator)
    assert copy.tasks_ == ("a", "b")
    assert copy.classes_.dtype == object
    np.testing.assert_array_equal(copy.predict(X, task=tasks), estimator.predict(X, task=tasks))
    copy.partial_fit(X, names[y], task=["c"] * 90)
    assert copy.tasks_ == ("a", "b", "c")


def test_the_deployment_rank_comes_back():
    X, y = blobs()
    estimator = LoRAClassifier(adapter="dylora", epochs=10, random_state=0).fit(X, y).set_deployment_rank(1)
    copy = through_file(estimator)
    np.testing.assert_array_equal(copy.predict_proba(X), estimator.predict_proba(X))
    assert copy.set_deployment_rank(4).active_ranks_ == (1, 2, 3, 4)


def test_a_merged_estimator_comes_back():
    X, y = blobs()
    merged = LoRAClassifier(network(5), **QUICK).fit(X, y).merge()
    copy = through_file(through_file(merged))
    np.testing.assert_array_equal(copy.predict_proba(X), merged.predict_proba(X))
    np.testing.assert_array_equal(copy.base.predict(X), merged.base.predict(X))


def test_it_trains_further_after_loading():
    X, y = blobs()
    copy = through_file(LoRAClassifier(network(), **QUICK).fit(X, y))
    before = copy.model_.get_parameters()
    assert (copy.partial_fit(X, y).model_.get_parameters() != before).any()


PARAMETERS = {
    "optimizer": partial(AdamW, weight_decay=np.float64(0.5)),
    "activation": tanh,
    "hidden_layer_sizes": (7, 5),
    "learning_rate": np.float32(0.25),
    "rank": np.int64(2),
    "active_ranks": (1, 2),
    "sorted_start": 0.25,
    "targets": ("head",),
    "verbose": True,
}


def test_parameters_of_every_kind_come_back():
    copy = through_file(LoRAClassifier(random_state=1, **PARAMETERS).fit(*blobs()))
    assert (copy.optimizer.func, copy.optimizer.keywords) == (AdamW, {"weight_decay": 0.5})
    del copy.optimizer
    assert {name: getattr(copy, name) for name in PARAMETERS if name != "optimizer"} == {
        name: value for name, value in PARAMETERS.items() if name != "optimizer"
    }
    for kind in (SGD, Momentum):
        assert through_file(LoRAClassifier(network(), optimizer=kind, **QUICK).fit(*blobs())).optimizer is kind


def test_a_path_is_saved_as_text():
    assert _encoded("model", Path("folder")) == "folder"


def test_a_random_state_that_is_an_object_is_left_out():
    state = np.random.RandomState(0)
    estimator = LoRAClassifier(network(), random_state=state).fit(*blobs())
    assert through_file(estimator).random_state is None
    assert estimator.random_state is state


def test_feature_names_come_back():
    X, y = blobs()
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    copy = through_file(LoRAClassifier(network(), **QUICK).fit(frame, y))
    assert copy.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        copy.predict(frame[list("abdc")])


def own_optimizer(learning_rate):
    return SGD(learning_rate)


@pytest.mark.parametrize("optimizer", [own_optimizer, partial(SGD, 0.1)], ids=["function", "positional"])
def test_what_json_cannot_hold_is_refused_and_leaves_no_file(optimizer, tmp_path):
    estimator = LoRAClassifier(network(), **QUICK).fit(*blobs())
    estimator.optimizer = optimizer
    with pytest.raises(NotSupportedError, match="optimizer cannot be saved without pickle"):
        estimator.save(tmp_path / "estimator.npz")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_saved_before_fit(tmp_path):
    with pytest.raises(NotFittedError):
        LoRAClassifier().save(tmp_path / "estimator.npz")
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "file.npz"
    save_layer(network(), path)
    with pytest.raises(FormatError, match=r"must contain a LoRAClassifier, got only a layer; use lora_np\.load_layer"):
        LoRAClassifier.load(path)
    LoRAClassifier(**QUICK).fit(*blobs()).save(path)
    with pytest.raises(FormatError, match="must contain a LoRARegressor, got a LoRAClassifier"):
        LoRARegressor.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda said: said.pop("base"),
        lambda said: said.update(base="other"),
        lambda said: said.pop("parameters"),
        lambda said: said.update(parameters=[]),
        lambda said: said["parameters"].update(unknown=1),
        lambda said: said["parameters"].update(optimizer={"lora_np.optimizer": "Other", "settings": {}}),
        lambda said: said["parameters"].update(optimizer={"lora_np.optimizer": "SGD"}),
        lambda said: said["parameters"].update(activation={}),
        lambda said: said["parameters"].update(activation={"lora_np.config": {"name": "other"}}),
        lambda said: said["parameters"].update(optimizer="adan"),
        lambda said: said["parameters"].update(random_state="a"),
        lambda said: said["attributes"]["classes_"].update(dtype="no dtype"),
    ],
)
def test_a_damaged_description_is_refused(damage):
    file = io.BytesIO()
    LoRAClassifier(**QUICK).fit(*blobs()).save(file)
    header, arrays = _archive.read(file)
    damage(header["estimator"])
    damaged = io.BytesIO()
    _archive.write(damaged, header, arrays)
    with pytest.raises(FormatError, match=r"description of the estimator is damaged"):
        LoRAClassifier.load(damaged)


def test_another_process_predicts_the_same(tmp_path):
    X, y = blobs()
    tasks = ["a", "b", "c"] * 30
    estimator = MultiLoRAClassifier(**QUICK).fit(X, y, task=tasks)
    estimator.save(tmp_path / "estimator.npz")
    np.save(tmp_path / "X.npy", X)
    code = f"""
import json, numpy as np
from lora_np.sklearn import MultiLoRAClassifier
estimator = MultiLoRAClassifier.load({str(tmp_path / "estimator.npz")!r})
print(json.dumps(estimator.predict_proba(np.load({str(tmp_path / "X.npy")!r}), task={tasks!r}).tolist()))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(json.loads(result.stdout), estimator.predict_proba(X, task=tasks))
