"""Penalties on a weight matrix."""

import copy
import pickle

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ArgumentError, Regularization
from lora_np.functions.numerical import numerical_gradient
from lora_np.functions.regularization import NO_REGULARIZATION

KINDS = {
    "none": Regularization(),
    "l1": Regularization(l1=0.5),
    "l2": Regularization(l2=2.0),
    "elastic net": Regularization(l1=0.5, l2=2.0),
}

each = pytest.mark.parametrize("regularization", KINDS.values(), ids=KINDS.keys())

weights = hnp.arrays(float, hnp.array_shapes(max_dims=2, max_side=4), elements=st.floats(-10, 10))


@pytest.mark.parametrize(("kind", "penalty"), [("none", 0), ("l1", 3), ("l2", 14), ("elastic net", 17)])
def test_worked_penalty(kind, penalty):
    assert KINDS[kind].penalty(np.array([[3.0, -1.0], [0.0, 2.0]])) == penalty


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [("none", [0, 0, 0]), ("l1", [0.5, 0, -0.5]), ("l2", [6, 0, -2]), ("elastic net", [6.5, 0, -2.5])],
)
def test_worked_gradient_with_the_midpoint_of_the_subgradient_at_zero(kind, gradient):
    np.testing.assert_array_equal(KINDS[kind].gradient(np.array([3.0, 0.0, -1.0])), gradient)


@each
@given(weight=weights)
def test_the_gradient_matches_the_penalty(regularization, weight):
    weight[weight == 0] = 1.0
    expected = numerical_gradient(regularization.penalty, weight)
    np.testing.assert_allclose(regularization.gradient(weight), expected, rtol=1e-12, atol=1e-280)


@given(weight=weights, l1=st.floats(0, 5), l2=st.floats(0, 5))
def test_the_parts_add_up(weight, l1, l2):
    both, lasso, ridge = Regularization(l1, l2), Regularization(l1=l1), Regularization(l2=l2)
    assert both.penalty(weight) == pytest.approx(lasso.penalty(weight) + ridge.penalty(weight), rel=1e-12)
    np.testing.assert_allclose(both.gradient(weight), lasso.gradient(weight) + ridge.gradient(weight), rtol=1e-12)


@each
def test_float32_is_kept(regularization):
    weight = np.array([[1.0, -2.0]], np.float32)
    assert regularization.penalty(weight).dtype == np.float32
    assert regularization.gradient(weight).dtype == np.float32


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf, None, "1", [1.0]])
def test_an_invalid_strength_is_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        Regularization(**{name: value})


@each
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), lambda r: Regularization.from_config(r.config())],
    ids=["deepcopy", "pickle", "config"],
)
def test_copies_are_equal(regularization, copied):
    assert copied(regularization) == regularization


def test_the_default_is_no_penalty():
    assert Regularization() == NO_REGULARIZATION
    assert Regularization(l1=1e-9) != NO_REGULARIZATION


def test_config_holds_plain_floats():
    config = Regularization(l1=np.float32(0.5), l2=1).config()
    assert config == {"l1": 0.5, "l2": 1.0}
    assert {type(value) for value in config.values()} == {float}


def test_a_penalty_is_immutable():
    with pytest.raises(AttributeError):
        Regularization().l1 = 1.0
