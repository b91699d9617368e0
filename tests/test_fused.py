"""Activation.value_and_slope: the fused float32 code against the float64 formulas, and the formulas for everything else."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import Activation, NotSupportedError, gelu, gelu_exact, swish
from lora_np.functions import fused
from lora_np.functions.activations import ACTIVATIONS, identity, softmax
from tests.kinds import batch
from tests.strategies import LAYOUTS, leading_axes, seeds

FUSED = [gelu_exact, gelu, swish]
ELEMENTWISE = [activation for activation in ACTIVATIONS if activation is not softmax]

each = pytest.mark.parametrize("activation", ELEMENTWISE, ids=lambda activation: activation.name)
each_fused = pytest.mark.parametrize("activation", FUSED, ids=lambda activation: activation.name)

VALUE_ERROR, SLOPE_ERROR = 2e-7, 2.5e-7
"""What the docstring of value_and_slope promises: the first relative to max(1, abs(z))."""


def by_formula(activation, z):
    """f(z) and f'(z) in float64."""
    z = np.asarray(z, float)
    return activation(z), activation.vjp(np.ones_like(z), z)


def single(values):
    return np.asarray(values, np.float32)


def errors(activation, z):
    """The largest errors of f and f', the first relative to max(1, abs(z))."""
    (y, slope), (exact_y, exact_slope) = activation.value_and_slope(z), by_formula(activation, z)
    assert y.dtype == slope.dtype == np.float32
    return (abs(y - exact_y) / np.maximum(1, abs(z.astype(float)))).max(), abs(slope - exact_slope).max()


# ---------------------------------------------------------------- precision


def test_the_fused_activations():
    assert [activation for activation in ACTIVATIONS if activation.fused is not None] == [swish, gelu, gelu_exact]


@each_fused
def test_the_documented_errors_hold_on_a_dense_grid(activation):
    value_error, slope_error = errors(activation, np.linspace(-12, 12, 2_000_001, dtype=np.float32))
    assert 1e-7 < value_error < VALUE_ERROR  # the bounds are those of these functions, not wide ones
    assert 1e-7 < slope_error < SLOPE_ERROR


@each_fused
def test_the_documented_errors_hold_for_every_magnitude(activation):
    powers = np.geomspace(2.0**-149, 3e38, 20_001, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # in the formulas: z³ and 0 · ∞ beyond 1e100
        value_error, slope_error = errors(activation, np.concatenate([powers, -powers]))
    assert value_error < VALUE_ERROR
    assert slope_error < SLOPE_ERROR


@each_fused
def test_the_documented_errors_hold_around_the_limits(activation):
    limits = single([6, 10, 87])
    neighbours = limits[:, np.newaxis].view(np.int32) + np.arange(-50, 51, dtype=np.int32)
    z = neighbours.view(np.float32).ravel()
    value_error, slope_error = errors(activation, np.concatenate([z, -z]))
    assert value_error < VALUE_ERROR
    assert slope_error < SLOPE_ERROR


@each_fused
def test_small_values_keep_their_relative_precision(activation):
    z = np.geomspace(1e-30, 1, 2001, dtype=np.float32)
    for signed in (z, -z):
        assert_allclose(activation.value_and_slope(signed)[0], by_formula(activation, signed)[0], rtol=5e-7)


@each_fused
def test_zeros_and_subnormal_numbers(activation):
    tiny = np.finfo(np.float32).smallest_subnormal
    z = single([0.0, -0.0, 2 * tiny, -2 * tiny, 1e-40, -1e-40])
    y, slope = activation.value_and_slope(z)
    assert_allclose(y, z / 2, atol=tiny)
    assert_array_equal(np.signbit(y), np.signbit(z))
    assert_array_equal(slope, np.full(6, 0.5))


@each_fused
def test_infinities_are_the_limits(activation):
    y, slope = activation.value_and_slope(single([np.inf, -np.inf]))
    assert y[0] == np.inf
    assert slope[0] == 1
    assert abs(y[1]) < 1e-8
    assert abs(slope[1]) < 1e-7


@each_fused
def test_nan_stays_nan_and_alone(activation):
    z = single([1, np.nan, 2])
    y, slope = activation.value_and_slope(z)
    assert_array_equal(np.isnan(y), [False, True, False])
    assert_array_equal(np.isnan(slope), [False, True, False])


@each_fused
def test_no_argument_causes_a_warning(activation):
    z = single([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e20, -1e20, 88, -88, 0, 1e-45])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        activation.value_and_slope(z)


def test_the_polynomial_of_the_normal_distribution():
    z = np.linspace(-6, 6, 24_001)
    z = z[z != 0]
    cdf = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    logistic = 1 / (1 + np.exp(-2 * z * np.polyval(fused.PHI, z * z)))
    assert 2.5e-8 < abs(logistic - cdf).max() < 3e-8


def test_the_exact_gelu_is_not_the_tanh_form():
    z = np.linspace(-4, 4, 101, dtype=np.float32)
    assert abs(gelu_exact.value_and_slope(z)[0] - gelu.value_and_slope(z)[0]).max() > 4e-4


# ---------------------------------------------------------------- pieces, shapes, layouts


@each_fused
@given(leading=leading_axes, size=st.integers(0, 5), seed=seeds, layout=st.sampled_from(LAYOUTS), piece=st.integers(1, 9))
def test_the_result_does_not_depend_on_pieces_or_layout(activation, leading, size, seed, layout, piece):
    z = layout(batch(*leading, size, seed=seed).astype(np.float32))
    whole = activation.value_and_slope(z.copy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "PIECE", piece)
        in_pieces = activation.value_and_slope(z)
    for found, expected in zip(in_pieces, whole, strict=True):
        assert found.shape == z.shape
        assert_allclose(found, expected, rtol=1e-6, atol=1e-7)  # NumPy's loops round the last elements differently


@each_fused
@pytest.mark.parametrize("elements", [fused.PIECE - 1, fused.PIECE, 2 * fused.PIECE + 3])
def test_arrays_of_several_pieces(activation, elements):
    z = np.linspace(-7, 7, elements, dtype=np.float32)
    value_error, slope_error = errors(activation, z)
    assert value_error < VALUE_ERROR
    assert slope_error < SLOPE_ERROR


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 3)])
def test_shapes_and_dtypes_are_kept(activation, dtype, shape):
    z = batch(*shape).astype(dtype) if shape else np.array(0.5, dtype)
    y, slope = activation.value_and_slope(z)
    assert (y.shape, y.dtype) == (slope.shape, slope.dtype) == (shape, dtype)


@each
def test_the_argument_is_not_modified(activation):
    z = batch(4, 5).astype(np.float32)
    z.flags.writeable = False
    y, slope = activation.value_and_slope(z)
    assert activation is identity or not np.shares_memory(y, z)
    assert not np.shares_memory(slope, z)
    assert not np.shares_memory(slope, y)


@each
@pytest.mark.parametrize("slope", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_results_may_be_written_to_the_argument(monkeypatch, activation, slope, dtype):
    monkeypatch.setattr(fused, "PIECE", 5)
    z = (3 * batch(4, 7)).astype(dtype)
    expected = activation.value_and_slope(z, slope=slope)
    for reused in (z.copy(), np.asfortranarray(z)):
        y, derivative = activation.value_and_slope(reused, slope=slope, overwrite=True)
        assert y.tobytes() == expected[0].tobytes()
        assert (derivative is None) == (not slope)
        if slope:
            assert derivative.tobytes() == expected[1].tobytes()
            assert not np.shares_memory(y, derivative)


def test_a_result_is_in_the_memory_of_an_argument_that_may_be_overwritten():
    z = batch(4, 7).astype(np.float32)
    assert np.shares_memory(gelu_exact.value_and_slope(z, overwrite=True)[1], z)
    assert np.shares_memory(gelu_exact.value_and_slope(z, slope=False, overwrite=True)[0], z)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_the_slope_the_value_is_the_same_to_the_bit(activation, dtype):
    z = (3 * batch(64, 7)).astype(dtype)
    y, slope = activation.value_and_slope(z, slope=False)
    assert slope is None
    assert y.tobytes() == activation.value_and_slope(z)[0].tobytes()


# ---------------------------------------------------------------- formulas


@each
def test_in_float64_it_is_the_function_and_its_vjp(activation):
    z = 3 * batch(6, 5)
    y, slope = activation.value_and_slope(z)
    assert_array_equal(y, activation(z))
    assert_array_equal(slope, activation.vjp(np.ones_like(z), z))
    assert_allclose(slope, activation.value_and_slope(z + 1e-30j)[0].imag / 1e-30, rtol=1e-10, atol=1e-14)


@each
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers_pass_through(activation, dtype):
    y, slope = activation.value_and_slope(batch(3).astype(dtype))
    assert np.result_type(y) == dtype
    assert slope.shape == (3,)


def test_softmax_is_refused():
    with pytest.raises(NotSupportedError, match="softmax has no slope: it does not act elementwise"):
        softmax.value_and_slope(np.ones(3, np.float32))


def cube_piece(z, y, slope, c, t):
    np.multiply(z, z, out=t)
    np.multiply(t, z, out=y)
    if slope is not None:
        np.multiply(t, 3, out=slope)


CUBE = Activation("cube", lambda z: z**3, lambda dy, z: 3 * z * z * dy)


def test_a_custom_activation_is_computed_by_its_functions():
    y, slope = CUBE.value_and_slope(single([1, 2]))
    assert_array_equal(y, [1, 8])
    assert_array_equal(slope, [3, 12])


@pytest.mark.parametrize("copied", [lambda a: a, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_a_custom_activation_may_be_fused(copied):
    custom = copied(Activation("negative", np.negative, np.multiply, fused=cube_piece))
    assert_array_equal(custom.value_and_slope(single([2]))[0], [8])
    assert_array_equal(custom.value_and_slope(np.array([2.0]))[0], [-2])
    assert custom == Activation("negative", np.negative, np.multiply)
