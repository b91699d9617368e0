"""Computation graphs: recording from every kind of layer, evaluation, rewriting and drawing."""

import copy
import itertools
import pickle
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    Activation,
    ActivationLayer,
    ArgumentError,
    ArgumentNullError,
    DenseLayer,
    DyLoRAAdapter,
    FullyConnectedLayer,
    Layer,
    LoRALayer,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    identity,
    leaky_relu,
    relu,
    tanh,
)
from lora_np.functions.activations import ACTIVATIONS
from lora_np.graph import ComputationNode, optimise, to_dot, to_svg
from lora_np.graph.recording import record_function
from tests.kinds import BASES, KINDS, LAYERS, batch, bits, build, dylora, randomised, snapshot
from tests.strategies import arrays, leading_axes, seeds

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}


def export(layer):
    return layer.export_computation_graph([])


def operations(graph):
    return [node.operation for node in graph.nodes() if node.function is not None]


def parameters(graph):
    return {node.name: node for node in graph.nodes() if node.operation == "parameter"}


# ---------------------------------------------------------------- guarantees of every layer


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_the_graph_computes_what_predict_computes(name, dtype):
    layer = build(name, dtype)
    graph = export(layer)
    for shape in [(), (4,), (0,), (2, 3)]:
        x = batch(*shape, layer.input_size)
        for version in (graph, optimise(graph)):
            y = version.evaluate({"input": x})
            assert (y.dtype, y.shape) == (dtype, (*shape, layer.output_size))
            assert_allclose(y, layer.predict(x), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert layer.supports_jit_compilation


@pytest.mark.parametrize("name", LAYERS)
def test_nodes_know_their_shapes_and_dtypes(name):
    graph = export(build(name, np.float32))
    x = batch(6, build(name).input_size).astype(np.float32)
    for node in graph.nodes():
        value = node.evaluate({"input": x} if node.inputs() else {})
        assert value.shape == tuple(6 if size is ... else size for size in node.shape)
        assert node.shape == () or value.dtype == node.dtype


@pytest.mark.parametrize("name", LAYERS)
def test_all_branches_share_one_input_node(name):
    inputs = []
    graph = build(name).export_computation_graph(inputs)
    assert graph.inputs() == tuple(inputs)
    assert [node.name for node in inputs] == ["input"]


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_keep_their_names_and_are_copies(name):
    layer = build(name)
    graph, x = export(layer), batch(3, layer.input_size)
    expected, arrays = layer.predict(x), layer.named_parameters(frozen=True)
    found = {name: node for name, node in parameters(graph).items() if not name.endswith("scaling")}
    assert found.keys() <= arrays.keys()
    for path, node in found.items():
        assert_array_equal(node.value, arrays[path])
        assert not node.value.flags.writeable
    randomised(layer, seed=5)
    assert_allclose(graph.evaluate({"input": x}), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_parameter_values_can_be_replaced(name):
    layer, other = build(name), build(name, seed=7)
    graph, x = export(layer), batch(3, layer.input_size)
    names = parameters(graph)
    arrays = {path: array for path, array in other.named_parameters(frozen=True).items() if path in names}
    assert_allclose(graph.evaluate({"input": x, **arrays}), other.predict(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_exporting_does_not_change_the_layer(name):
    layer = build(name)
    x = batch(3, layer.input_size)
    layer.forward(x)
    before = snapshot(layer)
    export(layer)
    assert layer.supports_jit_compilation
    assert snapshot(layer) == before
    layer.backward(np.ones((3, layer.output_size)))  # the cached pass is kept


def test_nodes_are_immutable():
    with pytest.raises(AttributeError):
        INPUT.name = "other"


def test_the_size_of_a_node_is_that_of_its_last_axis():
    assert ComputationNode("input", (..., 2, 3), np.dtype(float)).size == 3


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_survives_pickle_and_deepcopy(name):
    graph = export(build(name))
    x = batch(3, build(name).input_size)
    for twin in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert_array_equal(twin.evaluate({"input": x}), graph.evaluate({"input": x}))


# ---------------------------------------------------------------- it reads like the derivation


def test_a_low_rank_branch_reads_like_its_equation():
    layer = build("dylora-on-dense")
    layer.current_deployment_rank = 1
    lines = [re.sub(r" +# ", " # ", line) for line in str(export(layer)).splitlines()]
    assert lines == [
        "v1 = input @ base.weight # (..., 3)",
        "v2 = v1 + base.bias # (..., 3)",
        "v3 = input @ lora.matrix_a[:, :1] # (..., 1)",
        "v4 = lora.scaling * v3 # (..., 1)",
        "v5 = v4 @ lora.matrix_b[:1] # (..., 3)",
        "v6 = v2 + v5 # (..., 3)",
    ]


def test_only_the_current_task_is_in_the_graph():
    layer = build("multilora-on-fully-connected")
    names = parameters(export(layer))
    assert {name for name in names if name.startswith("tasks.")} == {
        f"tasks.second.{part}" for part in ("scaling", "matrix_a", "matrix_b")
    }
    assert "v1 = input @ base.weight.T" in str(export(layer))


def test_the_scaling_is_a_named_number():
    layer = build("standard-rslora-on-dense")
    scaling = parameters(export(layer))["lora.scaling"]
    assert scaling.value == layer.lora_layer.scaling
    graph, x = export(layer), batch(2, layer.input_size)
    assert_allclose(graph.evaluate({"input": x, "lora.scaling": 0.0}), layer.base_layer.predict(x))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_an_activation_is_one_operation_with_its_name(activation):
    graph = export(ActivationLayer(4, activation))
    assert operations(graph) == ([] if activation == identity else [activation.name])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_an_activation_can_be_recorded_in_its_parts(activation):
    node = ComputationNode("input", (..., 4), np.dtype(float), name="z")
    z = 8 * batch(50, 4)
    graph = record_function(activation.function, [node])
    assert activation.name in ("identity", "tanh") or activation.name not in operations(graph)
    assert_array_equal(graph.evaluate({"z": z}), activation(z))
    assert_allclose(optimise(graph).evaluate({"z": z}), activation(z), rtol=1e-12, atol=1e-12)


def test_constants_and_options_are_shown():
    text = str(
        record_function(lambda z: np.max(z[..., 1:3] * np.array([1.5, 2.0]) + 0.25, axis=-1, keepdims=True), [INPUT])
    )
    assert re.sub(r" +# ", " # ", text).splitlines() == [
        "v1 = input[..., 1:3] * constant(2,) # (..., 2)",
        "v2 = v1 + 0.25 # (..., 2)",
        "v3 = max(v2, axis=-1, keepdims=True) # (..., 1)",
    ]
    assert str(INPUT) == "input"
    assert str(record_function(lambda z: z[..., ::2], [INPUT])) == "input[..., ::2]"
    assert str(record_function(lambda z: z[..., 0, None], [INPUT])) == "input[..., 0, None]"
    assert repr(INPUT) == "<ComputationNode input input (..., 4)>"
    assert repr(record_function(np.exp, [INPUT])) == "<ComputationNode exp (..., 4)>"


INPUT = ComputationNode("input", (..., 4), np.dtype(float), name="input")


# ---------------------------------------------------------------- arguments


def test_a_graph_continues_from_another_graph():
    first, second = build("dense-tanh"), randomised(DenseLayer(3, 2, relu), seed=3)
    inputs = []
    middle = [first.export_computation_graph(inputs)]
    graph = second.export_computation_graph(middle)
    assert graph.inputs() == tuple(inputs)
    assert len(middle) == 1
    x = batch(4, 5)
    assert_allclose(graph.evaluate({"input": x}), second.predict(first.predict(x)), rtol=1e-13)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "must be a list of ComputationNode, got ()"),
        (["input"], "must be a list of ComputationNode, got ['input']"),
        ([INPUT, INPUT], "must hold at most one node because a layer has one input, got 2"),
        ([INPUT], "must hold a node (..., 5) of float64, got (..., 4) of float64"),
        (
            [ComputationNode("input", (..., 5), np.dtype(np.float32), name="input")],
            "must hold a node (..., 5) of float64, got (..., 5) of float32",
        ),
    ],
)
def test_input_nodes_are_checked(nodes, message):
    with pytest.raises(ArgumentError, match=re.escape(f"input_nodes {message}")):
        build("dense").export_computation_graph(nodes)


def test_input_nodes_must_be_given():
    with pytest.raises(
        ArgumentNullError, match="input_nodes must not be None; pass an empty list to receive the input node"
    ):
        build("dense").export_computation_graph(None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "values must include every input of the graph, got none for 'input'"),
        ({"input": np.ones(5), "base.bias": 0}, "values must name inputs or parameters of the graph, got 'base.bias'"),
        ({"input": np.ones(4)}, "input must have shape (..., 5), got (4,)"),
        ({"input": 1j * np.ones(5)}, "input must be an array of real numbers"),
        ({"input": np.ones(5), "matrix_a": np.ones(2)}, "matrix_a must have shape (5, 2), got (2,)"),
        ({"input": np.ones(5), "scaling": "much"}, "scaling must be a real number, got 'much'"),
    ],
)
def test_values_are_checked(values, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        export(build("lora")).evaluate(values)


def test_the_value_is_a_new_array():
    graph, x = export(ActivationLayer(3, identity)), batch(2, 3)
    assert not np.shares_memory(graph.evaluate({"input": x}), x)


# ---------------------------------------------------------------- custom layers


class Own(Layer):
    """A custom layer: `compute(x, weight)`, with a weight of shape (3, 3)."""

    parameter_names = ("weight",)

    def __init__(self, compute):
        super().__init__(3, 3)
        self.weight = batch(3, 3, seed=9)
        self.compute = compute

    def apply(self, x, run):
        return self.compute(x, self.weight), ()

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        raise NotImplementedError

    def estimate_flops(self):
        return 0


class OwnActivation(Own):
    """A layer that calls its activation and reads its other attributes."""

    activation = None

    def apply(self, x, run):
        return self.activation(x @ self.weight) * self.activation.operations, ()


def in_place(x, W):
    y = x @ W
    same = y
    y += 1.0
    y *= W[0]
    np.subtract(y, 2.0, out=y)
    assert same is y
    return same


def in_place_on_a_copy(x, W):
    y = x.copy()
    y -= W[1]
    return y @ W


RECORDABLE = {
    "operators": lambda x, W: (2 - x) / (1 + abs(-x @ W)) ** 2,
    "reflected": lambda x, W: np.ones(3) @ W + W.T[0] * x,
    "in place": in_place,
    "in place on a copy": in_place_on_a_copy,
    "functions": lambda x, W: np.maximum(x, 0) - np.clip(x @ W, -0.5, 0.5) + np.linalg.norm(x, axis=-1, keepdims=True),
    "reductions": lambda x, W: x - x.mean(-1, keepdims=True) + x.min(axis=-1, keepdims=True) * np.sum(W, 0),
    "aliases": lambda x, W: np.where(np.may_share_memory(x, W), x, np.asarray(np.float64(2.0)) * x.real),
    "indices": lambda x, W: x[..., [0, 1, 2].index(1), None] * W[:, 1] + x[..., :] + x[...],
    "positions": lambda x, W: np.dot(x, W) + np.sum(W, 0) + np.where(W[0] > 0, W[0], 1),
    "shapes": lambda x, W: x * x.shape[-1] + np.ones(3, x.dtype),
}


@pytest.mark.parametrize("name", RECORDABLE)
def test_operations_that_can_be_recorded(name):
    layer, x = Own(RECORDABLE[name]), batch(4, 3)
    graph = export(layer)
    assert_array_equal(graph.evaluate({"input": x}), layer.predict(x))
    assert_allclose(optimise(graph).evaluate({"input": x}), layer.predict(x), rtol=1e-12)


def writes_into_the_input(x, W):
    x += 1.0
    return x


def writes_into_a_view(x, W):
    y = x @ W
    y[..., :2] += 1.0
    return y


def writes_through_a_view(x, W):
    y = x @ W
    view = y[..., :2]
    view += 1.0
    return y


def writes_while_a_view_looks(x, W):
    y = x @ W
    view = y[..., :1]
    y += 1.0
    return y + view


def writes_through_a_whole_view(x, W):
    y = x @ W
    view = y[...]
    view += 1.0
    return y


def writes_while_a_whole_view_looks(x, W):
    y = x @ W
    view = y[..., :]
    y += 1.0
    return y + view


def writes_more_than_there_is(x, W):
    y = x[..., :1] * 2.0
    y += W[0]
    return y


def writes_into_an_array(x, W):
    return np.add(x, 1.0, out=np.ones((4, 3)))


UNRECORDABLE = {
    "array": (lambda x, W: np.asarray(x), "it converts a value that is not known yet to an array"),
    "bool": (lambda x, W: x if (x > 0).all() else -x, "no attribute 'all'"),
    "condition": (lambda x, W: x if x.sum() > 0 else -x, "sum does not preserve the rows of the input"),
    "decision": (lambda x, W: x if W[0, 0] > 0 else -x, "it branches on a value that is not known yet"),
    "length": (lambda x, W: x / len(x), "it takes the length of a value that is not known yet"),
    "iteration": (lambda x, W: sum(row for row in x), "not iterable"),
    "rows": (lambda x, W: x - x.sum(axis=0, keepdims=True), "sum does not preserve the rows of the input"),
    "transposition": (lambda x, W: (W @ x.T).T, "transpose does not preserve the rows of the input"),
    "fancy index": (
        lambda x, W: x[..., [2, 1, 0]],
        "only integer and slice indices can be recorded, got (Ellipsis, [2, 1, 0])",
    ),
    "reduce": (lambda x, W: x + np.add.reduce(W), "numpy.add.reduce with options {} cannot be recorded"),
    "ufunc option": (lambda x, W: np.add(x, 1, dtype=np.float64), "numpy.add.__call__ with options {'dtype'"),
    "two results": (lambda x, W: np.modf(x)[0], "numpy.modf.__call__ with options {} cannot be recorded"),
    "no array": (lambda x, W: x + np.linalg.svd(W)[1], "svd does not return a single array"),
    "options": (lambda x, W: np.clip(x, a_min=W[0], a_max=1), "clip with arrays as keyword arguments cannot be recorded"),
    "sequence": (lambda x, W: np.concatenate([x, x]), "it converts a value that is not known yet to an array"),
    "complex": (lambda x, W: x + 1j, "it computes with 1j, which is not an array of real numbers"),
    "constant": (lambda x, W: np.ones((4, 3)), "its output does not depend on its input, got ndarray"),
    "parameter": (lambda x, W: W, "its output has shape (3, 3), not (..., 3)"),
    "writing into the input": (writes_into_the_input, "it writes to an array that is not a fresh result"),
    "writing into a part": (writes_into_a_view, "it writes to an array that is not a fresh result"),
    "writing through a view": (writes_through_a_view, "it writes to an array that is not a fresh result"),
    "writing under a view": (writes_while_a_view_looks, "it writes to an array that is not a fresh result"),
    "writing through a whole view": (writes_through_a_whole_view, "it writes to an array that is not a fresh result"),
    "writing under a whole view": (writes_while_a_whole_view_looks, "it writes to an array that is not a fresh result"),
    "writing more": (writes_more_than_there_is, "it writes to an array that is not a fresh result"),
    "writing elsewhere": (writes_into_an_array, "it writes to an array that is not a fresh result"),
}


@pytest.mark.parametrize("name", UNRECORDABLE)
def test_an_operation_that_cannot_be_recorded_is_refused_with_a_reason(name):
    compute, reason = UNRECORDABLE[name]
    layer = Own(compute)
    inputs, before = [], bits(layer.named_parameters())
    with pytest.raises(NotSupportedError, match=re.escape(reason)) as caught:
        layer.export_computation_graph(inputs)
    assert str(caught.value).startswith(f"{layer.layer_name} (Own) has no computation graph: ")
    assert inputs == []
    assert bits(layer.named_parameters()) == before
    assert layer.supports_jit_compilation is False


def test_the_message_names_the_layer_inside():
    inner = Own(np.asarray)
    model = Sequential({"fine": DenseLayer(4, 3), "own": StandardLoRAAdapter(inner, 1)})
    with pytest.raises(NotSupportedError, match=f"^{inner.layer_name} \\(Own\\) has no computation graph"):
        export(model)


def test_a_custom_activation_is_evaluated_whatever_it_does():
    strange = Activation("strange", lambda z: np.array([[abs(v) for v in row] for row in z]).reshape(z.shape), None)
    layer, x = randomised(DenseLayer(4, 3, strange)), batch(5, 4)
    assert_allclose(export(layer).evaluate({"input": x}), layer.predict(x))


def test_an_activation_may_be_called_and_its_attributes_read():
    layer = OwnActivation(None)
    layer.activation = leaky_relu
    graph, x = export(layer), batch(4, 3)
    assert operations(graph) == ["matmul", "leaky_relu", "multiply"]
    assert_array_equal(graph.evaluate({"input": x}), layer.predict(x))


def test_an_activation_stored_elsewhere_is_recorded_in_its_parts():
    activation = tanh
    graph = export(Own(lambda x, W: activation.apart(x @ W)))
    assert operations(graph) == ["matmul", "tanh"]


# ---------------------------------------------------------------- rewriting


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_into_a_linear_base(kind, base):
    adapter = build(f"{kind}-on-{base}" if f"{kind}-on-{base}" in LAYERS else kind)
    graph = optimise(export(adapter))
    assert operations(graph) == ["matmul", "add"]
    matmul, bias = graph.parents
    assert bias.name == "base.bias"
    assert_allclose(matmul.parents[1].value, adapter.merge_to_original_layer().matrix, rtol=1e-12, atol=1e-12)
    assert matmul.parents[1].name.startswith("folded(")


def test_a_branch_beside_an_activation_is_not_merged():
    adapter = randomised(StandardLoRAAdapter(DenseLayer(40, 30, tanh), 2, 3.0, rng=0))
    assert operations(optimise(export(adapter))) == ["matmul", "add", "tanh", "matmul", "multiply", "matmul", "add"]


def test_thin_factors_alone_are_not_multiplied():
    assert operations(optimise(export(randomised(LoRALayer(40, 30, 2, 3.0))))) == ["matmul", "multiply", "matmul"]


def test_each_layer_of_a_model_is_merged_separately():
    model = Sequential(
        [dylora(DenseLayer(30, 20), 2, rng=0), ActivationLayer(20, tanh), dylora(DenseLayer(20, 10), 2, rng=0)]
    )
    assert operations(optimise(export(randomised(model)))) == ["matmul", "add", "tanh", "matmul", "add"]


def test_a_value_used_twice_is_computed_once():
    # x W1 feeds both the base and the branch of the second layer, so neither is merged with W1.
    model = randomised(Sequential([DenseLayer(30, 4), StandardLoRAAdapter(DenseLayer(4, 30), 1, 2.0, rng=0)]))
    assert operations(optimise(export(model))) == ["matmul", "add", "matmul", "add"]


def test_kept_parameters_can_be_replaced_later():
    adapter, x = build("standard-on-fully-connected"), batch(4, 5)
    names = {"lora.matrix_a", "lora.matrix_b", "lora.scaling"}
    graph = optimise(export(adapter), keep=names)
    assert names <= parameters(graph).keys()
    A, B = batch(5, 2), batch(2, 3)
    expected = adapter.base_layer.predict(x) + 0.5 * x @ A @ B
    values = {"input": x, "lora.matrix_a": A, "lora.matrix_b": B, "lora.scaling": 0.5}
    assert_allclose(graph.evaluate(values), expected)


def test_kept_names_must_be_parameters():
    with pytest.raises(ArgumentError, match=r"keep must name parameters of the graph, got 'lora\.weight'"):
        optimise(export(build("standard-on-dense")), keep=["lora.matrix_a", "lora.weight"])


REWRITTEN = {
    "zero": (lambda z, kept: 0 + (z + np.zeros(4)) - 0.0, []),
    "one": (lambda z, kept: 1 * (z * np.ones(4)) / 1.0, []),
    "not neutral": (lambda z, kept: (1 / z) + (0 - z), ["divide", "subtract", "add"]),
    "another shape": (lambda z, kept: z.sum(axis=-1, keepdims=True) + np.zeros(4), ["sum", "add"]),
    "whole index": (lambda z, kept: z[..., :][..., ::1], []),
    "index of rows": (lambda z, kept: z[:2], ["getitem"]),
    "index with a step": (lambda z, kept: z[..., ::-1], ["getitem"]),
    "common": (lambda z, kept: np.exp(z) * np.exp(z), ["exp", "multiply"]),
    "common, not equal": (lambda z, kept: z.sum(axis=-1, keepdims=True) * z.sum(axis=-1), ["sum", "sum", "multiply"]),
    "constants that print alike": (
        lambda z, kept: np.exp(z * np.full(4, 1 / 3)) - np.exp(z * np.full(4, 1 / 3 + 1e-9)),
        ["multiply", "exp", "multiply", "exp", "subtract"],
    ),
    "folded": (lambda z, kept: z + np.sqrt(np.full(4, 4.0)), ["add"]),
    "twice transposed": (lambda z, kept: z @ kept.T.T, ["matmul"]),
    "transposed with axes": (
        lambda z, kept: z @ np.transpose(kept.T, axes=(0, 1)),
        ["transpose", "transpose", "matmul"],
    ),
    "three times transposed": (lambda z, kept: z @ kept.T.T.T, ["transpose", "matmul"]),
    "one product of many": (lambda z, kept: 2 * (z @ SQUARE + 1) - (z @ SQUARE.T) / 4 - np.ones(4), ["matmul", "add"]),
    "with the input itself": (lambda z, kept: z + (z @ SQUARE) @ SQUARE, ["matmul"]),
    "negative": (lambda z, kept: 3.0 - (z @ SQUARE) @ SQUARE, ["matmul", "add"]),
    "not a row": (lambda z, kept: (z @ SQUARE + np.ones((1, 4))) @ SQUARE, ["matmul", "add", "matmul"]),
    "not affine": (lambda z, kept: (1 / (z @ SQUARE)) @ SQUARE, ["matmul", "divide", "matmul"]),
    "of two": (
        lambda z, kept: (z @ SQUARE) * (z @ SQUARE + 1) + np.tanh(z) @ SQUARE,
        ["matmul", "add", "multiply", "tanh", "matmul", "add"],
    ),
    "one column to many": (lambda z, kept: (z @ SQUARE[:, :1] + np.ones(4)) @ SQUARE, ["matmul", "add", "matmul"]),
    "matrix first": (
        lambda z, kept: (SQUARE @ (SQUARE @ (z[..., None] * np.ones(4)))).sum(axis=-1),
        ["getitem", "multiply", "matmul", "matmul", "sum"],
    ),
    "as many multiplications": (lambda z, kept: z @ SQUARE[:, :2] @ SQUARE[:2], ["matmul"]),  # 4 * 4 = 4 * 2 + 2 * 4
    "one more": (lambda z, kept: z @ SQUARE[:, :3] @ batch(3, 13), ["matmul", "matmul"]),  # 4 * 13 > 4 * 3 + 3 * 13
    "vectors": (
        lambda z, kept: ((z @ SQUARE[0]) + (z @ SQUARE[1]))[..., None] * z,
        ["matmul", "matmul", "add", "getitem", "multiply"],
    ),
    "infinite": (lambda z, kept: (z @ np.full((4, 4), np.inf)) @ SQUARE, ["matmul", "matmul"]),
}
SQUARE = batch(4, 4, seed=3)


def kept():
    return ComputationNode("parameter", (4, 4), np.dtype(float), name="kept", value=batch(4, 4, seed=4))


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewriting(name):
    function, expected = REWRITTEN[name]
    graph = record_function(function, [INPUT, kept()])
    smaller = optimise(graph, keep=parameters(graph))
    x = batch(3, 4)
    with np.errstate(invalid="ignore"):
        assert_allclose(smaller.evaluate({"input": x}), graph.evaluate({"input": x}), rtol=1e-12, atol=1e-12)
    assert operations(smaller) == expected


# ---------------------------------------------------------------- random compositions


@st.composite
def models(draw, depth=2, size=None):
    """Nested layers, adapters and sequences."""
    input_size = size or draw(st.integers(1, 5))
    output_size = draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["base", "activation", "adapter", "sequential"] if depth else ["base", "activation"]))
    if kind == "activation":
        return ActivationLayer(input_size, draw(st.sampled_from(ACTIVATIONS)))
    if kind == "base":
        base = draw(st.sampled_from([DenseLayer, FullyConnectedLayer]))
        return base(input_size, output_size, draw(st.sampled_from(ACTIVATIONS)))
    if kind == "sequential":
        layers = [draw(models(depth - 1, input_size))]
        for _ in range(draw(st.integers(0, 2))):
            layers.append(draw(models(depth - 1, layers[-1].output_size)))
        return Sequential(layers)
    name = draw(st.sampled_from([name for name in KINDS if name != "dora"]))
    base = draw(models(depth - 1, input_size))
    return KINDS[name](base, draw(st.integers(1, min(base.input_size, base.output_size))), 1.5, rng=0)


@given(models(), seeds, leading_axes, st.data())
def test_random_compositions(model, seed, leading, data):
    randomised(model, seed)
    x = data.draw(arrays((*leading, model.input_size)))
    graph, expected = export(model), model.predict(x)
    assert_allclose(graph.evaluate({"input": x}), expected, rtol=1e-12, atol=1e-12)
    smaller = optimise(graph)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert_allclose(smaller.evaluate({"input": x}), expected, rtol=1e-9, atol=1e-9 * scale)
    assert len(operations(smaller)) <= len(operations(graph))


def test_a_deep_model_can_be_exported():
    model = Sequential([ActivationLayer(2, tanh) for _ in range(1500)])
    graph = optimise(export(model))
    assert len(graph.nodes()) == 1501
    assert_array_equal(graph.evaluate({"input": np.ones(2)}), model.predict(np.ones(2)))
    assert to_svg(graph).count("<rect") == 1502
    assert len(str(graph).splitlines()) == 1500


def test_values_that_are_used_twice_are_rewritten_once():
    def powers(z):
        for _ in range(60):
            z = np.tanh(z) * z
        return z

    graph = record_function(powers, [INPUT])  # 2^60 paths to the input
    assert len(optimise(graph).nodes()) == 121


def test_a_graph_continues_from_one_of_constants():
    squared = record_function(lambda k: k @ k, [kept()])
    graph = record_function(lambda z, k: z @ (k + 1), [INPUT, squared])
    x, W = batch(3, 4), kept().value
    assert_allclose(graph.evaluate({"input": x}), x @ (W @ W + 1), rtol=1e-13)


def test_the_deployment_rank_is_fixed_at_export():
    adapter = randomised(DyLoRAAdapter(DenseLayer(4, 3), 3, [1, 2, 3], rng=0))
    adapter.current_deployment_rank = 2
    graph, x = export(adapter), batch(2, 4)
    expected = adapter.predict(x)
    adapter.current_deployment_rank = 3
    assert_allclose(graph.evaluate({"input": x}), expected)


# ---------------------------------------------------------------- drawings

SVG = "{http://www.w3.org/2000/svg}"


def boxes(svg):
    """(left, top, right, bottom) of each node."""
    rectangles = ElementTree.fromstring(svg).findall(f"{SVG}rect")[1:]
    for r in rectangles:
        x, y, width, height = (float(r.get(name)) for name in ("x", "y", "width", "height"))
        yield x, y, x + width, y + height


@pytest.mark.parametrize("name", LAYERS)
def test_the_drawing_shows_every_node_without_overlap(name):
    graph = export(build(name))
    svg = to_svg(graph)
    found = list(boxes(svg))
    assert len(found) == len(graph.nodes())
    for i, (left, top, right, bottom) in enumerate(found):
        assert not any(left < r and x < right and top < b and y < bottom for x, y, r, b in found[:i])
    root = ElementTree.fromstring(svg)
    assert min(box[0] for box in found) >= 0
    assert max(box[2] for box in found) <= float(root.get("width"))
    assert max(box[3] for box in found) <= float(root.get("height"))
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {node.name for node in graph.nodes() if node.name} <= set(texts)


@pytest.mark.parametrize("name", LAYERS)
def test_edges_run_down_from_node_to_node(name):
    graph = export(build(name))
    paths = [path.get("d") for path in ElementTree.fromstring(to_svg(graph)).findall(f"{SVG}path")]
    ends = [tuple(map(float, re.findall(r"-?[\d.]+", path))) for path in paths]
    assert all(end[1] < end[7] for end in ends)
    starts = [(end[0], end[1]) for end in ends]
    centres = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes(to_svg(graph))]
    leaving = sum(any(abs(x - a) < 0.2 and abs(y - b) < 0.2 for a, b in centres) for x, y in starts)
    assert leaving == sum(len(node.parents) for node in graph.nodes())


def crossings(svg):
    """The number of pairs of edges between the same two rows that cross."""
    paths = [path.get("d") for path in ElementTree.fromstring(svg).findall(f"{SVG}path")]
    ends = [tuple(map(float, re.findall(r"-?[\d.]+", path))) for path in paths]
    return sum(
        one[1] == other[1] and (one[0] - other[0]) * (one[6] - other[6]) < 0
        for one, other in itertools.combinations(ends, 2)
    )


@pytest.mark.parametrize(
    ("name", "count"),
    # In recording order there would be six, three, two and twelve.
    [("sequential-of-adapters", 0), ("standard-on-dense", 0), ("standard-on-fully-connected", 1), ("dora-on-dense", 11)],
)
def test_rows_are_ordered_so_that_few_edges_cross(name, count):
    assert crossings(to_svg(export(build(name)))) == count


def test_the_positions_in_a_small_drawing():
    # Rows are 62 apart and centred; boxes are 34 high, 22 apart, and 7.3 wide for each character and two more.
    svg = to_svg(record_function(lambda z, W: z @ W + z + 0.5, [INPUT, kept()]))
    root = ElementTree.fromstring(svg)
    assert (root.get("width"), root.get("height")) == ("197", "248")
    drawn = [
        (text.text, rectangle.get("x"), rectangle.get("y"), rectangle.get("width"), rectangle.get("rx"))
        for text, rectangle in zip(root.findall(f"{SVG}text")[::2], root.findall(f"{SVG}rect")[1:], strict=True)
    ]
    assert drawn == [
        ("input", "22.0", "14.0", "73.0", "3"),
        ("kept", "117.0", "14.0", "58.4", "3"),
        ("@", "73.7", "76.0", "73.0", "17"),
        ("+", "33.0", "138.0", "73.0", "17"),
        ("0.5", "127.9", "138.0", "36.5", "3"),
        ("+", "62.2", "200.0", "73.0", "17"),
    ]
    assert [path.get("d") for path in root.findall(f"{SVG}path")] == [
        "M58.5,31.0 C58.5,62.0 110.2,62.0 110.2,76.0",
        "M146.2,31.0 C146.2,62.0 110.2,62.0 110.2,76.0",
        "M110.2,93.0 C110.2,124.0 69.5,124.0 69.5,138.0",
        "M58.5,31.0 C58.5,62.0 51.2,62.0 51.2,93.0",  # around the product, to the bend beside it
        "M51.2,93.0 C51.2,124.0 69.5,124.0 69.5,138.0",
        "M69.5,155.0 C69.5,186.0 98.7,186.0 98.7,200.0",
        "M146.2,155.0 C146.2,186.0 98.7,186.0 98.7,200.0",
    ]
    assert {(text.get("x"), text.get("y")) for text in root.findall(f"{SVG}text")[:2]} == {
        ("58.5", "28.0"),
        ("58.5", "42.0"),
    }


def test_names_are_escaped():
    layer = build("multilora-on-dense")
    layer.add_task('<&"', 1)
    layer.current_task = '<&"'
    graph = export(layer)
    texts = [text.text for text in ElementTree.fromstring(to_svg(graph)).findall(f"{SVG}text")]
    assert 'tasks.<&".matrix_a' in texts
    assert 'label="tasks.<&\\".matrix_a\\n(5, 1)", shape=box' in to_dot(graph)


def test_dot_has_one_line_per_node_and_edge():
    graph = export(build("dense-tanh"))
    assert to_dot(graph).splitlines() == [
        "digraph {",
        '  n0 [label="input\\n(..., 5)", shape=box, style=filled, fillcolor="#cfe8cf"];',
        '  n1 [label="weight\\n(5, 3)", shape=box, style=filled, fillcolor="#d7e3f7"];',
        '  n2 [label="@\\n(..., 3)", shape=ellipse, style=filled, fillcolor="#ffffff"];',
        '  n3 [label="bias\\n(3,)", shape=box, style=filled, fillcolor="#d7e3f7"];',
        '  n4 [label="+\\n(..., 3)", shape=ellipse, style=filled, fillcolor="#ffffff"];',
        '  n5 [label="tanh\\n(..., 3)", shape=ellipse, style=filled, fillcolor="#ffffff"];',
        "  n0 -> n2;",
        "  n1 -> n2;",
        "  n2 -> n4;",
        "  n3 -> n4;",
        "  n4 -> n5;",
        "}",
    ]
