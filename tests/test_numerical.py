"""Numerical gradients against analytic ones."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ArgumentError
from lora_np.functions.numerical import numerical_gradient

PRECISION = {"complex": 1e-13, "central": 1e-7}

each = pytest.mark.parametrize("method", PRECISION)

FUNCTIONS = {
    "polynomial": (lambda x: (x**3 - 2 * x).sum(), lambda x: 3 * x**2 - 2),
    "exponential": (lambda x: np.exp(x / 4).sum(), lambda x: np.exp(x / 4) / 4),
    "product": (lambda x: x.sum() ** 2, lambda x: np.full_like(x, 2 * x.sum())),
    "constant": (lambda x: 5.0, np.zeros_like),
}


@each
@pytest.mark.parametrize(("function", "gradient"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
@given(point=hnp.arrays(float, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.floats(-4, 4)))
def test_known_gradients(method, function, gradient, point):
    found, expected = numerical_gradient(function, point, method=method), gradient(point)
    assert found.shape == point.shape
    np.testing.assert_allclose(found, expected, rtol=PRECISION[method], atol=100 * PRECISION[method])


@each
def test_each_element_has_a_separate_slope(method):
    coefficients = np.arange(6.0).reshape(2, 3)
    found = numerical_gradient(lambda x: (coefficients * x).sum(), np.ones((2, 3)), method=method)
    np.testing.assert_allclose(found, coefficients, rtol=1e-9, atol=1e-9)


@each
def test_the_point_is_not_modified(method):
    point = np.array([1.0, 2.0])
    point.flags.writeable = False
    numerical_gradient(lambda x: x @ x, point, method=method)


@each
def test_an_empty_point_has_an_empty_gradient(method):
    assert numerical_gradient(lambda x: x.sum(), np.empty((0, 3)), method=method).shape == (0, 3)


@each
def test_a_point_may_be_integers_or_a_list(method):
    np.testing.assert_allclose(numerical_gradient(lambda x: (x**2).sum(), [1, 2], method=method), [2, 4], rtol=1e-9)


@each
def test_the_result_is_float64_even_at_a_float32_point(method):
    found = numerical_gradient(lambda x: (x**2).sum(), np.ones(2, np.float32), method=method)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [2, 2], rtol=1e-9)


def test_the_complex_step_subtracts_nothing():
    # The difference of two values near 1e16 would have no correct digit.
    found = numerical_gradient(lambda x: 1e16 + x**2, np.array(3.0))
    assert found == 6


def test_central_differences_handle_functions_that_are_not_analytic():
    found = numerical_gradient(lambda x: np.abs(x).sum(), np.array([-2.0, 3.0]), method="central")
    np.testing.assert_allclose(found, [-1, 1], rtol=1e-9)


def test_central_steps_grow_with_the_point():
    found = numerical_gradient(lambda x: x**2 / 1e8, np.array(1e8), method="central")
    assert found == pytest.approx(2, rel=1e-9)


def test_the_complex_step_is_the_default():
    assert numerical_gradient(lambda x: 1e16 + x, np.array(0.0)) == 1


@pytest.mark.parametrize("method", ["forward", None, 1])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ArgumentError, match="method must be one of 'complex', 'central'"):
        numerical_gradient(lambda x: x, np.array(1.0), method=method)
