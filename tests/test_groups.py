"""`fit(..., groups=)`: each group of parameters trains as if the optimizer had its learning rate."""

import numpy as np
import pytest

from lora_np import (
    SGD,
    Adam,
    AdamW,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    MeanSquaredError,
    Momentum,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    fit,
    tanh,
)
from lora_np.training import LinearDecay

RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((12, 4)), RNG.standard_normal((12, 3))
OPTIMIZERS = [SGD, Momentum, Adam, lambda rate: AdamW(rate, weight_decay=0.5)]


def adapted():
    base = Sequential({"up": DenseLayer(4, 5, tanh, rng=1), "down": DenseLayer(5, 3, rng=2)})
    return apply_lora(base, StandardLoRAAdapter, rank=2, rng=3)


def train(model, optimizer, epochs=1, **options):
    fit(model, (X, T), MeanSquaredError(), optimizer, epochs, 4, rng=1, **options)
    return {name: p.copy() for name, p in model.named_parameters().items()}


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_group_trains_as_with_its_own_optimizer(make):
    model, by_hand, optimizers = adapted(), adapted(), {"a": make(0.01), "b": make(0.16)}
    actual = train(model, make(0.01), epochs=3, groups={"*.matrix_b": 16.0}, shuffle=False)
    for batch in [*np.arange(12).reshape(3, 4)] * 3:
        _, dy = MeanSquaredError().value_and_gradient(by_hand.forward(X[batch]), T[batch])
        by_hand.backward(dy)
        updates = {letter: optimizer.updates(by_hand) for letter, optimizer in optimizers.items()}
        by_hand.apply_updates({name: updates[name[-1]][name] for name in updates["a"]})
    for name, p in by_hand.named_parameters().items():
        np.testing.assert_allclose(actual[name], p, rtol=0, atol=1e-12, err_msg=name)


def test_the_first_matching_pattern_counts_and_others_train_as_before():
    start, grouped, plain = adapted().named_parameters(), adapted(), adapted()
    for model, groups in [(grouped, {"up.*_b": 0.0, "*.matrix_b": 3.0}), (plain, None)]:
        fit(model, (X, T), MeanSquaredError(), SGD(0.1), 1, 12, groups=groups, shuffle=False)
    after, expected = grouped.named_parameters(), plain.named_parameters()
    np.testing.assert_array_equal(after["up.lora.matrix_b"], start["up.lora.matrix_b"])
    moved = expected["down.lora.matrix_b"] - start["down.lora.matrix_b"]
    np.testing.assert_allclose(after["down.lora.matrix_b"] - start["down.lora.matrix_b"], 3 * moved, rtol=1e-12)
    np.testing.assert_array_equal(after["down.lora.matrix_a"], expected["down.lora.matrix_a"])


def test_groups_multiply_the_schedule():
    slow = train(adapted(), SGD(0.01), groups={"*": 2.0}, schedule=LinearDecay())
    fast = train(adapted(), SGD(0.02), schedule=LinearDecay())
    for name, p in fast.items():
        np.testing.assert_allclose(slow[name], p, rtol=1e-12)


def test_components_of_unused_ranks_stay():
    model = DyLoRAAdapter(DenseLayer(4, 3, rng=1), 2, [1, 2], rng=3)
    before = model.lora_layer.matrix_a.copy()
    train(model, Adam(0.1), groups={"*": 16.0}, rank_schedule=lambda *_: 1)
    np.testing.assert_array_equal(model.lora_layer.matrix_a[:, 1], before[:, 1])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"*.matrix_c": 2.0},
            r"groups: the pattern '\*.matrix_c' matches none of .* parameters up.lora.matrix_a",
        ),
        ({"*.matrix_b": -1.0}, r"groups\['\*.matrix_b'\] must be at least 0"),
        ({"*.matrix_b": "fast"}, r"groups\['\*.matrix_b'\] must be a real number"),
        ({1: 2.0}, "groups must map patterns .* got the key 1"),
        ("*.matrix_b", "groups must"),
    ],
)
def test_bad_groups_are_refused_before_the_first_step(groups, message):
    model = adapted()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=message):
        train(model, SGD(0.1), groups=groups)
    np.testing.assert_array_equal(model.get_parameters(), before)
