"""Tasks with ranks in whole models: selecting ranks, counting, extracting, PEFT folders, ONNX files, surgery, plots."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    Adam,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    MeanSquaredError,
    MultiLoRAAdapter,
    NotSupportedError,
    find,
    plot,
    select_rank,
    select_task,
    trainable_parameters,
)
from lora_np.distributed import fit_shards
from lora_np.factors.surgery import grow
from lora_np.factors.weights import extract
from lora_np.io.onnx import to_onnx
from lora_np.io.peft import apply_peft, save_peft
from lora_np.training import SortedStart
from tests.io.networks import X, adapted, network
from tests.io.test_onnx import assert_same, run
from tests.kinds import batch, bits, randomised

RANKS = [1, 2, 4]


def ranked(linear, scaling="paper"):
    """A plain task, the current one, and one with ranks."""
    adapter = MultiLoRAAdapter(linear, "french", 2, 3.0, rng=0)
    adapter.add_task("german", 4, 3.0, RANKS, scaling=scaling, mode="frozen", rank_distribution=[0.5, 0.25, 0.25])
    adapter.set_task_deployment_rank("german", 2)
    return adapter


def tasks(row_count, name):
    return [name] * row_count


def test_select_rank_reaches_tasks_and_adapters():
    model = adapted(ranked, lambda linear: DyLoRAAdapter(linear, 4, RANKS, rng=0))
    assert select_rank(model, 1) == 2
    assert model.walk()["head"].task_deployment_ranks == {"german": 1}
    model.walk()["head"].replace_task("german", model.walk()["head"].get_task_adapter("german").at_rank(3))
    with pytest.raises(ArgumentError, match=r"^head.tasks.german: rank must be one of the active ranks \(1, 2, 3\)"):
        select_rank(model, 4)
    assert model.walk()["body.up"].current_deployment_rank == 1


def test_parameters_are_counted_at_a_rank():
    table = trainable_parameters(ranked(DenseLayer(6, 5)), rank=2)
    shapes = {row.name: row.shape for row in table.rows}
    assert shapes["tasks.french.matrix_a"] == (6, 2)
    assert shapes["tasks.german.matrix_a"] == (6, 2)
    assert shapes["tasks.german.matrix_b"] == (2, 5)


@pytest.mark.parametrize("rank", RANKS)
def test_a_task_is_extracted_at_a_rank_as_a_plain_layer(rank):
    model = adapted(ranked)
    weights = extract(model, task="german", rank=rank)
    assert not weights.nested
    expected = model.walk()["head"].get_task_adapter("german").merge_weights(rank=rank)
    assert_allclose(weights.delta("head"), expected, rtol=1e-14)
    assert extract(model, rank=rank).layers["head"].rank == 2
    with pytest.raises(ArgumentError, match="active ranks"):
        extract(model, task="german", rank=3)


def test_folders_keep_the_ranks_of_each_task(tmp_path):
    model = adapted(ranked)
    save_peft(tmp_path / "whole", model)
    again = apply_peft(network(), tmp_path / "whole")
    for path, adapter in find(again, MultiLoRAAdapter).items():
        assert dict(adapter.task_ranks).keys() == {"german"}
        assert adapter.task_ranks["german"].choices == model.walk()[path].task_ranks["german"].choices
        assert adapter.task_deployment_ranks == {"german": 2}
    for name in ("french", "german"):
        assert_allclose(
            again.predict(X, tasks=tasks(len(X), name)), model.predict(X, tasks=tasks(len(X), name)), rtol=1e-12
        )
    assert_allclose(
        again.predict(X, tasks=tasks(len(X), "german"), rank=4), model.predict(X, tasks=tasks(len(X), "german"), rank=4)
    )


@pytest.mark.parametrize("rank", RANKS)
def test_folders_at_a_rank_are_plain(tmp_path, rank):
    model = adapted(ranked)
    save_peft(tmp_path / "plain", model, rank=rank)
    config = json.loads((tmp_path / "plain" / "german" / "adapter_config.json").read_text())
    assert config["r"] == rank
    again = apply_peft(network(), tmp_path / "plain")
    assert not again.walk()["head"].task_ranks
    expected = model.predict(X, tasks=tasks(len(X), "german"), rank=rank)
    assert_allclose(again.predict(X, tasks=tasks(len(X), "german")), expected, rtol=1e-12)


@pytest.mark.parametrize("adapters", ["merged", "inputs"])
def test_a_graph_has_the_current_task_at_its_deployment_rank(adapters):
    model, x = adapted(ranked), batch(3, 6)
    select_task(model, "german")
    file = to_onnx(model, adapters=adapters)
    assert_same(run(file, input=x), model.predict(x), np.float64)
    properties = {entry.key: entry.value for entry in file.metadata_props}
    assert properties["head.tasks.german.deployed.rank"] == "2"
    assert json.loads(properties["head.tasks.german.deployed.ranks"]) == RANKS
    select_task(model, "french")
    assert not any("deployed" in entry.key for entry in to_onnx(model).metadata_props)


def test_a_graph_of_mixed_batches_has_each_task_at_its_deployment_rank():
    model, x = adapted(ranked), batch(3, 6)
    file = to_onnx(model, adapters="mixed")
    assert_same(
        run(file, input=x, task=np.array([1, 0, -1])), model.predict(x, tasks=["german", "french", None]), np.float64
    )
    assert "head.tasks.german.deployed.rank" in {entry.key for entry in file.metadata_props}


def test_tasks_with_ranks_grow_only_if_their_scaling_does_not_depend_on_the_rank():
    with pytest.raises(NotSupportedError, match="can only grow with scaling='max'"):
        grow(ranked(DenseLayer(6, 5)), 5)
    one, x = randomised(ranked(DenseLayer(6, 5), scaling="max")), batch(2, 6)
    grown = grow(one, 5, rng=0)
    assert grown.task_ranks["german"].active_ranks == (1, 2, 4)
    for rank in RANKS:
        expected = one.predict(x, tasks=["german", "french"], rank=rank)
        assert_allclose(grown.predict(x, tasks=["german", "french"], rank=rank), expected, rtol=1e-12)


def test_the_data_flow_shows_the_deployed_components():
    adapter = ranked(DenseLayer(6, 5))
    adapter.current_task = "german"
    texts = [text.get_text() for text in plot.data_flow(adapter).texts]
    assert any("A[:, :2]" in text for text in texts)


def test_shards_train_and_sort_the_tasks_that_they_have():
    def shards(names):
        x, y = batch(4, 6), batch(4, 5)
        return [lambda: (x, y, names), lambda: (x + 1, y, names)]

    def adapter():
        one = MultiLoRAAdapter(DenseLayer(6, 5, rng=0), "a", 4, active_ranks=RANKS, rng=0)
        one.add_task("b", 4, active_ranks=RANKS)
        return randomised(one)

    mixed, before = adapter(), adapter().named_parameters()
    fit_shards(mixed, shards(["a", None, "a", "a"]), MeanSquaredError(), Adam(0.01), 6, rank_schedule=SortedStart(2), rng=0)
    after = mixed.named_parameters()
    assert bits({"b": after["tasks.b.matrix_a"]}) == bits({"b": before["tasks.b.matrix_a"]})
    assert not np.array_equal(after["tasks.a.matrix_a"], before["tasks.a.matrix_a"])
    plain = adapter()
    x, y = batch(4, 6), batch(4, 5)
    fit_shards(plain, [lambda: (x, y)], MeanSquaredError(), Adam(0.01), 6, rank_schedule=SortedStart(2), rng=0)
    assert_array_equal(plain.get_task_adapter("b").matrix_a, before["tasks.b.matrix_a"])
