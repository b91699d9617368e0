"""Tasks of whole models: added to every adapter and removed from it, or nothing is changed."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lora_np import (
    ArgumentError,
    DenseLayer,
    InvalidOperationError,
    MultiLoRAAdapter,
    Sequential,
    add_task,
    apply_lora,
    find,
    remove_task,
    tanh,
)
from tests.kinds import batch, snapshot


def model():
    base = Sequential({"up": DenseLayer(6, 8, tanh, rng=0), "down": DenseLayer(8, 4, rng=1)})
    return apply_lora(base, MultiLoRAAdapter, default_task_name="a", default_rank=2, rng=2)


def adapters(layer):
    return list(find(layer, MultiLoRAAdapter).values())


def test_a_task_is_added_as_each_adapter_would_add_it():
    one, other = model(), model()
    assert add_task(one, "b", 4, 8.0, [1, 2, 4], scaling="rslora", mode="frozen", dropout=0.5) == 2
    for adapter in adapters(other):
        adapter.add_task("b", 4, 8.0, [1, 2, 4], scaling="rslora", mode="frozen", dropout=0.5)
    assert snapshot(one) == snapshot(other)
    assert [adapter.config()["ranks"] for adapter in adapters(one)] == [
        adapter.config()["ranks"] for adapter in adapters(other)
    ]
    assert {adapter.current_task for adapter in adapters(one)} == {"a"}


def test_the_default_alpha_is_the_rank():
    layer = model()
    add_task(layer, "b", 3)
    assert [adapter.get_task_adapter("b").alpha for adapter in adapters(layer)] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (("b", 5), {}, r"^down: rank must be"),
        (("a", 1), {}, r"^up: task_name must be new"),
        (("b", 2, np.nan), {}, r"^up: alpha must"),
        (("b", 2, 1.0, [2, 1]), {}, r"^up: active_ranks must"),
        (("b", 2, 1.0, [1]), {"mode": "half"}, r"^up: mode must"),
        (("b", 2), {"scaling": "none"}, r"^up: scaling must"),
        (("b", 2), {"dropout": 1.0}, r"^up: dropout must"),
        (("b", 2), {"rank_distribution": [1.0]}, r"^up: active_ranks must not be None"),
        ((" ", 2), {}, r"^up: task_name must be a string"),
    ],
)
def test_a_task_that_an_adapter_refuses_is_added_to_none(arguments, options, match):
    layer = model()
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=match):
        add_task(layer, *arguments, **options)
    assert snapshot(layer) == before
    assert all(list(adapter) == ["a"] for adapter in adapters(layer))


def test_a_single_adapter_is_named_by_itself():
    adapter = MultiLoRAAdapter(DenseLayer(3, 2), "a", 1)
    with pytest.raises(ArgumentError, match=f"^{adapter.layer_name}: rank must"):
        add_task(adapter, "b", 3)


def test_a_task_is_removed_from_every_adapter_that_has_it():
    layer = model()
    add_task(layer, "b", 2)
    adapters(layer)[0].add_task("c", 1)
    assert remove_task(layer, "c") == 1
    assert remove_task(layer, "a") == 2
    assert [list(adapter) for adapter in adapters(layer)] == [["b"], ["b"]]
    assert {adapter.current_task for adapter in adapters(layer)} == {"b"}
    assert remove_task(layer, "unknown") == 0
    assert remove_task(layer, ["b"]) == 0


def test_the_last_task_of_an_adapter_stays_and_so_does_it_everywhere():
    layer = model()
    adapters(layer)[0].add_task("b", 2)
    before = snapshot(layer)
    with pytest.raises(InvalidOperationError, match="'a' is the last task and cannot be removed"):
        remove_task(layer, "a")
    assert snapshot(layer) == before


@pytest.mark.parametrize("verb", [lambda layer: add_task(layer, "b", 1), lambda layer: remove_task(layer, "b")])
def test_a_model_without_tasks_is_refused(verb):
    with pytest.raises(InvalidOperationError, match="has no MultiLoRAAdapter"):
        verb(DenseLayer(3, 2))


def test_an_adapter_is_a_collection_of_tasks_and_is_true():
    adapter, x = MultiLoRAAdapter(DenseLayer(4, 4), "a", 1), batch(2, 4)
    adapter.add_task("b", 2)
    assert list(adapter) == ["a", "b"]
    assert [adapter[name] for name in adapter] == list(adapter.task_adapters.values())
    assert "b" in adapter
    assert bool(adapter)
    for name in adapter:  # tasks may change meanwhile
        adapter.add_task(f"{name}{name}", 1)
    with pytest.raises(KeyError, match="unknown"):
        adapter["unknown"]
    assert_array_equal(adapter["a"].merge_weights(), adapter.get_task_adapter("a").merge_weights())
    assert_array_equal(adapter.predict(x), adapter(x))
