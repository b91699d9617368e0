"""Activations: values against mpmath, derivatives against the complex step, and edge cases."""

import copy
import math
import pickle
import subprocess
import sys

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from lora_np import Activation, DenseLayer, FormatError, NotSupportedError
from lora_np.functions import activations
from lora_np.functions.activations import ACTIVATIONS, SHIPPED, erf, softmax
from lora_np.run import Run

mp.dps = 40

ELEMENTWISE = [activation for activation in ACTIVATIONS if activation is not softmax]

EXACT = {
    "identity": lambda z: z,
    "relu": lambda z: max(z, mpf(0)),
    "leaky_relu": lambda z: z if z > 0 else z / 100,
    "elu": lambda z: z if z > 0 else mp.expm1(z),
    "selu": lambda z: mpf(activations.SELU_SCALE) * (z if z > 0 else mpf(activations.SELU_ALPHA) * mp.expm1(z)),
    "sigmoid": lambda z: 1 / (1 + mp.exp(-z)),
    "tanh": mp.tanh,
    "softplus": lambda z: mp.log1p(mp.exp(z)),
    "softsign": lambda z: z / (1 + abs(z)),
    "swish": lambda z: z / (1 + mp.exp(-z)),
    "gelu": lambda z: z / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (z + mpf("0.044715") * z**3))),
    "gelu_exact": lambda z: z / 2 * (1 + mp.erf(z / mp.sqrt(2))),
}

KNOWN = [
    ("identity", [-2, 3], [-2, 3]),
    ("relu", [-2, 0, 3], [0, 0, 3]),
    ("leaky_relu", [-100, 0, 3], [-1, 0, 3]),
    ("elu", [-math.log(2), 0, 3], [-0.5, 0, 3]),
    ("selu", [0, 1], [0, 1.0507009873554805]),
    ("sigmoid", [-math.log(3), 0, math.log(3)], [0.25, 0.5, 0.75]),
    ("tanh", [0, math.log(2)], [0, 0.6]),
    ("softplus", [0, math.log(3)], [math.log(2), math.log(4)]),
    ("softsign", [-3, 0, 1], [-0.75, 0, 0.5]),
    ("swish", [0, math.log(3)], [0, 0.75 * math.log(3)]),
    ("gelu", [0, 1], [0, 0.8411919906082768]),
    ("gelu_exact", [0, 1], [0, 0.8413447460685429]),
    ("softmax", [0, math.log(2), math.log(5)], [0.125, 0.25, 0.625]),
]

SLOPES_AT_ZERO = {
    "identity": 1,
    "relu": 0,
    "leaky_relu": 0.01,
    "elu": 1,
    "selu": 1.0507009873554805 * 1.6732632423543772,
    "sigmoid": 0.25,
    "tanh": 1,
    "softplus": 0.5,
    "softsign": 1,
    "swish": 0.5,
    "gelu": 0.5,
    "gelu_exact": 0.5,
}

each = pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
each_elementwise = pytest.mark.parametrize("activation", ELEMENTWISE, ids=lambda a: a.name)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

rows = hnp.arrays(float, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-30, 30))


def complex_step(function, z):
    """The derivative of an elementwise function."""
    return np.imag(function(z + 1e-30j)) / 1e-30


def numerical_jacobian(function, z):
    columns = [np.imag(function(z + 1e-30j * unit)) / 1e-30 for unit in np.eye(z.size)]
    return np.stack(columns, axis=-1)


# ---------------------------------------------------------------- values


def test_every_activation_has_an_exact_value():
    assert [*EXACT, "softmax"] == [activation.name for activation in ACTIVATIONS]


@each_elementwise
def test_values_agree_with_forty_digit_arithmetic(activation):
    z = np.concatenate([np.linspace(-40, 40, 161), np.geomspace(1e-300, 1, 20), -np.geomspace(1e-300, 1, 20), [0.0]])
    expected = np.array([float(EXACT[activation.name](mpf(value))) for value in z])
    # A tail computed as a difference of numbers near 1 has the rounding error of 1, times z.
    np.testing.assert_allclose(activation(z), expected, rtol=4e-15, atol=1e-15)


@pytest.mark.parametrize(("name", "z", "y"), KNOWN, ids=[name for name, _, _ in KNOWN])
def test_known_values(name, z, y):
    np.testing.assert_allclose(SHIPPED[name](np.array(z, float)), y, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("name", ["sigmoid", "swish", "softplus", "elu", "softsign", "tanh"])
def test_small_values_keep_their_relative_precision(name):
    z = np.concatenate([-np.geomspace(1e-12, 600, 50), np.geomspace(1e-12, 600, 50)])
    expected = np.array([float(EXACT[name](mpf(value))) for value in z])
    np.testing.assert_allclose(SHIPPED[name](z), expected, rtol=4e-15)


def test_the_error_of_erf_is_below_1e_15_everywhere():
    z = np.concatenate([np.linspace(-7, 7, 2801), 0.5 + np.linspace(-1e-9, 1e-9, 21), 6 + np.linspace(-1e-9, 1e-9, 21)])
    exact = [mp.erf(mpf(value)) for value in z]
    assert max(abs(mpf(found) - value) for found, value in zip(erf(z), exact, strict=True)) < 1e-15


def test_erf_keeps_relative_precision_near_zero():
    z = np.concatenate([np.geomspace(1e-300, 0.5, 200), -np.geomspace(1e-300, 0.5, 200)])
    expected = np.array([float(mp.erf(mpf(value))) for value in z])
    np.testing.assert_allclose(erf(z), expected, rtol=1e-15)


def test_erf_is_one_in_the_far_tails():
    np.testing.assert_array_equal(erf(np.array([-np.inf, -1e300, -7.0, 0.0, 7.0, 1e300, np.inf])), [-1, -1, -1, 0, 1, 1, 1])


@given(z=hnp.arrays(float, 5, elements=st.floats(-10, 10)))
def test_erf_is_odd(z):
    np.testing.assert_array_equal(erf(-z), -erf(z))


# ---------------------------------------------------------------- derivatives


@each_elementwise
@given(z=rows, data=st.data())
def test_vjp_is_the_complex_step_derivative(activation, z, data):
    dy = data.draw(hnp.arrays(float, z.shape, elements=st.floats(-2, 2)))
    # A slope computed as a difference of numbers near 1 has the rounding error of 1.
    np.testing.assert_allclose(activation.vjp(dy, z), dy * complex_step(activation.function, z), rtol=1e-10, atol=1e-14)


@each_elementwise
def test_vjp_is_the_complex_step_derivative_on_a_grid(activation):
    z = np.concatenate([np.linspace(-12, 12, 2001), np.geomspace(1e-20, 1, 50), -np.geomspace(1e-20, 1, 50)])
    slopes = activation.vjp(np.ones_like(z), z)
    np.testing.assert_allclose(slopes, complex_step(activation.function, z), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", SLOPES_AT_ZERO)
def test_slope_at_zero(name):
    assert SHIPPED[name].vjp(np.ones(1), np.zeros(1)) == pytest.approx([SLOPES_AT_ZERO[name]], rel=1e-15)


@each_elementwise
@given(z=rows, factor=st.floats(-8, 8))
def test_vjp_is_linear_in_the_output_gradient(activation, z, factor):
    one = activation.vjp(np.ones_like(z), z)
    np.testing.assert_allclose(activation.vjp(np.full_like(z, factor), z), factor * one, rtol=1e-14, atol=1e-300)


@given(z=hnp.arrays(float, st.integers(1, 5), elements=st.floats(-30, 30)))
def test_softmax_vjp_multiplies_by_the_full_jacobian(z):
    jacobian = numerical_jacobian(softmax.function, z)
    found = np.stack([softmax.vjp(row, z) for row in np.eye(z.size)])  # row i: the gradient of output i
    np.testing.assert_allclose(found, jacobian, rtol=1e-10, atol=1e-14)


def test_softmax_jacobian_worked_by_hand():
    z = np.log(np.array([1.0, 1.0, 2.0]))  # probabilities 1/4, 1/4, 1/2
    found = np.stack([softmax.vjp(row, z) for row in np.eye(3)])
    np.testing.assert_allclose(found * 16, [[3, -1, -2], [-1, 3, -2], [-2, -2, 4]], rtol=1e-14)


def test_the_derivative_is_taken_at_the_pre_activation():
    # At the post-activation 0.5 of sigmoid(0) the slope would be 0.235.
    assert activations.sigmoid.vjp(np.ones(1), np.zeros(1)) == 0.25


# ---------------------------------------------------------------- softmax


@given(z=rows)
def test_softmax_rows_sum_to_one(z):
    y = softmax(z)
    np.testing.assert_allclose(y.sum(axis=-1), np.ones(z.shape[:-1]), rtol=1e-14)
    assert (y >= 0).all()


@given(z=rows, shift=st.floats(-1e3, 1e3))
def test_softmax_is_invariant_to_a_shift(z, shift):
    np.testing.assert_allclose(softmax(z + shift), softmax(z), rtol=1e-11)


@given(z=hnp.arrays(float, (3, 4), elements=st.floats(-30, 30)))
def test_softmax_treats_each_row_separately(z):
    np.testing.assert_array_equal(softmax(z), np.stack([softmax(row) for row in z]))


# ---------------------------------------------------------------- edges


@each
@each_dtype
@pytest.mark.parametrize("sign", [-1, 1])
def test_large_magnitudes_give_finite_values_and_no_warning(activation, dtype, sign):
    z = np.array([[1e4, 1.0, 0.0], [1e4, 1e4, 1e4]], dtype) * dtype(sign)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, dz = activation(z), activation.vjp(np.ones_like(z), z)
    assert np.isfinite(y).all()
    assert np.isfinite(dz).all()


def edges(dtype):
    """Numbers of every magnitude that a dtype has, of both signs."""
    info = np.finfo(dtype)
    powers = dtype(2) ** np.arange(info.minexp - info.nmant, info.maxexp, 7).astype(dtype)
    z = np.concatenate([powers, [info.smallest_subnormal, info.tiny, info.max / 1.06]]).astype(dtype)
    return np.concatenate([-z, [dtype(0)], z])


@each_elementwise
@each_dtype
@pytest.mark.parametrize("how", ["formula", "value and slope"])
def test_values_and_slopes_are_right_and_silent_over_the_whole_range(activation, dtype, how):
    z = edges(dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        if how == "formula":
            y, slope = activation(z), activation.vjp(np.ones_like(z), z)
        else:
            y, slope = activation.value_and_slope(z)
    error = 1e-6 if dtype == np.float32 else 1e-14
    for value, found in zip(z.tolist(), y.tolist(), strict=True):
        wanted = EXACT[activation.name](mpf(value))
        assert abs(mpf(found) - wanted) <= error * max(1, abs(wanted)), value
    for side in (-1e4, 1e4):
        limit = activation.vjp(np.ones(1), np.array([side]))[0]
        far = slope[z > side] if side > 0 else slope[z < side]
        np.testing.assert_allclose(far, np.full_like(far, limit), error, 1e-7)


@each_dtype
def test_relu_passes_no_gradient_where_it_is_0_not_even_an_infinite_one(dtype):
    z = np.array([-1, -0.0, 0, 1, np.inf, -np.inf], dtype)
    dy = np.array([np.inf, -np.inf, np.nan, np.inf, -2, np.inf], dtype)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(activations.relu.vjp(dy, z), [0, 0, 0, np.inf, -2, 0])


@each_dtype
def test_softmax_of_the_largest_numbers(dtype):
    largest = np.finfo(dtype).max
    z = np.array([[largest, -largest], [-largest, -largest], [largest, largest / 2]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_array_equal(softmax(z), [[1, 0], [0.5, 0.5], [1, 0]])
        np.testing.assert_array_equal(softmax.vjp(np.ones_like(z), z), np.zeros_like(z))


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("sigmoid", 0, 1),
        ("tanh", -1, 1),
        ("elu", -1, 1e4),
        ("softplus", 0, 1e4),
        ("relu", 0, 1e4),
        ("swish", 0, 1e4),
        ("gelu", 0, 1e4),
        ("gelu_exact", 0, 1e4),
    ],
)
def test_limits(name, left, right):
    np.testing.assert_array_equal(SHIPPED[name](np.array([-1e4, 1e4])), [left, right])


@each_elementwise
def test_nan_stays_nan_and_affects_no_other_element(activation):
    z = np.array([1.5, np.nan, -1.5])
    y = activation(z)
    np.testing.assert_array_equal(np.isnan(y), [False, True, False])
    np.testing.assert_array_equal(y[[0, 2]], activation(z[[0, 2]]))


def test_nan_in_softmax_stays_in_its_row():
    y = softmax(np.array([[1.0, np.nan], [1.0, 1.0]]))
    np.testing.assert_array_equal(y, [[np.nan, np.nan], [0.5, 0.5]])


@each
@each_dtype
def test_dtype_is_kept(activation, dtype):
    z = np.linspace(-8, 8, 12, dtype=dtype).reshape(4, 3)
    assert activation(z).dtype == dtype
    assert activation.vjp(np.ones_like(z), z).dtype == dtype


@each
def test_float32_agrees_with_float64(activation):
    z = np.linspace(-8, 8, 60).reshape(20, 3)
    np.testing.assert_allclose(activation(z.astype(np.float32)), activation(z), rtol=1e-5, atol=1e-6)


@each
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (3,)])
def test_shapes_are_kept_even_without_rows(activation, shape):
    z = np.ones(shape)
    assert activation(z).shape == shape
    assert activation.vjp(np.ones(shape), z).shape == shape


@each
def test_arguments_are_not_modified(activation):
    z, dy = np.array([[-1.0, 0.0, 2.0]]), np.array([[3.0, -1.0, 1.0]])
    z.flags.writeable = dy.flags.writeable = False
    activation(z)
    activation.vjp(dy, z)


@each
def test_lists_are_accepted(activation):
    np.testing.assert_array_equal(activation([[-1.0, 2.0]]), activation(np.array([[-1.0, 2.0]])))


@each
def test_integers_are_accepted(activation):
    np.testing.assert_array_equal(activation([-1, 0, 2]), activation(np.array([-1.0, 0.0, 2.0])))


@each
def test_apart_returns_the_value(activation):
    z = np.linspace(-3, 3, 12).reshape(4, 3)
    np.testing.assert_array_equal(activation.apart(z), activation(z))


@pytest.mark.parametrize("function", [lambda z: z, lambda z: z[:]], ids=["itself", "a view"])
def test_apart_shares_no_memory_with_what_a_vjp_needs(function):
    z = np.ones(3)
    custom = Activation("straight_through", function, lambda dy, z: dy * (np.abs(z) <= 1))
    assert not np.may_share_memory(custom.apart(z), z)
    assert activations.identity.apart(z) is z  # its vjp ignores z


# ---------------------------------------------------------------- the object


copies = pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"]
)


@each
@copies
def test_a_copy_of_a_built_in_activation_is_the_same_object(activation, copied):
    assert copied(activation) is activation


@copies
def test_a_copy_of_a_custom_activation_is_equal(copied):
    custom = Activation("relu", np.negative, np.multiply, 3)
    assert copied(custom) == custom != activations.relu


@each
def test_config_holds_the_name(activation):
    assert activation.config() == {"name": activation.name}
    assert Activation.from_config(activation.config()) is activation


@each
def test_it_is_exported_under_its_name(activation):
    assert getattr(activations, activation.name) is activation
    assert repr(activation) == f"<activation {activation.name}>"
    assert activation.operations >= 0


@pytest.mark.parametrize("name", ["cube", "relu"])
def test_a_custom_activation_cannot_be_saved(name):
    custom = Activation(name, lambda z: z**3, lambda dy, z: 3 * z * z * dy)
    with pytest.raises(NotSupportedError, match=f"activation '{name}' cannot be saved: it is not defined by lora_np"):
        custom.config()


@pytest.mark.parametrize("config", [{"name": "cube"}, {"name": None}, {}])
def test_an_unknown_name_is_refused(config):
    with pytest.raises(FormatError, match="activation must be one of identity, relu"):
        Activation.from_config(config)


def test_an_activation_is_immutable():
    with pytest.raises(AttributeError):
        activations.relu.name = "other"


@each
def test_only_the_identity_caches_no_pre_activation(activation):
    layer = DenseLayer(3, 2, activation).clone()
    _, (_, kept) = layer.apply(np.ones((4, 3)), Run())
    assert (kept is None) == (activation.name == "identity")


def test_a_function_that_uses_an_activation_travels_to_another_process():
    cloudpickle = pytest.importorskip("cloudpickle")

    def build():  # pickled by value, as dask does with functions of a script
        return DenseLayer(3, 2, activations.relu, rng=0)

    load = "import pickle, sys, lora_np; f = pickle.load(sys.stdin.buffer); print(f().activation is lora_np.relu)"
    done = subprocess.run([sys.executable, "-c", load], input=cloudpickle.dumps(build), capture_output=True)
    assert done.stdout.split() == [b"True"], done.stderr.decode()
