"""Embedding: selected rows, sums of gradients by row, refused inputs, and the contract of every layer for integers."""

import copy
import io
import pickle

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    SGD,
    ArgumentError,
    ArgumentNullError,
    ArgumentOutOfRangeError,
    DenseLayer,
    Embedding,
    InvalidOperationError,
    MeanSquaredError,
    NotSupportedError,
    fit,
    load_layer,
    save_layer,
)
from lora_np.functions.initializers import zeros
from lora_np.run import Run
from tests.kinds import batch, bits, randomised, snapshot
from tests.strategies import seeds

WORDS, SIZE = 7, 3

integer_inputs = hnp.arrays(
    st.sampled_from([np.int64, np.int32, np.int8, np.uint8, np.uint64]),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    elements=st.integers(0, WORDS - 1),
)
"""Indices of any integer dtype in none to three axes, mostly with repetitions."""


@pytest.fixture
def layer():
    return randomised(Embedding(WORDS, SIZE))


def one_hot(x):
    return np.eye(WORDS)[x.astype(int)]


# ---------------------------------------------------------------- values and gradients


def test_an_example_worked_by_hand():
    layer = Embedding(4, 2)
    layer.set_parameters([0, 1, 10, 11, 20, 21, 30, 31])
    assert_array_equal(layer.forward([[3, 1, 3]]), [[[30, 31], [10, 11], [30, 31]]])
    assert layer.backward([[[1, 2], [3, 4], [5, 6]]]) is None
    assert_array_equal(layer.gradients["weight"], [[0, 0], [3, 4], [0, 0], [6, 8]])
    layer.update_parameters(0.5)
    assert_array_equal(layer.weight, [[0, 1], [8.5, 9], [20, 21], [27, 27]])


@given(x=integer_inputs, seed=seeds)
def test_it_is_the_dense_layer_of_one_hot_rows(x, seed):
    layer, dense = randomised(Embedding(WORDS, SIZE), seed), DenseLayer(WORDS, SIZE)
    dense.weight[...] = layer.weight
    assert_array_equal(layer.forward(x), dense.forward(one_hot(x)))
    dy = batch(*x.shape, SIZE, seed=seed)
    assert layer.backward(dy) is None
    dense.backward(dy)
    assert_allclose(layer.gradients["weight"], dense.gradients["weight"], rtol=1e-12, atol=1e-13)


@given(x=integer_inputs, seed=seeds)
def test_the_gradient_is_the_complex_step_derivative(x, seed):
    layer, dy, direction = randomised(Embedding(WORDS, SIZE), seed), batch(*x.shape, SIZE), batch(WORDS, SIZE, seed=seed)
    x = layer.check_input(x)
    gradients = layer.vjp(dy, layer.apply(x, Run())[1])[1]
    layer.weight = layer.weight + 1e-30j * direction
    derivative = (dy * layer.apply(x, Run())[0]).sum().imag / 1e-30
    assert_allclose((gradients["weight"] * direction).sum(), derivative, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_a_batch_without_rows(layer, shape):
    assert layer.forward(np.empty(shape, int)).shape == (*shape, SIZE)
    assert layer.backward(np.empty((*shape, SIZE))) is None
    assert_array_equal(layer.gradients["weight"], np.zeros((WORDS, SIZE)))


def test_a_single_index_needs_no_axis(layer):
    assert_array_equal(layer.forward(3), layer.weight[3])
    layer.backward([1, 2, 3])
    assert_array_equal(layer.gradients["weight"][3], [1, 2, 3])
    assert not layer.gradients["weight"][[0, 1, 2, 4, 5, 6]].any()


def test_a_table_is_fitted_to_vectors():
    layer, targets = Embedding(3, 2, rng=0), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    x = np.array([[0, 1], [2, 0], [1, 2], [0, 2]])
    fit(layer, (x, targets[x]), MeanSquaredError(), SGD(0.5), epochs=60, batch_size=2, rng=0)
    assert_allclose(layer.weight, targets, atol=1e-3)
    with pytest.raises(ArgumentError, match=r"^targets must"):
        fit(layer, (x, targets[x][:, 0]), MeanSquaredError(), SGD(0.5), epochs=1, batch_size=2)


def test_a_frozen_table_has_no_gradient(layer):
    assert layer.vjp(batch(2, SIZE), layer.apply(np.array([1, 2]), Run())[1], parameters=False) == (None, {})


# ---------------------------------------------------------------- inputs

REFUSED = {
    "float": (1.0, "be an array of integers, got dtype float64"),
    "floats": (np.ones((2, 3)), "be an array of integers, got dtype float64"),
    "an empty list": ([], "be an array of integers, got dtype float64"),
    "bool": ([True, False], "be an array of integers, got dtype bool"),
    "complex": ([1j], "be an array of integers, got dtype complex128"),
    "string": ("word", "be an array of integers, got dtype <U4"),
    "objects": ([object()], "be an array of integers, got dtype object"),
    "dates": (np.zeros(2, "datetime64[s]"), r"be an array of integers, got dtype datetime64\[s\]"),
    "ragged": ([[1, 2], [1]], "be an array of integers: .*inhomogeneous"),
}

OUTSIDE = {
    "the size": ([0, WORDS], "7"),
    "negative": ([[1], [-1]], "-1"),
    "huge": (np.array([1, 2**63], np.uint64), "9223372036854775808"),
    "the first of several": ([-5, 9, -1], "-5"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("method", ["forward", "predict"])
def test_values_other_than_integers_are_refused(layer, method, value, message):
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=f"^input must {message}"):
        getattr(layer, method)(value)
    assert snapshot(layer) == before


@pytest.mark.parametrize(("value", "shown"), OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("method", ["forward", "predict"])
def test_integers_out_of_range_are_refused(layer, method, value, shown):
    with pytest.raises(ArgumentOutOfRangeError, match=f"^input must contain integers from 0 to 6, got {shown}$"):
        getattr(layer, method)(value)


def test_none_is_refused(layer):
    with pytest.raises(ArgumentNullError, match=r"^input must not be None"):
        layer.predict(None)


def test_the_name_of_the_argument_is_in_the_message(layer):
    with pytest.raises(ArgumentError, match=r"^ids must be an array of integers"):
        layer.check_input([0.5], name="ids")
    with pytest.raises(ArgumentError, match=r"^ids must contain"):
        layer.check_input([9], name="ids")
    with pytest.raises(ArgumentError, match=r"^ids must not"):
        layer.check_input(None, name="ids")


def test_a_wrong_output_gradient_is_refused(layer):
    layer.forward([1, 2])
    with pytest.raises(ArgumentError, match=r"^output_gradient must have shape \(2, 3\), got \(2, 7\)"):
        layer.backward(np.ones((2, 7)))


# ---------------------------------------------------------------- what every layer promises


def test_the_caller_may_overwrite_its_buffers(layer):
    x, dy = np.array([1, 2, 1]), np.ones((3, SIZE))
    y = layer.forward(x)
    x[...], y[...] = 0, np.nan
    layer.backward(dy)
    dy[...] = np.nan
    assert_array_equal(layer.gradients["weight"][:4, 0], [0, 2, 1, 0])


def test_results_share_no_memory_with_the_table(layer):
    for x in (3, [3], [0, 1, 2]):
        assert not np.shares_memory(layer.predict(x), layer.weight)
        assert not np.shares_memory(layer.forward(x), layer.weight)


def test_arguments_are_never_written_to(layer):
    x, dy = np.array([1, 2, 1]), np.ones((3, SIZE))
    x.flags.writeable = dy.flags.writeable = False
    layer.predict(x)
    layer.forward(x)
    layer.backward(dy)
    assert_array_equal(x, [1, 2, 1])


def test_backward_needs_a_forward_and_a_step_gradients(layer):
    with pytest.raises(InvalidOperationError, match="forward"):
        layer.backward(np.ones((1, SIZE)))
    layer.forward([1])
    with pytest.raises(InvalidOperationError, match="backward"):
        layer.update_parameters(0.1)


def test_float32_is_kept():
    layer = randomised(Embedding(WORDS, SIZE, dtype=np.float32))
    y = layer.forward([1, 2])
    layer.backward(np.ones((2, SIZE)))
    assert {a.dtype for a in (y, layer.predict([1]), layer.weight, layer.gradients["weight"])} == {np.dtype(np.float32)}


COPIES = {
    "clone": lambda layer: layer.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "config": lambda layer: Embedding.from_config(layer.config()),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_and_files(copied, dtype):
    layer = randomised(Embedding(WORDS, SIZE, dtype=dtype))
    file = io.BytesIO()
    save_layer(layer, file)
    twin = copied(layer)
    file.seek(0)
    twin.deserialize(file)
    file.seek(0)
    for each in (twin, load_layer(file)):
        assert type(each) is Embedding
        assert each.config() == layer.config() == {"input_size": WORDS, "output_size": SIZE, "dtype": dtype}
        assert bits(each.named_parameters()) == bits(layer.named_parameters())
        assert not np.shares_memory(each.weight, layer.weight)


def test_description(layer):
    assert repr(layer) == "Embedding(7 -> 3, 21 parameters)"
    assert layer.get_input_shape() == ()
    assert layer.get_output_shape() == (SIZE,)
    assert layer.estimate_flops() == 0
    assert layer.estimate_activation_memory() == 8 * (1 + SIZE)
    assert layer.get_diagnostics()["layer.parameter_count"] == "21"


def test_it_has_no_graph_because_integers_select(layer):
    assert not layer.supports_jit_compilation
    with pytest.raises(NotSupportedError, match=rf"{layer.layer_name} \(Embedding\) has no computation graph"):
        layer.export_computation_graph([])


# ---------------------------------------------------------------- initial values


def test_the_initial_table_is_normal_with_a_small_deviation():
    weight = Embedding(300, 40, rng=0).weight
    assert abs(weight.mean()) < 1e-3
    assert weight.std() == pytest.approx(0.02, rel=0.02)
    assert_array_equal(Embedding(300, 40, rng=0).weight, weight)
    assert not np.array_equal(Embedding(300, 40, rng=1).weight, weight)


def test_the_initializer_may_be_replaced():
    assert not Embedding(5, 2, initializer=zeros).weight.any()
    with pytest.raises(ArgumentError, match=r"^initializer's result must have shape \(5, 2\), got \(2, 5\)"):
        Embedding(5, 2, initializer=lambda shape, dtype, rng: np.zeros(shape[::-1]))
    with pytest.raises(ArgumentError, match=r"^initializer's result must be an array of real numbers"):
        Embedding(5, 2, initializer=lambda shape, dtype, rng: "zeros")


def test_the_initial_table_is_not_the_initializers_array():
    given_array = np.ones((5, 2))
    assert not np.shares_memory(Embedding(5, 2, initializer=lambda shape, dtype, rng: given_array).weight, given_array)


def test_a_given_table_is_not_copied():
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    layer = Embedding.from_array(weight)
    assert layer.weight is weight
    assert layer.config() == Embedding(3, 2, dtype=np.float32).config()
    assert_array_equal(layer.predict([2, 0]), [[4, 5], [0, 1]])


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0), (1.5, 2), (2, None), (True, 2)], ids=repr)
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ArgumentError, match=r"^(input|output)_size must be"):
        Embedding(*sizes)


def test_a_table_larger_than_any_array_is_refused():
    with pytest.raises(ArgumentOutOfRangeError, match="input_size, output_size: an array of shape"):
        Embedding(2**40, 2**40)


def test_a_bad_dtype_or_seed_is_refused():
    with pytest.raises(ArgumentError, match=r"^dtype must be float32 or float64"):
        Embedding(3, 2, dtype=int)
    with pytest.raises(ArgumentError, match=r"^rng must be"):
        Embedding(3, 2, rng="seed")
