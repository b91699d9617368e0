"""Initializers: the distribution, dtype and reproducibility of their values."""

from functools import partial

import numpy as np
import pytest

from lora_np import ArgumentError, DenseLayer
from lora_np.functions import initializers
from lora_np.functions.initializers import glorot_normal, glorot_uniform, he_normal, he_uniform, normal, uniform, zeros

SHAPE = (200, 400)

RANDOM = {
    "normal": (partial(normal, std=0.5), 0.5, np.inf),
    "uniform": (partial(uniform, limit=3.0), 3 / 3**0.5, 3.0),
    "glorot_normal": (glorot_normal, (2 / 600) ** 0.5, np.inf),
    "glorot_uniform": (glorot_uniform, (2 / 600) ** 0.5, 0.1),
    "he_normal": (he_normal, 0.1, np.inf),
    "he_uniform": (he_uniform, 0.1, 0.03**0.5),
}

each_random = pytest.mark.parametrize(("initializer", "std", "limit"), RANDOM.values(), ids=RANDOM.keys())
each = pytest.mark.parametrize("initializer", [zeros, *(row[0] for row in RANDOM.values())], ids=["zeros", *RANDOM.keys()])


def draw(initializer, seed=0, dtype=np.float64, shape=SHAPE):
    return initializer(shape, np.dtype(dtype), np.random.default_rng(seed))


@each_random
def test_mean_and_standard_deviation(initializer, std, limit):
    values = draw(initializer)
    # Within six standard errors of the mean and of the standard deviation.
    assert abs(values.mean()) < 6 * std / values.size**0.5
    assert values.std() == pytest.approx(std, rel=6 / (2 * values.size) ** 0.5)


@each_random
def test_limits(initializer, std, limit):
    largest = np.abs(draw(initializer)).max()
    assert largest <= limit
    assert largest > (0.999 * limit if np.isfinite(limit) else 3.5 * std)


@each_random
def test_equal_seeds_give_equal_values_and_different_seeds_different_ones(initializer, std, limit):
    np.testing.assert_array_equal(draw(initializer, 1), draw(initializer, 1))
    assert (draw(initializer, 1) != draw(initializer, 2)).mean() > 0.99


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1)], ids=str)
def test_shape_and_dtype(initializer, dtype, shape):
    values = draw(initializer, dtype=dtype, shape=shape)
    assert values.shape == shape
    assert values.dtype == dtype


@each
def test_float32_values_are_the_float64_values_rounded(initializer):
    np.testing.assert_array_equal(draw(initializer, dtype=np.float32), draw(initializer).astype(np.float32))


@each
def test_a_layer_takes_it(initializer):
    layer = DenseLayer(200, 400, initializer=initializer, rng=3)
    np.testing.assert_array_equal(layer.weight, draw(initializer, 3))


def test_zeros_draws_no_random_numbers():
    random = np.random.default_rng(0)
    assert not zeros((2, 3), np.dtype(float), random).any()
    assert random.random() == np.random.default_rng(0).random()


def test_glorot_counts_inputs_and_outputs_and_he_only_inputs():
    tall, wide = ((300, 20), (20, 300))
    assert draw(glorot_uniform, shape=tall).std() == pytest.approx(draw(glorot_uniform, shape=wide).std(), rel=0.05)
    assert draw(he_uniform, shape=wide).std() == pytest.approx(15**0.5 * draw(he_uniform, shape=tall).std(), rel=0.05)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_do_not_depend_on_the_pieces_in_which_they_are_drawn(monkeypatch, dtype):
    def drawn(initializer):
        return initializer((7, 5), np.dtype(dtype), np.random.default_rng(0))

    whole = [drawn(initializer) for initializer in (glorot_uniform, he_normal)]
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(whole[0], random.uniform(-(0.5**0.5), 0.5**0.5, (7, 5)).astype(dtype))
    monkeypatch.setattr(initializers, "PIECE", 4)
    for initializer, expected in zip((glorot_uniform, he_normal), whole, strict=True):
        np.testing.assert_array_equal(drawn(initializer), expected)


@pytest.mark.parametrize(
    ("initializer", "message"),
    [
        ("he_normal", r"^initializer must be callable, got 'he_normal'$"),
        (lambda shape, dtype, rng: np.ones(2), r"^initializer's result must have shape \(2, 3\), got \(2,\)$"),
        (lambda shape, dtype, rng: "ones", r"^initializer's result must "),
    ],
)
def test_an_initializer_must_return_an_array_of_the_shape(initializer, message):
    with pytest.raises(ArgumentError, match=message):
        initializers.initial(initializer, (2, 3), np.dtype(float), np.random.default_rng(0))
