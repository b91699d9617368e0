"""VeRA: frozen random factors, two trained vectors."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import ArgumentError, ArgumentOutOfRangeError, DenseLayer, VeRAAdapter, VeRALayer
from lora_np.run import Run
from tests.kinds import IN, OUT, batch, bits, randomised


@pytest.fixture
def worked():
    layer = VeRALayer(3, 2, 2, alpha=4)
    values = {
        "projection_a": [[1, 0], [0, 1], [1, 1]],
        "projection_b": [[1, 2], [3, 4]],
        "vector_d": [2, -1],
        "vector_b": [1, 3],
    }
    assert layer.load_weights(values, strict=True).success
    return layer


def test_an_example_worked_by_hand(worked):
    # h = (4, 5), h d = (8, -5), t = 2 (-7, -4), y = t b
    assert_array_equal(worked.forward([1, 2, 3]), [-14, -24])
    # dq = 2 (1·1, 2·3) Bᵀ = (26, 54)
    assert_array_equal(worked.backward([1, 2]), [52, -54, -2])
    assert_array_equal(worked.gradients["vector_d"], [104, 270])
    assert_array_equal(worked.gradients["vector_b"], [-14, -16])
    assert_array_equal(worked.merge_weights(), [[4, 24], [-6, -24], [-2, 0]])


def test_the_example_at_rank_one(worked):
    # h = 4, h d = 8, t = 2 (8, 16), y = t b
    y, cache = worked.apply(np.array([1.0, 2, 3]), Run(), rank=1)
    dx, gradients = worked.vjp(np.array([1.0, 2]), cache)
    assert_array_equal(y, [16, 96])
    assert_array_equal(dx, [52, 0, 52])
    assert_array_equal(gradients["vector_d"], [104, 0])
    assert_array_equal(gradients["vector_b"], [16, 64])
    assert_array_equal(worked.merge_weights(rank=1), [[4, 24], [0, 0], [4, 24]])


def test_the_factors_never_train(x, dy):
    adapter = randomised(VeRAAdapter(DenseLayer(IN, OUT), 4, rng=0))
    layer = adapter.lora_layer
    before = layer.projection_a.tobytes(), layer.projection_b.tobytes()
    adapter.forward(x)
    adapter.backward(dy)
    adapter.update_parameters(0.5)
    assert list(adapter.named_parameters()) == ["lora.vector_d", "lora.vector_b"]
    assert (layer.projection_a.tobytes(), layer.projection_b.tobytes()) == before


def test_few_parameters_train():
    assert VeRAAdapter(DenseLayer(64, 10), 4).parameter_count == 4 + 10


def test_the_initial_vectors():
    layer = VeRAAdapter(DenseLayer(IN, OUT), 4, initial_d=0.5).lora_layer
    assert_array_equal(layer.vector_d, [0.5] * 4)
    assert_array_equal(layer.vector_b, np.zeros(OUT))
    assert_array_equal(VeRALayer(IN, OUT, 2).vector_d, [0.1] * 2)


def test_the_factors_are_drawn_as_for_relu_layers():
    layer = VeRALayer(400, 300, 200, rng=0)
    for factor, inputs in [(layer.projection_a, 400), (layer.projection_b, 200)]:
        assert np.abs(factor).max() <= np.sqrt(6 / inputs)
        assert factor.std() == pytest.approx(np.sqrt(2 / inputs), rel=0.02)


def test_layers_with_the_same_seed_have_the_same_factors():
    first, second, other = (VeRALayer(IN, OUT, 2, rng=seed).named_parameters(frozen=True) for seed in (3, 3, 4))
    assert bits(first) == bits(second) != bits(other)


def test_the_rank_has_no_upper_limit(x):
    adapter = randomised(VeRAAdapter(DenseLayer(IN, OUT), 50, rng=0))
    assert adapter.rank == 50
    assert_allclose(adapter.merge_to_original_layer().predict(x), adapter.predict(x), rtol=1e-11)


@pytest.mark.parametrize("rank", [2**62, 10**400], ids=["2**62", "10**400"])
def test_a_rank_too_large_for_any_array_is_refused(rank):
    with pytest.raises(ArgumentOutOfRangeError, match="rank"):
        VeRALayer(IN, OUT, rank)


@pytest.mark.parametrize("initial_d", [np.nan, np.inf, "a", None, [0.1]], ids=repr)
def test_a_bad_initial_d_is_refused(initial_d):
    with pytest.raises(ArgumentError, match="initial_d"):
        VeRAAdapter(DenseLayer(IN, OUT), 2, initial_d=initial_d)


def test_flops_by_hand():
    # x A: 2·5·2; d and s: 2·2; B: 2·2·3; b: 3
    assert VeRALayer(5, 3, 2).estimate_flops() == 20 + 4 + 12 + 3


def test_training_does_not_change_the_base(x):
    base = DenseLayer(IN, OUT, rng=0)
    adapter = VeRAAdapter(base, 3, rng=0)
    target = base.predict(x) + batch(4, OUT, seed=8)
    losses = []
    for _ in range(200):
        error = adapter.forward(x) - target
        losses.append((error**2).mean())
        adapter.backward(2 * error / error.size)
        adapter.update_parameters(0.3)
    assert losses[-1] < 0.8 * losses[0]
