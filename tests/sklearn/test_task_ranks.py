"""Estimators for several tasks with a rank for each."""

import numpy as np
import pytest

from lora_np import ArgumentError, MultiLoRAAdapter, find
from lora_np.sklearn import MultiLoRAClassifier, MultiLoRARegressor

from .conftest import blobs, network

X, Y = blobs()
TASK = np.tile(["a", "b", "a"], len(Y) // 3)
QUICK = {"epochs": 2, "base_epochs": 2, "random_state": 0}
KINDS = [MultiLoRAClassifier, MultiLoRARegressor]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def ranks(estimator):
    """The ranks of each task, layer by layer."""
    adapters = find(estimator.model_, MultiLoRAAdapter).values()
    return {task: [adapter[task].rank for adapter in adapters] for task in estimator.tasks_}


def test_a_task_has_its_rank_and_a_small_layer_its_full_rank():
    estimator = MultiLoRAClassifier(network(), rank={"a": 2, "b": 4, "c": 1}, **QUICK).fit(X, Y, task=TASK)
    assert ranks(estimator) == {"a": [2, 2], "b": [4, 3]}


@every_kind
def test_equal_ranks_for_all_tasks_are_one_rank(kind):
    one, each = (kind(network(), rank=rank, **QUICK).fit(X, Y, task=TASK) for rank in (2, {"a": 2, "b": 2}))
    np.testing.assert_array_equal(one.predict(X, TASK), each.predict(X, TASK))
    assert ranks(one) == ranks(each)


def test_all_tasks_have_the_scaling_of_their_rank():
    estimator = MultiLoRAClassifier(network(), rank={"a": 1, "b": 4}, alpha=2, **QUICK).fit(X, Y, task=TASK)
    for adapter in find(estimator.model_, MultiLoRAAdapter).values():
        assert (adapter["a"].scaling, adapter["b"].scaling) == (2, 0.5)


@every_kind
def test_a_new_task_gets_its_rank(kind):
    estimator = kind(network(), rank={"a": 2, "b": 3, "c": 1}, **QUICK).fit(X, Y, task=TASK)
    with pytest.raises(ArgumentError, match="rank must contain each task, or be a number, got none for 'd'"):
        estimator.partial_fit(X, Y, task=np.where(TASK == "a", "c", "d"))
    assert all(list(adapter) == ["a", "b"] for adapter in find(estimator.model_, MultiLoRAAdapter).values())
    estimator.partial_fit(X, Y, task=["c"] * len(X))
    assert set(ranks(estimator)["c"]) == {1}


@every_kind
def test_ranks_go_through_files_and_merging(kind, tmp_path):
    estimator = kind(network(), rank={"a": 2, "b": 3}, **QUICK).fit(X, Y, task=TASK)
    estimator.save(tmp_path / "file")
    loaded = kind.load(tmp_path / "file")
    assert loaded.rank == {"a": 2, "b": 3}
    np.testing.assert_array_equal(loaded.predict(X, TASK), estimator.predict(X, TASK))
    assert [estimator.merge(task).fit(X, Y).rank for task in "ab"] == [2, 3]


@pytest.mark.parametrize(("rank", "message"), [
    ({"a": 2}, "rank must contain each task, or be a number, got none for 'b'"),
    ({"a": 2, "b": 0}, r"rank\['b'\] must be .*, got 0"),
    ({"a": 2, "b": "4"}, r"rank\['b'\] must be .*, got '4'"),
    (0, "rank must be .*, got 0"),
    ([2, 2], r"rank must be .*, got \[2, 2\]"),
])  # fmt: skip
@every_kind
def test_bad_ranks_are_refused(kind, rank, message):
    estimator = kind(rank=rank, learning_rate=1e300, **QUICK)  # training the base would raise NonFiniteError
    with pytest.raises(ArgumentError, match=message):
        estimator.fit(X, Y, task=TASK)
    assert not hasattr(estimator, "model_")
