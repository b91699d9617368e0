"""Schedules of the learning rate: their formulas, and what `fit` does with them."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import SGD, Adam, ArgumentError, ArgumentOutOfRangeError, DenseLayer, MeanSquaredError, fit
from lora_np.training import Constant, CosineDecay, LinearDecay

KINDS = [Constant, LinearDecay, CosineDecay]
X = np.random.default_rng(0).standard_normal((10, 3))
T = X @ np.ones((3, 2))


def train(optimizer, schedule=None, callbacks=(), model=None):
    """Two epochs of three steps; the parameters afterwards."""
    model = DenseLayer(3, 2, rng=0) if model is None else model
    fit(model, (X, T), MeanSquaredError(), optimizer, 2, 4, rng=1, schedule=schedule, callbacks=callbacks)
    return model.get_parameters()


@pytest.mark.parametrize("kind", KINDS)
@given(warmup=st.floats(0, 0.99), progress=st.floats(0, 1, exclude_max=True))
def test_factors_rise_during_the_warm_up_and_never_after_it(kind, warmup, progress):
    schedule = kind(warmup)
    if progress < warmup:
        assert schedule(progress) == pytest.approx(progress / warmup)
    else:
        u = (progress - warmup) / (1 - warmup)
        expected = {Constant: 1, LinearDecay: 1 - u, CosineDecay: math.cos(math.pi * u / 2) ** 2}[kind]
        assert schedule(progress) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [LinearDecay, CosineDecay])
def test_a_decay_ends_at_its_end(kind):
    schedule = kind(end=0.25)
    assert schedule(0.0) == 1
    assert schedule(1 - 1e-12) == pytest.approx(0.25)
    assert schedule(0.5) == pytest.approx(0.625)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [-0.1, 1, np.nan, "long"])
def test_a_warm_up_is_a_fraction(kind, warmup):
    with pytest.raises(ArgumentError, match="warmup must"):
        kind(warmup)


@pytest.mark.parametrize("kind", [LinearDecay, CosineDecay])
def test_a_decay_does_not_end_below_zero(kind):
    with pytest.raises(ArgumentOutOfRangeError, match="end must"):
        kind(end=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_are_values(kind):
    schedule = kind(warmup=0.25)
    assert pickle.loads(pickle.dumps(schedule)) == schedule == kind(0.25)
    assert repr(schedule).startswith(f"{kind.__name__}(warmup=0.25")


def test_each_step_has_its_factor_and_the_rate_comes_back():
    rates, optimizer = [], SGD(0.5)
    train(optimizer, lambda progress: 1 + progress, [lambda progress: rates.append(optimizer.learning_rate)])
    assert rates == [0.5 * (1 + step / 6) for step in range(6)]
    assert optimizer.learning_rate == 0.5


def test_a_linear_decay_equals_one_by_hand():
    by_hand = Adam(0.05)

    def decay(progress):
        by_hand.learning_rate = 0.05 * (1 - progress.step / progress.steps)

    np.testing.assert_array_equal(train(Adam(0.05), LinearDecay()), train(by_hand, callbacks=[decay]))


def test_without_a_schedule_the_rate_is_the_users():
    optimizer = SGD(0.5)

    def halve(progress):
        optimizer.learning_rate /= 2

    train(optimizer, callbacks=[halve])
    assert optimizer.learning_rate == 0.5 / 2**6


def test_the_rate_comes_back_after_an_error():
    optimizer = SGD(0.5)

    def stop(progress):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        train(optimizer, LinearDecay(warmup=0.5), [stop])
    assert optimizer.learning_rate == 0.5


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosine", "schedule must be callable"),
        (lambda progress: -1, "schedule must return a factor .* at 0: .* at least 0"),
        (lambda progress: 1 if progress < 0.8 else np.inf, "schedule must return a factor .* at 0.833333: .* finite"),
        (lambda progress: None, "schedule must return a factor .* real number, got None"),
    ],
)
def test_a_schedule_is_refused_before_the_first_step(schedule, message):
    model, optimizer = DenseLayer(3, 2, rng=0), Adam(0.05)
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=message):
        train(optimizer, schedule, model=model)
    np.testing.assert_array_equal(model.get_parameters(), before)
    assert (optimizer.learning_rate, optimizer.get_state()) == (0.05, {})
