"""LayerNorm and RMSNorm: worked examples, gradients, invariances, precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import ArgumentError, ArgumentOutOfRangeError, LayerNorm, RMSNorm, load_layer, save_layer
from lora_np.run import Run
from lora_np.testing import check_gradients
from tests.kinds import batch, randomised
from tests.strategies import arrays, leading_axes, seeds

NORMS = {"layer-norm": LayerNorm, "rms-norm": RMSNorm}

each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def rows_with_gaps(*shape, seed=1):
    """Rows with gaps between neighbours: at a nearly constant row, the derivative is too large to be measured."""
    x = batch(*shape, seed=seed)
    return x + np.arange(shape[-1]) * np.where(np.arange(shape[-1]) % 2, 1.0, -0.5)


# ---------------------------------------------------------------- values


def test_a_layer_norm_worked_by_hand():
    layer = LayerNorm(4, epsilon=0)
    layer.set_parameters([2, 1, 1, 1, 10, 0, 0, 0])
    # mean 2, variance 4, n = (-1, -1, 1, 1)
    assert_array_equal(layer.forward([0, 0, 4, 4]), [8, -1, 1, 1])
    # dn = (4, 0, 0, 0), mean(dn) = 1, mean(n dn) = -1, u = 1/2
    assert_array_equal(layer.backward([2, 0, 0, 0]), [1, -1, 0, 0])
    assert_array_equal(layer.gradients["weight"], [-2, 0, 0, 0])
    assert_array_equal(layer.gradients["bias"], [2, 0, 0, 0])


def test_an_rms_norm_worked_by_hand():
    layer = RMSNorm(5, epsilon=0)
    layer.set_parameters([5, 1, 1, 1, 1])
    # mean(x²) = 4, n = (2, 1, 0, 0, 0)
    assert_array_equal(layer.forward([4, 2, 0, 0, 0]), [10, 1, 0, 0, 0])
    # dn = (5, 0, 0, 0, 0), mean(n dn) = 2, u = 1/2
    assert_array_equal(layer.backward([1, 0, 0, 0, 0]), [0.5, -1, 0, 0, 0])
    assert_array_equal(layer.gradients["weight"], [2, 0, 0, 0, 0])


def test_epsilon_is_added_to_the_variance_under_the_root():
    assert_array_equal(LayerNorm(2, epsilon=3).predict([2, 4]), [-0.5, 0.5])  # variance 1 of the population, not 2
    assert_array_equal(RMSNorm(2, epsilon=15).predict([1, -1]), [0.25, -0.25])


@each_norm
def test_a_new_layer_only_normalizes(norm):
    y = norm(6).predict(5 + 3 * batch(4, 6))
    assert_allclose((y**2).mean(axis=-1), np.ones(4), rtol=1e-4)
    if norm is LayerNorm:
        assert_allclose(y.mean(axis=-1), np.zeros(4), atol=1e-14)


@each_norm
def test_a_row_of_zeros_stays_zero(norm):
    layer = norm(3)
    assert_array_equal(layer.forward(np.zeros((2, 3))), np.zeros((2, 3)))
    assert np.isfinite(layer.backward(np.ones((2, 3)))).all()


def test_layer_norm_ignores_a_shift_and_a_scale_of_a_row():
    layer, x = randomised(LayerNorm(5, epsilon=0)), rows_with_gaps(3, 5)
    assert_allclose(layer.predict(7 + 3 * x), layer.predict(x), rtol=1e-12)
    dx = layer.vjp(batch(3, 5, seed=2), layer.apply(x, Run())[1])[0]
    assert_allclose(dx.sum(axis=-1), np.zeros(3), atol=1e-14)
    assert_allclose((dx * x).sum(axis=-1), np.zeros(3), atol=1e-14)


def test_rms_norm_ignores_a_scale_of_a_row_but_not_a_shift():
    layer, x = randomised(RMSNorm(5, epsilon=0)), rows_with_gaps(3, 5)
    assert_allclose(layer.predict(3 * x), layer.predict(x), rtol=1e-12)
    assert abs(layer.predict(7 + x) - layer.predict(x)).max() > 0.1
    dx = layer.vjp(batch(3, 5, seed=2), layer.apply(x, Run())[1])[0]
    assert_allclose((dx * x).sum(axis=-1), np.zeros(3), atol=1e-14)


def test_an_rms_norm_is_a_layer_norm_of_centred_rows():
    x = rows_with_gaps(4, 6)
    centred = x - x.mean(axis=-1, keepdims=True)
    assert_allclose(RMSNorm(6).predict(centred), LayerNorm(6).predict(x), rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------- gradients


@each_norm
@pytest.mark.parametrize("epsilon", [0, 1e-12, 1e-5, 0.5])
@given(leading=leading_axes, size=st.integers(3, 7), seed=seeds)
def test_every_gradient_is_the_complex_step_derivative(norm, epsilon, leading, size, seed):
    layer = randomised(norm(size, epsilon), seed)
    check_gradients(layer, rows_with_gaps(*leading, size, seed=seed), method="complex", rtol=1e-10)


@each_norm
@pytest.mark.parametrize("size", [1, 2])
@given(leading=leading_axes, seed=seeds)
def test_few_features(norm, size, leading, seed):
    # With ε = 0 the output of LayerNorm would be constant, and its gradient nothing but rounding errors.
    x = rows_with_gaps(*leading, size, seed=seed)
    check_gradients(randomised(norm(size, 0.5), seed), x, method="complex", allow_vacuous=size == 1, rtol=1e-10)


def test_layer_norm_of_one_feature_is_its_bias():
    layer = randomised(LayerNorm(1))
    assert_array_equal(layer.forward([[3], [5]]), [layer.bias, layer.bias])
    assert_array_equal(layer.backward([[1], [2]]), [[0], [0]])


@each_norm
@given(data=st.data(), leading=leading_axes, size=st.integers(1, 7))
def test_rows_are_normalized_independently(norm, data, leading, size):
    layer, x = randomised(norm(size)), data.draw(arrays((*leading, size)))
    y = layer.predict(x)
    assert y.shape == x.shape
    rows = [layer.predict(row) for row in x.reshape(-1, size)]
    assert_array_equal(y.reshape(-1, size), np.array(rows).reshape(-1, size))


# ---------------------------------------------------------------- precision


@each_norm
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_float32_agrees_with_float64(norm, scale):
    x = (scale * batch(64, 384)).astype(np.float32)
    single, double = randomised(norm(384, dtype=np.float32)), randomised(norm(384))
    double.set_parameters(single.get_parameters())
    assert_allclose(single.forward(x), double.forward(x), rtol=2e-6, atol=2e-6)
    dy = batch(64, 384, seed=2).astype(np.float32)
    expected = double.backward(dy)
    assert_allclose(single.backward(dy), expected, rtol=1e-5, atol=3e-7 * abs(expected).max())


def test_a_large_mean_costs_layer_norm_no_more_than_its_rounding():
    x = (1000 + batch(64, 384)).astype(np.float32)  # E(x²) - E(x)² would lose all digits but one
    assert_allclose(LayerNorm(384, dtype=np.float32).predict(x), LayerNorm(384).predict(x), atol=2e-4)


# ---------------------------------------------------------------- the object


@each_norm
def test_the_cache_holds_the_normalized_rows_and_their_factors(norm):
    layer, x = norm(4), batch(3, 4)
    _, (n, u) = layer.apply(x, Run())
    assert (n.shape, u.shape) == ((3, 4), (3, 1))
    assert layer.estimate_activation_memory() == 8 * (4 + 4 + 1 + 4)  # x, n, u, y


@each_norm
def test_names_and_initial_values(norm):
    named = norm(3).named_parameters()
    expected = {"weight": [1, 1, 1]} | ({"bias": [0, 0, 0]} if norm is LayerNorm else {})
    assert {name: array.tolist() for name, array in named.items()} == expected


@each_norm
def test_config_and_files_keep_epsilon(norm, tmp_path):
    layer = randomised(norm(3, 1e-12, dtype=np.float32))
    assert layer.config() == {"size": 3, "epsilon": 1e-12, "dtype": np.float32}
    assert norm.from_config(layer.config()).epsilon == 1e-12
    save_layer(layer, tmp_path / "norm.npz")
    loaded = load_layer(tmp_path / "norm.npz")
    assert (loaded.epsilon, loaded.dtype) == (1e-12, np.float32)
    assert_array_equal(loaded.get_parameters(), layer.get_parameters())


@each_norm
def test_description(norm):
    layer = norm(3, 1e-6)
    assert "epsilon=1e-06" in repr(layer)
    assert layer.estimate_flops() == 3 * (7 if norm is LayerNorm else 4)
    assert layer.get_activation_types() == ()


@each_norm
@pytest.mark.parametrize("size", [0, -1, 1.5, None, True], ids=repr)
def test_a_bad_size_is_refused(norm, size):
    with pytest.raises(ArgumentError, match=f"size.*{size}"):
        norm(size)


@each_norm
@pytest.mark.parametrize("epsilon", [-1e-9, np.nan, np.inf])
def test_an_epsilon_out_of_range_is_refused(norm, epsilon):
    with pytest.raises(ArgumentOutOfRangeError, match=r"^epsilon must be (at least 0|finite), got "):
        norm(3, epsilon)


@each_norm
@pytest.mark.parametrize("epsilon", [None, "small", 1j])
def test_an_epsilon_of_another_type_is_refused(norm, epsilon):
    with pytest.raises(ArgumentError, match=r"^epsilon must be a real number, got "):
        norm(3, epsilon)
