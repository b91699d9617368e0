"""ONNX files: checked by onnx, run by onnxruntime, and compared with lora_np."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    Activation,
    ActivationLayer,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    Layer,
    LoRALayer,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    __version__,
    gelu,
    gelu_exact,
    tanh,
)
from lora_np.functions.activations import ACTIVATIONS
from lora_np.io import onnx as lora_onnx
from lora_np.io._onnx_operators import OPERATORS
from lora_np.io.onnx import adapter_inputs, save_onnx, to_onnx
from tests.kinds import IN, KINDS, LAYERS, OUT, RANK, batch, bits, build, dylora, multilora, randomised, ranked_tasks
from tests.models.decoders import decoder
from tests.test_graph import models

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
DTYPES = [np.float64, np.float32]
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-6}


def run(model, **feeds):
    """Check a model, and run it with onnxruntime."""
    onnx.checker.check_model(model, full_check=True)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, feeds)
    return output


def assert_same(actual, expected, dtype):
    assert (actual.dtype, actual.shape) == (dtype, expected.shape)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def operators(model):
    return [node.op_type for node in model.graph.node]


def shapes(values):
    return {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}


# ---------------------------------------------------------------- every layer


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("adapters", ["merged", "inputs"])
@pytest.mark.parametrize("name", LAYERS)
def test_onnxruntime_computes_what_predict_computes(name, adapters, dtype):
    layer = build(name, dtype)
    model = to_onnx(layer, adapters=adapters)
    x = batch(6, layer.input_size).astype(dtype)
    assert_same(run(model, input=x), layer.predict(x), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_every_activation(activation, dtype):
    layer = ActivationLayer(5, activation, dtype=dtype)
    x = np.concatenate([8 * batch(40, 5), np.zeros((1, 5)), [[1e4, -1e4, 100.0, -100.0, 1e-6]]]).astype(dtype)
    with np.errstate(over="ignore"):
        expected = layer.predict(x)
    assert_same(run(to_onnx(layer), input=x), expected, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_non_finite_values_are_computed_alike(activation):
    layer = ActivationLayer(1, activation)
    x = np.array([[np.nan], [np.inf], [-np.inf]])
    with np.errstate(all="ignore"):
        assert_allclose(run(to_onnx(layer), input=x), layer.predict(x))


@pytest.mark.parametrize("name", ["sequential-of-adapters", "dense-softmax", "dora-on-fully-connected", "vera-on-dense"])
@pytest.mark.parametrize("leading", [(), ("batch",), ("batch", "time"), ("a", "b", "c")])
def test_leading_axes(name, leading):
    layer = build(name)
    model = to_onnx(layer, leading=leading)
    assert shapes(model.graph.input) == {"input": [*leading, layer.input_size]}
    assert shapes(model.graph.output) == {"output": [*leading, layer.output_size]}
    for sizes in [(3, 2, 1), (1, 1, 4)]:
        x = batch(*sizes[: len(leading)], layer.input_size)
        assert_same(run(model, input=x), layer.predict(x), np.float64)


def test_an_empty_batch():
    layer = build("sequential-of-adapters")
    assert run(to_onnx(layer), input=np.empty((0, layer.input_size))).shape == (0, layer.output_size)


@settings(max_examples=15)
@given(models(), st.sampled_from(["merged", "inputs"]))
def test_random_compositions(model, adapters):
    randomised(model)
    x = batch(3, model.input_size)
    expected = model.predict(x)
    scale = max(1.0, float(np.abs(expected).max()))
    assert_allclose(run(to_onnx(model, adapters=adapters), input=x), expected, rtol=1e-9, atol=1e-9 * scale)


# ---------------------------------------------------------------- the contents of the file


def test_versions_and_names():
    model = to_onnx(build("standard-on-dense"))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert (model.ir_version, model.producer_name, model.graph.name) == (10, "lora_np", "StandardLoRAAdapter")
    assert model.producer_version == __version__
    assert operators(model) == ["MatMul", "Add"]
    assert [node.name for node in model.graph.node] == ["MatMul", "Add"]
    assert [(array.name, array.doc_string) for array in model.graph.initializer] == [
        ("matrix", "computed from base.weight, lora.matrix_a, lora.matrix_b, lora.scaling"),
        ("base.bias", ""),
    ]
    assert shapes(model.graph.input) == {"input": ["batch", IN]}
    assert shapes(model.graph.output) == {"output": ["batch", OUT]}


def test_parameters_keep_their_names():
    layer = build("sequential")
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in to_onnx(layer).graph.initializer}
    parameters = layer.named_parameters()
    assert set(arrays) == {"0.weight", "0.bias", "1.weight.T", "1.bias"}
    assert_array_equal(arrays["0.weight"], parameters["0.weight"])
    assert_array_equal(arrays["1.weight.T"], parameters["1.weight"].T)


def names(model):
    """The names of operators and of their values, and of initialisers."""
    return (
        [(node.name, *node.output) for node in model.graph.node],
        [array.name for array in model.graph.initializer],
    )


def test_operators_are_named_after_their_layers():
    assert names(to_onnx(build("sequential-of-adapters"), adapters="inputs")) == (
        [
            (name, name)
            for name in (
                "0.base.MatMul", "0.base.Add", "0.lora.MatMul", "0.lora.Mul", "0.lora.MatMul_2", "0.Add", "1.Tanh",
                "2.base.MatMul", "2.base.Add", "2.tasks.second.MatMul", "2.tasks.second.Mul", "2.tasks.second.MatMul_2",
            )
        ]
        + [("2.Add", "output")],
        [
            "0.base.weight", "0.base.bias", "0.lora.matrix_a", "0.lora.scaling", "0.lora.matrix_b",
            "2.base.weight", "2.base.bias", "2.tasks.second.matrix_a", "2.tasks.second.scaling", "2.tasks.second.matrix_b",
        ],
    )  # fmt: skip


def test_merged_layers_have_one_matrix_and_one_bias():
    between = {"tanh": ActivationLayer(3, tanh), "dense": randomised(DenseLayer(3, 5, tanh, bias=False))}
    model = Sequential({"first": build("standard-on-dense")} | between | {"last": build("dora-on-fully-connected")})
    operators, arrays = names(to_onnx(model))
    assert [name for name, _ in operators] == [
        "first.MatMul", "first.Add", "tanh.Tanh", "dense.MatMul", "dense.Tanh", "last.MatMul", "last.Add",
    ]  # fmt: skip
    assert arrays == ["first.matrix", "first.base.bias", "dense.weight", "last.matrix", "last.base.bias"]


def test_decomposed_activations_belong_to_their_layer():
    operators, arrays = names(to_onnx(Sequential([DenseLayer(3, 3), ActivationLayer(3, gelu)])))
    assert {name.split(".")[0] for name, _ in operators[1:]} == {"1"}
    assert arrays[:2] == ["0.weight", "constant"]


def test_a_constant_of_several_arrays_that_is_not_a_matrix_or_a_bias():
    model = to_onnx(Two())
    assert names(model)[1] == ["constant", "bias"]
    assert [array.doc_string for array in model.graph.initializer] == ["computed from bias, output", "computed from output"]
    x = batch(2, 3)
    assert_same(run(model, input=x), Two().predict(x), np.float64)


def test_activations_with_an_onnx_operator_become_that_operator():
    layers = [ActivationLayer(3, activation) for activation in ACTIVATIONS]
    single = {layer.activation.name: operators(to_onnx(layer)) for layer in layers}
    assert {name: found for name, found in single.items() if len(found) == 1} == {
        "identity": ["Identity"],
        "relu": ["Relu"],
        "sigmoid": ["Sigmoid"],
        "tanh": ["Tanh"],
        "softmax": ["Softmax"],
    }


@pytest.mark.parametrize("activation", [gelu, gelu_exact], ids=lambda activation: activation.name)
def test_gelu_in_float32_is_one_operator_since_opset_20(activation):
    layer = ActivationLayer(3, activation, dtype=np.float32)
    (node,) = to_onnx(layer, opset=20).graph.node
    assert node.op_type == "Gelu"
    assert node.attribute[0].s == {"gelu": b"tanh", "gelu_exact": b"none"}[activation.name]
    assert "Gelu" not in operators(to_onnx(layer, opset=19))
    x = 4 * batch(50, 3).astype(np.float32)
    for opset in (18, 19, 20, 21):
        assert_same(run(to_onnx(layer, opset=opset), input=x), layer.predict(x), np.float32)


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (19, 9), (20, 9), (21, 10)])
def test_older_opsets(opset, ir_version, tmp_path):
    layer = build("sequential-of-adapters")
    save_onnx(layer, tmp_path / "model.onnx", opset=opset)
    model = onnx.load(tmp_path / "model.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir_version)
    x = batch(2, layer.input_size)
    assert_same(run(model, input=x), layer.predict(x), np.float64)


@pytest.mark.parametrize("opset", [17, 22, 0, 21.0])
def test_opsets_that_cannot_be_written(opset):
    with pytest.raises(ArgumentError, match=r"opset must be (in 18..21|an integer), got "):
        to_onnx(build("dense"), opset=opset)


def properties(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_metadata():
    model = build("sequential-of-adapters")
    model.layers[0].current_deployment_rank = 1
    expected = {
        "0.kind": "DyLoRAAdapter",
        "0.rank": "1",
        "0.ranks": "[1, 2]",
        "0.lora.rank": "2",
        "0.lora.alpha": "2.0",
        "2.kind": "MultiLoRAAdapter",
        "2.task": "second",
        "2.tasks.second.rank": "2",
        "2.tasks.second.alpha": "2.0",
    }
    assert properties(to_onnx(model)) == {"adapters": "merged"} | expected
    assert properties(to_onnx(model, adapters="required")) == {"adapters": "required"} | expected
    del expected["2.task"]
    mixed = properties(to_onnx(model, adapters="mixed"))
    assert mixed.items() >= (expected | {"adapters": "mixed", "tasks": '["first", "second", "third"]'}).items()
    assert {name for name in mixed if name.startswith("2.tasks") and name.endswith("rank")} == {
        "2.tasks.first.rank", "2.tasks.second.rank", "2.tasks.third.rank",
    }  # fmt: skip


def test_metadata_of_tasks_with_ranks():
    model = ranked_tasks(DenseLayer(4, 3), 2, rng=0)
    tasks = list(model.task_ranks)
    assert len(tasks) > 1
    deployed = {
        f"tasks.{name}.deployed.{entry}": value
        for name, ranks in model.task_ranks.items()
        for entry, value in [("rank", f"{ranks.current_deployment_rank}"), ("ranks", json.dumps(ranks.active_ranks))]
    }
    for adapters, shown in (("mixed", tasks), ("merged", [model.current_task])):
        found = {name: value for name, value in properties(to_onnx(model, adapters=adapters)).items() if "deployed" in name}
        assert found == {name: value for name, value in deployed.items() if name.split(".")[1] in shown}


def test_metadata_of_a_single_adapter():
    assert properties(to_onnx(build("standard-on-dense"))) == {
        "adapters": "merged",
        "kind": "StandardLoRAAdapter",
        "lora.rank": "2",
        "lora.alpha": "3.0",
    }
    assert properties(to_onnx(build("dense"))) == {"adapters": "merged"}


def test_onnxruntime_reads_the_metadata():
    session = runtime.InferenceSession(
        to_onnx(build("standard-on-dense")).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.get_modelmeta()
    assert (found.producer_name, found.custom_metadata_map["kind"]) == ("lora_np", "StandardLoRAAdapter")


def test_two_files_of_the_same_layer_are_identical(tmp_path):
    layer = build("sequential-of-adapters")
    save_onnx(layer, tmp_path / "one.onnx")
    save_onnx(layer, tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    x = batch(2, layer.input_size)
    assert_same(run(onnx.load(tmp_path / "one.onnx"), input=x), layer.predict(x), np.float64)


# ---------------------------------------------------------------- adapters as inputs


def other_rank(kind, rank, base):
    """An adapter of the given kind and rank on the same base, with different values."""
    twin = base.clone()
    adapter = randomised(KINDS[kind](twin, rank, 2.5, rng=0), seed=rank + 10)
    for name, array in base.named_parameters().items():
        twin.set_parameter(name, array)
    return adapter


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("adapters", ["inputs", "required"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_file_runs_adapters_of_any_rank(kind, adapters, dtype):
    base = randomised(DenseLayer(IN, OUT, dtype=dtype))
    model = to_onnx(other_rank(kind, RANK, base), adapters=adapters)
    x = batch(4, IN).astype(dtype)
    for rank in (1, 2, 3):
        adapter = other_rank(kind, rank, base)
        feeds = adapter_inputs(adapter)
        assert {name for name in shapes(model.graph.input) if name != "input"} == set(feeds)
        assert_same(run(model, input=x, **feeds), adapter.predict(x), dtype)


def test_inputs_have_free_axes_and_defaults():
    model = to_onnx(build("sequential-of-adapters"), adapters="inputs")
    assert shapes(model.graph.input) == {
        "input": ["batch", IN],
        "0.lora.scaling": [],
        "0.lora.matrix_a": [IN, "0.lora.rank"],
        "0.lora.matrix_b": ["0.lora.rank", 4],
        "2.tasks.second.scaling": [],
        "2.tasks.second.matrix_a": [4, "2.tasks.second.rank"],
        "2.tasks.second.matrix_b": ["2.tasks.second.rank", OUT],
    }
    assert set(shapes(model.graph.input)) - {array.name for array in model.graph.initializer} == {"input"}


def test_required_inputs_have_no_defaults():
    layer = build("sequential-of-adapters")
    with_defaults, without = (to_onnx(layer, adapters=adapters).graph for adapters in ("inputs", "required"))
    assert shapes(without.input) == shapes(with_defaults.input)
    assert {array.name for array in without.initializer} == {"0.base.weight", "0.base.bias", "2.base.weight", "2.base.bias"}


def test_a_branch_alone_has_inputs_as_well():
    model = to_onnx(build("lora"), adapters="inputs")
    assert shapes(model.graph.input) == {
        "input": ["batch", IN],
        "scaling": [],
        "matrix_a": [IN, "rank"],
        "matrix_b": ["rank", OUT],
    }


def test_the_magnitude_of_dora_is_an_input():
    assert shapes(to_onnx(build("dora-on-dense"), adapters="inputs").graph.input)["magnitude"] == [OUT]


def test_a_scaling_of_one_is_still_an_input():
    adapter = randomised(StandardLoRAAdapter(DenseLayer(IN, OUT), 2, rng=0))
    assert adapter.lora_layer.scaling == 1
    assert "lora.scaling" in shapes(to_onnx(adapter, adapters="inputs").graph.input)


def test_dylora_is_exported_at_its_deployment_rank():
    adapter = dylora(DenseLayer(IN, OUT), 3, rng=0)
    adapter.current_deployment_rank = 2
    assert {name: value.shape for name, value in adapter_inputs(randomised(adapter)).items()} == {
        "lora.scaling": (),
        "lora.matrix_a": (IN, 2),
        "lora.matrix_b": (2, OUT),
    }


def test_tasks_of_any_name():
    adapter = multilora(DenseLayer(IN, OUT), 2, rng=0)
    for name in ("v1", "input", "ünï, (code)"):
        adapter.add_task(name, 1)
        adapter.current_task = name
        randomised(adapter)
        x = batch(2, IN)
        for adapters in ("merged", "inputs"):
            assert_same(run(to_onnx(adapter, adapters=adapters), input=x), adapter.predict(x), np.float64)


# ---------------------------------------------------------------- user-defined layers


class Own(Layer):
    """A user-defined layer whose `apply` is a given function."""

    def __init__(self, compute, output_size=3, dtype=np.float64):
        super().__init__(3, output_size, dtype)
        self.compute = compute

    def apply(self, x, run):
        return self.compute(x), ()

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        raise NotImplementedError

    def estimate_flops(self):
        return 0


SQUARE = batch(3, 3, seed=3)

OWN = {
    "MatMul Add Sub Mul Div Neg Abs": lambda x: abs(-x) / (1 - x * x) + x @ SQUARE.astype(x.dtype),
    "Pow Sqrt Log Exp": lambda x: np.sqrt(np.exp(x)) + np.log(1 + x**2),
    "Max Min": lambda x: np.maximum(x, 0.5) - np.minimum(x, 0),
    "Where Less LessOrEqual Greater GreaterOrEqual Equal": lambda x: np.where(
        x > 1, 1, np.where(x >= 0.5, 2, np.where(x < -1, 3, np.where(x <= -0.5, 4, np.where(x == 0, 5, x))))
    ),
    "ReduceSum ReduceMax ReduceMin ReduceMean": lambda x: (
        x.sum(axis=-1, keepdims=True) * x.max(axis=-1, keepdims=True)
        - x.min(axis=(-1,), keepdims=True)
        + x.mean(axis=-1, keepdims=True) * x
    ),
    "reduced away": lambda x: x + 0 * x[..., :1] + np.sum(SQUARE.astype(x.dtype), axis=0),
    "Slice": lambda x: x[..., ::-1] + x[:, :] + x[..., 1:2] + x[..., -1:] + x[:, ::-2][:, :1] + x[:, ..., ::-1],
    "integers": lambda x: x * np.array([1, 2, 3], dtype=np.int8) + True,
    "booleans": lambda x: x * (x > 0) + (x[..., :1] == (x > 0)),
    "expm1 log1p": lambda x: np.expm1(x) + np.log1p(abs(x)),
    "a constant twice": lambda x: np.where(x * 0.5 > 0.5, x * 0.5, 0.5),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", OWN)
def test_operators(name, dtype):
    layer = Own(OWN[name], dtype=dtype)
    x = np.concatenate([batch(8, 3), np.zeros((1, 3))]).astype(dtype)
    model = to_onnx(layer)
    assert_same(run(model, input=x), layer.predict(x), dtype)
    assert {word for word in name.split() if word in OPERATORS.values()} <= set(operators(model))


def test_slices_with_other_leading_axes():
    layer, x = Own(lambda x: x[..., ::-1] * x[..., 1:2]), batch(2, 4, 3)
    assert_same(run(to_onnx(layer, leading=("batch", "time")), input=x), layer.predict(x), np.float64)
    assert_same(run(to_onnx(layer, leading=()), input=x[0, 0]), layer.predict(x[0, 0]), np.float64)


class Named(Own):
    """A layer whose arrays have names that the file uses for other values."""

    parameter_names = ("output", "v1")

    def __init__(self):
        super().__init__(None)
        self.output, self.v1 = SQUARE, batch(3, 3, seed=4)

    def apply(self, x, run):
        return np.tanh(x @ self.output) @ self.v1, ()


class Two(Own):
    """A layer that computes with functions of its arrays, of which one has a name that the file uses otherwise."""

    parameter_names = ("output", "bias")

    def __init__(self):
        super().__init__(None)
        self.output, self.bias = batch(3, seed=4), batch(3, seed=5)

    def apply(self, x, run):
        return x * (self.output * self.bias) + self.output * 2, ()


class Mixed(Own):
    """A float32 layer that computes in both precisions with the same array."""

    parameter_names = ("weight",)

    def __init__(self):
        super().__init__(None, dtype=np.float32)
        self.weight = batch(3, seed=4).astype(np.float32)

    def apply(self, x, run):
        return x * self.weight + (x * np.full(3, 1 / 3) + self.weight), ()


def test_an_array_of_two_precisions_is_stored_twice():
    x = batch(2, 3).astype(np.float32)
    assert_same(run(to_onnx(Mixed()), input=x), Mixed().predict(x), np.float64)


def test_constants_and_axes_are_stored_once():
    layer = Own(lambda x: x * (0.5 + x.sum(axis=-1, keepdims=True)) + x.max(axis=-1, keepdims=True) / (x + 0.5))
    assert {array.name for array in to_onnx(layer).graph.initializer} == {"constant", "axes"}


def test_names_that_are_already_taken():
    x = batch(2, 3)
    assert_same(run(to_onnx(Named()), input=x), Named().predict(x), np.float64)


def test_every_operator_is_tested():
    tested = {word for name in OWN for word in name.split()} | {"Relu", "Sigmoid", "Softmax", "Tanh"}
    assert set(OPERATORS.values()) - {"Transpose"} <= tested


def test_inputs_can_be_transposed():
    model = to_onnx(Transposing(), adapters="inputs")
    assert "Transpose" in operators(model)
    x = batch(2, 3)
    assert_same(run(model, input=x), Transposing().predict(x), np.float64)


class Transposing(LoRALayer):
    """A layer whose arrays become inputs and are used in unusual ways."""

    def __init__(self):
        super().__init__(3, 3, 2, 1.5, rng=0)
        randomised(self)

    def apply(self, x, run, *, rank=None, trained_from=0):
        W = self.matrix_b.T @ self.matrix_a.T
        return x @ W * W.sum() + W.max(axis=1), ()


class Cutting(Transposing):
    """A layer that uses two different slices of A, and the same slice of B twice."""

    def apply(self, x, run, *, rank=None, trained_from=0):
        A, B = self.matrix_a, self.matrix_b
        return (x @ A[:, :1]) * B[:1].sum(axis=0) + (x @ A[..., 1:]) * B[:1], ()


def test_an_array_is_sliced_if_all_uses_are_the_same_slice():
    layer, x = Cutting(), batch(2, 3)
    model = to_onnx(layer, adapters="inputs")
    assert_same(run(model, input=x), layer.predict(x), np.float64)
    arrays = {array.name: tuple(array.dims) for array in model.graph.initializer}
    assert (arrays["matrix_a"], arrays["matrix_b"]) == ((3, 2), (1, 3))


REJECTED = {
    "no operator": (lambda x: np.sin(x), "sin has no ONNX operator"),
    "option": (
        lambda x: np.linalg.norm(x, axis=-1, keepdims=True) * x,
        "norm has no ONNX operator and cannot be decomposed: ",
    ),
    "positional axis": (lambda x: x + np.sum(x, -1, keepdims=True), "sum with arguments other than axis and keepdims"),
    "sum with a dtype": (
        lambda x: x + x.sum(axis=-1, keepdims=True, dtype=np.float64),
        "sum with arguments other than axis and keepdims",
    ),
    "integer index": (lambda x: x + x[..., 0, None], "an index that is not made of slices"),
    "options of a function": (lambda x: np.transpose(x, axes=(0, 1)), "transpose with the arguments axes"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_an_unsupported_function_is_rejected_with_a_reason(name, tmp_path):
    compute, reason = REJECTED[name]
    inner = Own(compute)
    model = Sequential({"first": DenseLayer(4, 3), "own": StandardLoRAAdapter(inner, 1, rng=0)})
    with pytest.raises(NotSupportedError) as caught:
        save_onnx(model, tmp_path / "model.onnx")
    assert str(caught.value).startswith(f"{inner.layer_name} (Own) cannot be written as ONNX: {reason}")
    assert "recursion" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_user_defined_activation_is_decomposed():
    cubic = Activation("cubic", lambda z: z - z**3 / 3, None)
    layer, x = randomised(DenseLayer(4, 3, cubic)), batch(5, 4)
    assert_same(run(to_onnx(layer), input=x), layer.predict(x), np.float64)


def test_an_activation_that_cannot_be_recorded_is_rejected():
    strange = Activation("strange", lambda z: np.asarray(z), None)
    layer = Sequential([DenseLayer(4, 3, tanh), DenseLayer(3, 2, strange)])
    with pytest.raises(NotSupportedError, match="strange has no ONNX operator and cannot be decomposed") as caught:
        to_onnx(layer)
    assert str(caught.value).startswith(layer.layers[1].layer_name)


def test_a_layer_without_a_graph_is_named():
    inner = Own(np.asarray)
    with pytest.raises(NotSupportedError, match=f"^{inner.layer_name} \\(Own\\) has no computation graph"):
        to_onnx(Sequential([inner]))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layers_of_transformers_that_are_not_exported(name):
    reasons = {}
    for layer in decoder(name).walk().values():
        try:
            to_onnx(layer)
        except NotSupportedError as error:
            reasons[type(layer).__name__] = str(error)
        else:
            reasons[type(layer).__name__] = ""
    no = {"CausalLM", "Embedding", *{"llama": ["LlamaModel", "LlamaBlock"], "gpt2": ["GPT2Model", "GPT2Block"]}[name]}
    yes = {"llama": {"RMSNorm", "FullyConnectedLayer"}, "gpt2": {"LayerNorm", "DenseLayer"}}[name]
    assert {kind for kind, reason in reasons.items() if not reason} == yes
    assert {kind for kind, reason in reasons.items() if reason} == no
    assert "(Embedding) has no computation graph: it looks up rows by index" in reasons["CausalLM"]


# ---------------------------------------------------------------- arguments and files


def test_adapters_must_be_one_of_four_values():
    with pytest.raises(ArgumentError, match="adapters must be one of 'merged', 'inputs', 'required', 'mixed', got 'apart'"):
        to_onnx(build("dense"), adapters="apart")


@pytest.mark.parametrize("leading", ["batch", ("a", "a"), (1,), ("",)])
def test_leading_axes_must_have_distinct_names(leading):
    with pytest.raises(ArgumentError, match="leading must be a sequence of distinct axis names, got "):
        to_onnx(build("dense"), leading=leading)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NotSupportedError, match=r'requires the package onnx: pip install "lora_np\[onnx\]"'):
        to_onnx(build("dense"))


def test_a_file_that_is_too_large_is_rejected(monkeypatch, tmp_path):
    assert lora_onnx.LARGEST == 2_147_483_647
    layer = build("dense")
    size = to_onnx(layer).ByteSize()
    monkeypatch.setattr(lora_onnx, "LARGEST", size - 1)
    message = f"an ONNX file must have at most {size - 1} bytes, but {layer.layer_name} needs {size}"
    with pytest.raises(NotSupportedError, match=message):
        save_onnx(layer, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(lora_onnx, "LARGEST", size)
    save_onnx(layer, tmp_path / "model.onnx")


def test_writing_leaves_the_layer_unchanged(tmp_path):
    layer = DyLoRAAdapter(DenseLayer(4, 3), 2, [1, 2], rng=0)
    before = bits(layer.named_parameters(frozen=True))
    save_onnx(layer, tmp_path / "model.onnx", adapters="inputs")
    assert bits(layer.named_parameters(frozen=True)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_script_onnx_table():
    result = subprocess.run(
        [sys.executable, "scripts/onnx_table.py", "dense-tanh", "dora-on-dense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines() if "-on-" in line] == ["dora-on-dense"]
