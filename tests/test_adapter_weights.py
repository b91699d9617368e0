"""Adapters without their base: extracted weights equal the updates that the model adds."""

import numpy as np
import pytest

from lora_np import (
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    StandardLoRAAdapter,
    VeRAAdapter,
    at_rank,
)
from lora_np.factors.weights import AdapterWeights, extract, extract_tasks
from tests.io.networks import FACTORIES, X, adapted, assert_close, dylora, multilora, network
from tests.kinds import bits, randomised

PATHS = ["body.up", "head"]


def layer():
    return randomised(LoRALayer(4, 3, 2, 5.0))


@pytest.mark.parametrize("kind", ["standard", "alpha-0", "rslora", "dora"])
def test_the_layers_equal_those_of_the_model(kind):
    model = adapted(FACTORIES[kind])
    weights = extract(model)
    assert list(weights.layers) == PATHS
    for path in PATHS:
        branch = model.walk()[path].lora_layer
        assert bits(weights.layers[path].named_parameters()) == bits(branch.named_parameters())
        assert weights.layers[path].scaling == branch.scaling


def test_arrays_are_copies():
    model = adapted(FACTORIES["dora"])
    before = bits(model.named_parameters(frozen=True))
    weights = extract(model)
    for path in PATHS:
        weights.layers[path].matrix_a[...] = 0
        weights.magnitudes[path][...] = 0
    assert bits(model.named_parameters(frozen=True)) == before


def test_a_single_adapter_has_the_empty_path():
    assert list(extract(StandardLoRAAdapter(DenseLayer(4, 3), 2)).layers) == [""]


def test_only_dora_has_magnitudes():
    assert not extract(adapted(FACTORIES["standard"])).magnitudes
    weights = extract(adapted(FACTORIES["dora"], FACTORIES["standard"]))
    assert list(weights.magnitudes) == ["head"]


def test_a_magnitude_equals_that_of_the_adapter():
    adapter = randomised(DoRAAdapter(DenseLayer(4, 3), 2))
    assert np.array_equal(extract(adapter).magnitudes[""], adapter.magnitude)


# ---------------------------------------------------------------- DyLoRA and MultiLoRA


def test_a_dylora_at_full_rank_has_its_settings():
    weights = extract(adapted(lambda linear: dylora(linear, mode="frozen", scaling="paper")))
    assert weights.layers["head"].rank == 4
    assert weights.nested["head"].to_json() == {
        "active_ranks": [1, 2, 4],
        "alpha": 3.0,
        "mode": "frozen",
        "scaling": "paper",
        "rank_distribution": [0.5, 0.2, 0.3],
        "current_deployment_rank": 2,
    }


@pytest.mark.parametrize("scaling", ["max", "paper", "rslora"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_dylora_at_a_rank_is_a_plain_layer_of_the_same_function(scaling, rank):
    model = adapted(lambda linear: dylora(linear, scaling=scaling))
    weights = extract(model, rank=rank)
    assert not weights.nested
    for path in PATHS:
        assert weights.layers[path].rank == rank
        assert_close(weights.delta(path), model.walk()[path].lora_layer.merge_weights(rank=rank), 1e-15)


@pytest.mark.parametrize(("rank", "chosen"), [(None, 2), (1, 1), (4, 4)])
def test_weights_at_a_rank_are_plain_by_default_at_the_deployment_rank(rank, chosen):
    model = adapted(dylora)
    weights = extract(model).at_rank(rank)
    assert not weights.nested
    for path in PATHS:
        assert weights.layers[path].rank == chosen
        assert_close(weights.delta(path), model.walk()[path].lora_layer.merge_weights(rank=chosen), 1e-15)


def test_only_a_given_rank_requires_dylora():
    weights = extract(adapted(multilora))
    assert weights.at_rank().layers == weights.layers
    with pytest.raises(ArgumentError, match=r"^rank 2 requires DyLoRA layers, and the adapter has none$"):
        weights.at_rank(2)


@pytest.mark.parametrize("rank", [0, 3, 5, -1, 1.0, True, "1", None])
def test_a_rank_that_is_not_active_is_rejected(rank):
    with pytest.raises(ArgumentError, match="rank must be"):
        at_rank(DyLoRAAdapter(DenseLayer(6, 5), 4, [1, 2, 4]), rank)


@pytest.mark.parametrize(("task", "rank"), [("german", 3), ("french", 2), (None, 2)])
def test_a_task_of_a_multilora(task, rank):
    model = adapted(multilora)
    weights = extract(model, task=task)
    for path in PATHS:
        assert weights.layers[path].rank == rank
        branch = model.walk()[path].get_task_adapter(task or "french")
        assert np.array_equal(weights.delta(path), branch.merge_weights())


@pytest.mark.parametrize("task", ["latin", ""])
def test_an_unknown_task_is_rejected(task):
    with pytest.raises(ArgumentError, match="task_name must be one of 'french', 'german'"):
        extract(adapted(multilora), task=task)


# ---------------------------------------------------------------- deltas, counts and errors


@pytest.mark.parametrize("kind", ["standard", "alpha-0", "rslora", "dylora"])
def test_delta_equals_what_merging_adds(kind):
    model = adapted(FACTORIES[kind])
    for path in PATHS:
        adapter = model.walk()[path]
        if kind == "dylora":
            adapter.current_deployment_rank = 4
        added = adapter.merge_to_original_layer().matrix - adapter.base_layer.matrix
        assert np.allclose(extract(model).delta(path), added, rtol=0, atol=1e-14)


def test_dora_has_no_delta():
    with pytest.raises(NotSupportedError, match="'head' is adapted by DoRA"):
        extract(adapted(FACTORIES["dora"])).delta("head")


@pytest.mark.parametrize("kind", FACTORIES)
def test_the_parameter_count_equals_that_of_the_model(kind):
    model = adapted(FACTORIES[kind])
    assert extract(model).parameter_count == model.parameter_count


@pytest.mark.parametrize("kind", ["magnitudes", "nested"])
def test_settings_without_a_layer_are_rejected(kind):
    with pytest.raises(ArgumentError, match=f"paths of {kind} must be paths of layers, got 'tail'"):
        AdapterWeights({"head": layer()}, **{kind: {"head": {}, "tail": {}}})


def test_a_model_without_adapters_is_rejected():
    with pytest.raises(ArgumentError, match="model must have an adapter"):
        extract(network())


def test_vera_is_rejected():
    with pytest.raises(NotSupportedError, match=r"'': the branch of a VeRAAdapter is not a pair of trained factors"):
        extract(VeRAAdapter(DenseLayer(4, 3), 2))


def test_extracting_changes_nothing():
    model = adapted(FACTORIES["dylora"])
    before = model.predict(X)
    extract(model, rank=1)
    assert np.array_equal(model.predict(X), before)


def test_many_tasks_need_a_single_walk_through_the_model(monkeypatch):
    model = adapted(multilora)
    expected = {task: extract(model, task=task) for task in ("german", "french")}
    calls = []
    children = MultiLoRAAdapter.children
    monkeypatch.setattr(MultiLoRAAdapter, "children", lambda self: calls.append(self) or children(self))
    found = extract_tasks(model, ["german", "french"])
    assert len(calls) == len(PATHS)
    assert list(found) == list(expected)
    for task, weights in expected.items():
        for path in PATHS:
            assert bits(found[task].layers[path].named_parameters()) == bits(weights.layers[path].named_parameters())
