"""Affine layers in both layouts of the weight."""

import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    Activation,
    ActivationLayer,
    ArgumentError,
    ArgumentOutOfRangeError,
    DenseLayer,
    FullyConnectedLayer,
    Regularization,
    Sequential,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from lora_np.functions.activations import ACTIVATIONS
from lora_np.functions.initializers import he_normal, zeros
from lora_np.testing import check_gradients
from tests.kinds import BASES, batch, bits, randomised, snapshot

X = np.array([[1, 0, -1], [2, 1, 0]])
G = np.array([[1, 1], [1, 2]])
W = np.array([[1, 2], [3, 4], [5, 6]])
IDENTITY = {"y": [[-3, -5], [6, 7]], "dW": [[3, 5], [1, 2], [-1, -1]], "db": [2, 3], "dx": [[3, 7, 11], [5, 11, 17]]}
RELU = {"y": [[0, 0], [6, 7]], "dW": [[2, 4], [1, 2], [0, 0]], "db": [1, 2], "dx": [[0, 0, 0], [5, 11, 17]]}


@pytest.fixture(params=BASES)
def base_class(request):
    return BASES[request.param]


def worked(base_class, activation):
    layer = base_class(3, 2, activation)
    layer.set_parameter("weight", layer.in_layout(W))
    layer.set_parameter("bias", [1, -1])
    return layer


@pytest.mark.parametrize(("activation", "expected"), [(None, IDENTITY), (relu, RELU)], ids=["identity", "relu"])
def test_an_example_worked_by_hand(base_class, activation, expected):
    layer = worked(base_class, activation)
    assert_array_equal(layer.forward(X), expected["y"])
    assert_array_equal(layer.backward(G), expected["dx"])
    assert_array_equal(layer.in_layout(layer.gradients["weight"]), expected["dW"])
    assert_array_equal(layer.gradients["bias"], expected["db"])
    layer.update_parameters(0.5)
    assert_array_equal(layer.matrix, W - 0.5 * np.array(expected["dW"]))
    assert_array_equal(layer.bias, np.array([1, -1]) - 0.5 * np.array(expected["db"]))


def test_the_layouts_differ_in_shape_and_in_the_flat_vector():
    dense, fully_connected = worked(DenseLayer, None), worked(FullyConnectedLayer, None)
    assert_array_equal(dense.get_parameters(), [1, 2, 3, 4, 5, 6, 1, -1])
    assert_array_equal(fully_connected.get_parameters(), [1, 3, 5, 2, 4, 6, 1, -1])
    assert_array_equal(dense.get_weights(), W)
    assert_array_equal(fully_connected.get_weights(), W.T)
    assert_array_equal(fully_connected.get_biases(), [1, -1])


def test_returned_arrays_are_copies(base_class):
    layer = worked(base_class, None)
    layer.get_weights()[...] = 0
    layer.get_biases()[...] = 0
    assert_array_equal(layer.matrix, W)
    assert_array_equal(layer.bias, [1, -1])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_trap_8_gradients_with_every_activation(base_class, activation):
    layer = randomised(base_class(4, 3, activation))
    check_gradients(layer, batch(5, 4), method="complex", rtol=1e-9 if activation.name == "gelu_exact" else 1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 6)])
def test_trap_1_gradients_on_non_square_shapes(base_class, shape):
    alone = shape[1] == 1  # the softmax of one number is 1, whatever the number
    check_gradients(
        randomised(base_class(*shape, softmax)), batch(3, shape[0]), method="complex", allow_vacuous=alone, rtol=1e-10
    )


@pytest.mark.parametrize(
    "penalty", [Regularization(l1=0.5), Regularization(l2=0.5), Regularization(0.5, 0.25)], ids=["l1", "l2", "both"]
)
def test_the_penalty_changes_only_the_gradient_of_the_weight(base_class, penalty):
    plain, penalised = randomised(base_class(3, 2)), randomised(base_class(3, 2, regularization=penalty))
    for layer in (plain, penalised):
        layer.forward(X)
        layer.backward(G)
    expected = plain.gradients["weight"] + penalised.regularization.gradient(penalised.weight)
    assert_array_equal(penalised.gradients["weight"], expected)
    assert_array_equal(penalised.gradients["bias"], plain.gradients["bias"])
    assert penalised.compute_auxiliary_loss() == penalty.penalty(penalised.weight) > 0
    assert plain.compute_auxiliary_loss() == 0
    check_gradients(penalised, X, method="complex", rtol=1e-10)


@pytest.mark.parametrize("number", [0.5, np.float64(0.5)], ids=["python", "numpy"])
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_a_penalty_keeps_float32(name, number):
    layer = randomised(DenseLayer(3, 2, regularization=Regularization(**{name: number}), dtype=np.float32))
    layer.forward(X)
    layer.backward(G)
    assert layer.gradients["weight"].dtype == np.float32


def straight_through_vjp(dy, z):
    return dy * (np.abs(z.real) < 1)


@pytest.mark.parametrize("function", [lambda z: z, lambda z: z[...]], ids=["itself", "view"])
def test_an_activation_may_return_its_argument(base_class, function):
    """The straight-through estimator: its output is z itself, and its vjp needs z."""
    layer = randomised(base_class(3, 2, Activation("straight_through", function, straight_through_vjp)))
    layer.forward(X)
    layer.backward(G)
    expected = bits(layer.gradients)
    layer.forward(X)[...] = 0
    layer.backward(G)
    assert bits(layer.gradients) == expected


# ---------------------------------------------------------------- construction


def test_the_initial_values(base_class):
    layer = base_class(40, 60, rng=0)
    limit = np.sqrt(6 / 100)
    assert 0.95 * limit < np.abs(layer.weight).max() <= limit
    assert not layer.bias.any()
    assert layer.activation.name == "identity"


def test_a_seed_gives_the_same_matrix_in_both_layouts():
    first, second = DenseLayer(4, 3, rng=7), FullyConnectedLayer(4, 3, rng=7)
    assert_array_equal(first.matrix, second.matrix)
    assert (DenseLayer(4, 3, rng=8).weight != first.weight).all()


def test_weights_are_contiguous_whatever_the_layout(base_class):
    assert base_class(4, 3).weight.flags["C_CONTIGUOUS"]


def test_a_custom_initializer(base_class):
    assert not base_class(4, 3, initializer=zeros).weight.any()
    layer = base_class(400, 300, initializer=he_normal, rng=0)
    assert layer.weight.std() == pytest.approx(np.sqrt(2 / 400), rel=0.02)


def test_an_initializer_sees_inputs_and_outputs_in_this_order(base_class):
    shapes = []

    def initializer(shape, dtype, rng):
        shapes.append(shape)
        return np.arange(12.0).reshape(shape)

    layer = base_class(4, 3, initializer=initializer, dtype=np.float32)
    assert shapes == [(4, 3)]
    assert_array_equal(layer.matrix, np.arange(12.0).reshape(4, 3))
    assert layer.weight.dtype == np.float32


def test_the_array_of_an_initializer_is_copied(base_class):
    mine = np.ones((4, 3))
    layer = base_class(4, 3, initializer=lambda shape, dtype, rng: mine)
    mine[...] = 5
    assert_array_equal(layer.matrix, np.ones((4, 3)))


BAD_SIZES = [0, -3, True, 2.0, "4", None, 2**62, 10**400]


@pytest.mark.parametrize("size", BAD_SIZES, ids=lambda size: repr(size)[:9])
@pytest.mark.parametrize("name", ["input_size", "output_size"])
def test_a_bad_size_is_refused(base_class, name, size):
    with pytest.raises(ArgumentError, match=rf"{name}.*{size}"):
        base_class(**({"input_size": 4, "output_size": 3} | {name: size}))


def test_sizes_whose_product_is_too_large_are_refused(base_class):
    with pytest.raises(ArgumentOutOfRangeError, match="too large"):
        base_class(2**31, 2**31)


BAD_OPTIONS = {
    "activation": ["relu", np.tanh, relu.function, 0],
    "regularization": ["l2", 0.5, (0.1, 0.2)],
    "dtype": [np.float16, int, complex, "text", object],
    "rng": ["seed", -1, 1.5],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_OPTIONS.items() for value in values], ids=repr
)
def test_a_bad_option_is_refused(base_class, name, value):
    with pytest.raises(ArgumentError, match=rf"^{name} must"):
        base_class(4, 3, **{name: value})


@pytest.mark.parametrize("result", [np.ones((3, 4)), 1.0, None, "weights", np.ones((4, 3), complex)], ids=repr)
def test_a_bad_result_of_an_initializer_is_refused(base_class, result):
    with pytest.raises(ArgumentError, match="initializer's result"):
        base_class(4, 3, initializer=lambda shape, dtype, rng: result)


# ---------------------------------------------------------------- derived layers


def test_with_matrix_replaces_the_weight(base_class):
    layer = worked(base_class, tanh)
    before = snapshot(layer)
    other = layer.with_matrix(2 * W)
    assert snapshot(layer) == before
    assert_array_equal(other.matrix, 2 * W)
    assert_array_equal(other.bias, layer.bias)
    assert other.activation == tanh
    assert type(other) is base_class


def test_splitting_off_the_activation(base_class):
    layer = randomised(base_class(3, 2, tanh, regularization=Regularization(l2=0.5)))
    linear, activation = layer.split_activation()
    assert linear.weight is layer.weight
    assert linear.bias is layer.bias
    assert linear.activation.name == "identity"
    assert linear.regularization == layer.regularization
    assert isinstance(activation, ActivationLayer)
    assert_array_equal(Sequential([linear, activation]).predict(X), layer.predict(X))


def test_splitting_keeps_the_dtype(base_class):
    linear, activation = base_class(3, 2, tanh, dtype=np.float32).split_activation()
    assert linear.dtype == activation.dtype == np.float32


# ---------------------------------------------------------------- description


def test_flops_by_hand(base_class):
    # 3 products and sums for each of 2 outputs, 2 biases; relu adds one for each output, sigmoid four
    assert base_class(3, 2).estimate_flops() == 14
    assert base_class(3, 2, relu).estimate_flops() == 16
    assert base_class(3, 2, sigmoid).estimate_flops() == 22


@pytest.mark.parametrize(("dtype", "width"), [(np.float64, 8), (np.float32, 4)])
def test_memory_by_hand(base_class, dtype, width):
    # input 3 and output 2; with an activation the pre-activation, 2, too
    assert base_class(3, 2, dtype=dtype).estimate_activation_memory() == width * 5
    assert base_class(3, 2, relu, dtype=dtype).estimate_activation_memory() == width * 7


def test_repr_shows_activation_and_penalty(base_class):
    assert repr(base_class(3, 2)) == f"{base_class.__name__}(3 -> 2, 8 parameters)"
    text = repr(base_class(3, 2, tanh, regularization=Regularization(0.5, 0.25)))
    assert "activation=tanh" in text
    assert "regularization=0.5 l1 + 0.25 l2" in text


def test_the_activation_is_named(base_class):
    layer = base_class(3, 2, tanh)
    assert layer.get_activation_types() == ("tanh",)
    assert layer.get_diagnostics()["layer.activation"] == "tanh"


def test_both_layouts_compute_the_same():
    first = randomised(DenseLayer(4, 3, tanh))
    second = FullyConnectedLayer(4, 3, tanh)
    second.load_weights({"weight": first.weight.T, "bias": first.bias}, strict=True)
    x, dy = batch(5, 4), batch(5, 3)
    assert_allclose(second.forward(x), first.forward(x), rtol=1e-13)
    assert_allclose(second.backward(dy), first.backward(dy), rtol=1e-12)
    assert_allclose(second.gradients["weight"], first.gradients["weight"].T, rtol=1e-12)


def test_a_new_layer_needs_hardly_more_memory_than_its_weight():
    tracemalloc.start()
    try:
        layer = DenseLayer(1024, 1024, relu, dtype=np.float32, rng=0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        linear, _ = layer.split_activation()
        held, split_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert linear.weight is layer.weight
    assert peak < 1.5 * layer.weight.nbytes
    assert split_peak < held + 0.1 * layer.weight.nbytes


# ---------------------------------------------------------------- without a bias


@pytest.mark.parametrize("given", [True, False])
def test_a_layer_without_a_bias_has_one_array(base_class, given):
    layer = randomised(base_class(4, 3, bias=False))
    layer = base_class.from_arrays(layer.weight) if given else layer
    assert layer.get_parameter_names() == ("weight",)
    assert (layer.bias, layer.get_biases(), layer.parameter_count) == (None, None, 12)
    x = batch(5, 4)
    assert_allclose(layer.forward(x), x @ layer.matrix, rtol=1e-14)
    layer.backward(batch(5, 3))
    assert list(layer.gradients) == ["weight"]
    check_gradients(layer, x)
