"""One step of descent, and the way back when a number is not finite."""

import numpy as np
import pytest

from lora_np import (
    SGD,
    Adam,
    DenseLayer,
    InvalidOperationError,
    Loss,
    MeanSquaredError,
    Momentum,
    NonFiniteError,
    Regularization,
    Sequential,
    StandardLoRAAdapter,
)
from lora_np.training.step import Descent

X = np.array([[1.0, 2.0], [0.0, -1.0]])
T = np.array([[1.0], [3.0]])


class Fixed(Loss):
    """Gives a prescribed value and a gradient of one prescribed number, whatever the predictions."""

    def __init__(self, value, slope):
        self.value, self.slope = value, slope

    def compute(self, predictions, targets):
        return self.value, np.full_like(predictions, self.slope)


def layer(**keywords):
    return DenseLayer(2, 1, rng=0, **keywords)


def step(descent, x=X):
    return descent.step(lambda: descent.layer.forward(x), T)


@pytest.mark.parametrize(
    "build",
    [layer, lambda: layer(regularization=Regularization(l1=0.5, l2=2.0)), lambda: StandardLoRAAdapter(layer(), 1, rng=0)],
    ids=["dense", "with a penalty", "adapter"],
)
def test_a_step_is_forward_backward_and_update(build):
    found, expected = build(), build()
    value, dy = MeanSquaredError().value_and_gradient(expected.forward(X), T)
    objective = value + expected.compute_auxiliary_loss()
    expected.backward(dy)
    expected.update_parameters(0.1)
    assert step(Descent(found, MeanSquaredError(), SGD(0.1))) == objective
    np.testing.assert_array_equal(found.get_parameters(), expected.get_parameters())


def test_a_step_returns_a_plain_float():
    assert type(step(Descent(layer(dtype=np.float32), MeanSquaredError(), SGD(0.1)))) is float


def test_a_step_uses_the_gradients_up():
    descent = Descent(layer(), MeanSquaredError(), SGD(0.1))
    step(descent)
    assert not descent.layer.gradients


def test_the_penalty_of_a_frozen_layer_does_not_count():
    penalised = layer(regularization=Regularization(l2=2.0))
    model = Sequential([penalised, DenseLayer(1, 1, rng=0)], frozen=["0"])
    expected = MeanSquaredError()(model.predict(X), T)
    assert step(Descent(model, MeanSquaredError(), SGD(0.1))) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_undoes_the_last_step(value):
    descent = Descent(layer(), MeanSquaredError(), SGD(0.1))
    step(descent)
    before = descent.layer.get_parameters()
    step(descent)
    assert (descent.layer.get_parameters() != before).any()
    descent.loss = Fixed(value, 1.0)
    with pytest.raises(NonFiniteError, match=f"the loss is {value}"):
        step(descent)
    np.testing.assert_array_equal(descent.layer.get_parameters(), before)


def test_a_first_loss_that_is_not_finite_leaves_everything():
    descent = Descent(layer(), Fixed(np.nan, 1.0), SGD(0.1))
    before = descent.layer.get_parameters()
    with pytest.raises(NonFiniteError):
        step(descent)
    np.testing.assert_array_equal(descent.layer.get_parameters(), before)


@pytest.mark.parametrize(
    ("optimizer", "slope"),
    [(SGD(1e300), 1e300), (SGD(0.1), np.inf), (SGD(0.1), np.nan), (Adam(0.1), np.inf), (Adam(0.1), np.nan)],
    ids=["overflow", "inf", "nan", "inf for adam", "nan for adam"],
)
def test_an_update_that_is_not_finite_is_not_applied(optimizer, slope):
    descent = Descent(layer(), Fixed(1.0, slope), optimizer)
    before = descent.layer.get_parameters()
    with pytest.raises(NonFiniteError, match=r"(weight|bias) is not finite, at a loss of 1"):
        step(descent)
    np.testing.assert_array_equal(descent.layer.get_parameters(), before)


@pytest.mark.parametrize("loss", [Fixed(np.nan, 1.0), Fixed(1.0, np.nan)], ids=["loss", "update"])
def test_no_gradient_is_left_after_a_failure(loss):
    descent = Descent(layer(), loss, SGD(0.1))
    with pytest.raises(NonFiniteError):
        step(descent)
    assert not descent.layer.gradients


def test_arrays_stay_the_same_objects_on_the_way_back():
    descent = Descent(layer(), MeanSquaredError(), SGD(0.1))
    weight = descent.layer.weight
    step(descent)
    with pytest.raises(NonFiniteError):
        step(descent, np.full((2, 2), np.inf))
    assert descent.layer.weight is weight


def test_a_step_after_a_failure_goes_on():
    descent = Descent(layer(), MeanSquaredError(), SGD(0.1))
    first = step(descent)
    with pytest.raises(NonFiniteError):
        step(descent, np.full((2, 2), np.nan))
    assert step(descent) == first


@pytest.mark.parametrize("x", [X, np.full((2, 2), np.inf)], ids=["update", "loss"])
def test_the_failed_pass_is_forgotten(x):
    descent = Descent(layer(), MeanSquaredError() if x is not X else Fixed(1.0, np.nan), SGD(0.1))
    with pytest.raises(NonFiniteError):
        step(descent, x)
    with pytest.raises(InvalidOperationError, match="forward pass first"):
        descent.layer.backward(np.ones((2, 1)))


def test_a_gradient_that_is_not_finite_does_not_reach_the_state_of_the_optimizer():
    found, expected = (Descent(layer(), MeanSquaredError(), Momentum(0.1)) for _ in range(2))
    for descent in (found, expected):
        step(descent)
    found.loss = Fixed(1.0, np.nan)
    with pytest.raises(NonFiniteError, match="the gradient of"):
        step(found)
    found.loss = expected.loss
    for _ in range(2):
        assert step(found) == step(expected)


def test_finite_gradients_whose_sum_overflows_are_taken():
    grown = Descent(layer(), MeanSquaredError(), SGD(1.0))
    gradient = np.full((2, 1), 1e308)
    grown.descend(1.0, {"weight": gradient}, {})
    np.testing.assert_array_equal(grown.layer.weight, -gradient)


def test_a_state_that_is_not_finite_is_forgotten():
    descent = Descent(layer(), Fixed(1.0, 8e307), Momentum(1e-300))
    step(descent)
    with pytest.raises(NonFiniteError, match="the update of bias"):
        step(descent)
    descent.loss = MeanSquaredError()
    assert np.isfinite([step(descent) for _ in range(3)]).all()


def test_descending_on_given_gradients_is_the_step_that_computes_them():
    found, expected = StandardLoRAAdapter(layer(), 1, rng=0), StandardLoRAAdapter(layer(), 1, rng=0)
    value, dy = MeanSquaredError().value_and_gradient(expected.forward(X), T)
    expected.backward(dy)
    before = found.get_parameters()
    descent = Descent(found, MeanSquaredError(), Adam(0.1))
    descent.descend(value, dict(expected.gradients), {})
    step(Descent(expected, MeanSquaredError(), Adam(0.1)))
    np.testing.assert_array_equal(found.get_parameters(), expected.get_parameters())
    np.testing.assert_array_equal(np.concatenate([array.ravel() for array in descent.before.values()]), before)


def test_descending_touches_only_the_part_that_trained():
    found = layer()
    before = found.weight.copy()
    gradient = np.array([[1.0], [0.0]])
    Descent(found, MeanSquaredError(), Adam(0.1)).descend(1.0, {"weight": gradient}, {"weight": (slice(1), slice(None))})
    assert found.weight[0] != before[0]
    assert found.weight[1] == before[1]
