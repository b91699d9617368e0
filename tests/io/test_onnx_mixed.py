"""ONNX files of mixed batches: the task and the rank of each row are inputs."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from lora_np import (
    ActivationLayer,
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    LayerNorm,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    tanh,
)
from lora_np.io._onnx_rows import scaled_by_rank, task_branches, with_row_inputs
from lora_np.io.onnx import to_onnx
from tests.io.test_onnx import TOLERANCE, assert_same, names, operators, run, shapes
from tests.kinds import batch, randomised

TASKS = ["french", "german", "ünï, (code)"]


def multilora(base, names=TASKS, ranks=(1, 3, 2)):
    """An adapter whose tasks have different ranks and scalings."""
    adapter = MultiLoRAAdapter(base, names[0], ranks[0], 0.5, rng=0)
    for name, rank in zip(names[1:], ranks[1:], strict=True):
        adapter.add_task(name, rank, 1.5)
    return adapter


def mixed_model(dtype=np.float64, scaling="paper"):
    """A model with every kind of adapter: tasks in two layers, in different orders, ranks in two, and others."""
    return randomised(
        Sequential(
            {
                "first": multilora(DenseLayer(5, 6, tanh, dtype=dtype)),
                "middle": DyLoRAAdapter(FullyConnectedLayer(6, 4, dtype=dtype), 4, [1, 2, 4], 3.0, scaling=scaling, rng=0),
                "norm": LayerNorm(4, dtype=dtype),
                "dora": DoRAAdapter(DenseLayer(4, 4, dtype=dtype), 2, rng=0),
                "other": DyLoRAAdapter(DenseLayer(4, 4, tanh, dtype=dtype), 4, [1, 2, 4], rng=0),
                "last": multilora(FullyConnectedLayer(4, 3, dtype=dtype), TASKS[::-1]),
            }
        )
    )


def indices(tasks):
    return np.array([-1 if task is None else TASKS.index(task) for task in tasks], np.int64)


rows = st.lists(st.tuples(st.sampled_from([None, *TASKS]), st.sampled_from([1, 2, 4])), max_size=6)


@settings(max_examples=25, deadline=None)
@given(rows, st.sampled_from([("batch",), ("batch", "time"), ("a", "b", "c")]), st.sampled_from(["max", "paper", "rslora"]))
def test_onnxruntime_computes_what_predict_computes(rows, leading, scaling):
    model = mixed_model(scaling=scaling)
    tasks, ranks = [task for task, _ in rows], np.array([rank for _, rank in rows], np.int64)
    x = batch(len(rows), *(2, 3)[: len(leading) - 1], 5)
    expected = model.predict(x, tasks=tasks, rank=ranks)
    file = to_onnx(model, adapters="mixed", leading=leading)
    assert shapes(file.graph.input) == {"input": [*leading, 5], "task": [leading[0]], "rank": [leading[0]]}
    assert_same(run(file, input=x, task=indices(tasks), rank=ranks), expected, np.float64)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_mixed_batches_in_each_dtype(dtype):
    model, x = mixed_model(dtype), batch(5, 5).astype(dtype)
    tasks, ranks = ["german", None, "french", "german", TASKS[2]], np.array([1, 2, 4, 4, 1])
    actual = run(to_onnx(model, adapters="mixed"), input=x, task=indices(tasks), rank=ranks)
    assert_same(actual, model.predict(x, tasks=tasks, rank=ranks), dtype)


@pytest.mark.parametrize("opset", [18, 21])
def test_each_input_exists_only_if_it_selects_something(opset):
    with_tasks, with_ranks = randomised(multilora(DenseLayer(4, 3))), randomised(DyLoRAAdapter(DenseLayer(4, 3), 3, [1, 3]))
    x = batch(2, 4)
    by_task, by_rank = (to_onnx(model, adapters="mixed", opset=opset) for model in (with_tasks, with_ranks))
    assert [list(shapes(file.graph.input)) for file in (by_task, by_rank)] == [["input", "task"], ["input", "rank"]]
    assert_same(run(by_task, input=x, task=np.array([1, 0])), with_tasks.predict(x, tasks=TASKS[1::-1]), np.float64)
    assert_same(run(by_rank, input=x, rank=np.array([3, 1])), with_ranks.predict(x, rank=[3, 1]), np.float64)


def test_a_single_task_and_the_base_alone():
    model, x = randomised(multilora(DenseLayer(4, 3), TASKS[:1], (2,))), batch(2, 4)
    actual = run(to_onnx(model, adapters="mixed"), input=x, task=np.array([0, -1]))
    assert_same(actual, model.predict(x, tasks=[TASKS[0], None]), np.float64)


def test_nodes_know_their_shapes():
    model = mixed_model()
    graph = with_row_inputs(model, model.export_computation_graph([]))
    inputs = {"input": batch(6, 5), "task": np.zeros(6, np.int64), "rank": np.ones(6, np.int64)}
    values = {}
    for node in graph.nodes():
        if node.function is None:
            values[node] = inputs.get(node.name, node.value)
        else:
            values[node] = node.function(*(values[parent] for parent in node.parents), **node.options)
        assert np.shape(values[node]) == tuple(6 if size is ... else size for size in node.shape)


def test_ranks_that_are_not_active_and_rank_0():
    adapter = randomised(DyLoRAAdapter(DenseLayer(4, 3), 3, [1, 3], 2.0, scaling="rslora"))
    x = batch(3, 4)
    by_hand = DyLoRAAdapter.around(adapter.base_layer, adapter.lora_layer, active_ranks=[1, 2, 3])
    expected = [adapter.base_layer.predict(x[0]), by_hand.predict(x[1], rank=2), by_hand.predict(x[2], rank=3)]
    actual = run(to_onnx(adapter, adapters="mixed"), input=x, rank=np.array([0, 2, -1]))
    assert_same(actual, np.array(expected), np.float64)


def test_the_current_task_and_the_deployment_rank_do_not_matter():
    model = mixed_model()
    before = to_onnx(model, adapters="mixed")
    model.layers[0].current_task, model.layers[1].current_deployment_rank = "german", 2
    after = to_onnx(model, adapters="mixed")
    for file in (before, after):
        del file.metadata_props[:]
    assert before == after


def test_names_of_the_stacked_arrays():
    operators, arrays = names(to_onnx(mixed_model(), adapters="mixed"))
    assert arrays[:8] == [
        "first.base.weight", "first.base.bias", "first.tasks.matrix_a", "first.tasks.matrix_b", "axes",
        "middle.base.weight.T", "middle.base.bias", "middle.lora.matrix_a",
    ]  # fmt: skip
    assert arrays[8:10] == ["middle.lora.scalings", "middle.lora.matrix_b"]
    assert ("middle.lora.Gather", "middle.lora.Gather") in operators


def test_an_index_out_of_range_is_an_error():
    file = to_onnx(multilora(DenseLayer(4, 3)), adapters="mixed")
    with pytest.raises(Exception, match="indices element out of data bounds"):
        run(file, input=batch(1, 4), task=np.array([4]))


def test_other_adapters_are_merged():
    model = Sequential([StandardLoRAAdapter(DenseLayer(4, 4), 2, rng=0), multilora(DenseLayer(4, 3))])
    assert operators(to_onnx(model, adapters="mixed"))[:2] == ["MatMul", "MatMul"]


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_the_functions_of_a_graph_are_those_of_numpy(ndim):
    x, A, B = batch(3, *(2, 4)[: ndim - 2], 5), batch(4, 5, 2), batch(4, 2, 3)
    index = np.array([2, 0, -1])
    expected = np.array([row @ A[i] @ B[i] for row, i in zip(x, index, strict=True)])
    assert_allclose(task_branches(x, A, B, index), expected, rtol=1e-12)
    table = batch(4, 5)
    assert_allclose(scaled_by_rank(x, table, index), [row * table[i] for row, i in zip(x, index, strict=True)])


@pytest.mark.parametrize("layer", [DenseLayer(4, 3), StandardLoRAAdapter(DenseLayer(4, 3), 1), ActivationLayer(3, tanh)])
def test_a_model_without_tasks_and_ranks_is_rejected(layer):
    with pytest.raises(NotSupportedError, match="adapters='mixed' needs a MultiLoRAAdapter or a DyLoRAAdapter"):
        to_onnx(layer, adapters="mixed")


@pytest.mark.parametrize("names", [["french", "greek"], ["french"], [*TASKS, "greek"]])
def test_different_tasks_are_rejected(names):
    model = Sequential([multilora(DenseLayer(4, 4)), multilora(DenseLayer(4, 3), names, (1,) * len(names))])
    found = re.escape(", ".join(names))
    message = f"must have the same tasks, but {model.layers[1].layer_name} has {found} instead of french, german, ünï"
    with pytest.raises(NotSupportedError, match=message):
        to_onnx(model, adapters="mixed")


def test_a_single_vector_has_no_rows():
    with pytest.raises(
        ArgumentError, match=r"leading must name at least the axis of the rows if adapters='mixed', got \(\)"
    ):
        to_onnx(multilora(DenseLayer(4, 3)), adapters="mixed", leading=())
