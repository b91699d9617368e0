"""`fit(..., groups=, decay=)`: each group of parameters trains as if the optimizer had its learning rate and decay."""

from functools import partial

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
from lora_np.distributed import fit_shards
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


@pytest.mark.parametrize(("layers", "end"), [(2, r"1.bias$"), (3, r"1.bias, \.\.\.$")])
def test_up_to_four_names_are_shown(layers, end):
    model = Sequential([DenseLayer(4, 3, rng=0), *(DenseLayer(3, 3, rng=0) for _ in range(layers - 1))])
    with pytest.raises(ArgumentError, match=end):
        train(model, SGD(0.1), groups={"other": 1.0})


def test_a_parameter_decays_as_with_its_own_optimizer():
    def outcome(weight_decay, **options):
        return train(adapted(), AdamW(0.05, weight_decay=weight_decay), epochs=3, **options)

    plain, half, none = outcome(0.4), outcome(0.2), outcome(0.0)
    one = {"up.*": 0.0}
    for patterns, expected in (({"*": 0.5}, half), ({"*": 0.0}, none), ({"*_a": 1.0}, plain)):
        actual = outcome(0.4, decay=patterns)
        for name, p in expected.items():
            np.testing.assert_array_equal(actual[name], p)
    model, by_hand = adapted(), adapted()
    train(model, AdamW(0.05, weight_decay=0.4), epochs=3, decay=one, groups={"*_b": 3.0}, shuffle=False)
    optimizers = {(d, g): AdamW(0.05 * g, weight_decay=0.4 * d) for d in (0, 1) for g in (1, 3)}
    for batch in [*np.arange(12).reshape(3, 4)] * 3:
        _, dy = MeanSquaredError().value_and_gradient(by_hand.forward(X[batch]), T[batch])
        by_hand.backward(dy)
        updates = {key: optimizer.updates(by_hand) for key, optimizer in optimizers.items()}
        names = list(by_hand.named_parameters())
        keys = {name: (0 if name.startswith("up.") else 1, 3 if name.endswith("_b") else 1) for name in names}
        by_hand.apply_updates({name: updates[keys[name]][name] for name in names})
    for name, p in by_hand.named_parameters().items():
        np.testing.assert_allclose(model.named_parameters()[name], p, rtol=0, atol=1e-12, err_msg=name)


def test_the_first_matching_decay_counts_and_the_optimizer_keeps_its_own():
    optimizer = AdamW(0.05, weight_decay=0.4)
    first = train(adapted(), optimizer, decay={"up.*_b": 0.0, "up.*": 2.0})
    assert optimizer.weight_decay == 0.4
    listed = {"up.lora.matrix_a": 2.0, "up.lora.matrix_b": 0.0}
    for name, p in train(adapted(), AdamW(0.05, weight_decay=0.4), decay=listed).items():
        np.testing.assert_array_equal(first[name], p)
    with pytest.raises(RuntimeError):
        train(adapted(), optimizer, decay={"*": 0.0}, callbacks=[lambda _: (_ for _ in ()).throw(RuntimeError)])
    assert optimizer.weight_decay == 0.4


@pytest.mark.parametrize("make", [SGD, Momentum, Adam, lambda rate: AdamW(rate, weight_decay=0.0)])
def test_decay_needs_an_optimizer_with_weight_decay(make):
    with pytest.raises(ArgumentError, match=r"decay requires an optimizer with weight decay, such as AdamW\(\), got"):
        train(adapted(), make(0.1), decay={"*": 0.0})


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        ({"*.bias": 0.0}, r"decay: the pattern '\*.bias' matches none of .* parameters up.lora.matrix_a"),
        ({"*": -1.0}, r"decay\['\*'\] must be at least 0"),
        ({1: 2.0}, "decay must map patterns .* got the key 1"),
        (0.0, "decay must"),
    ],
)
def test_bad_decay_is_refused_before_the_first_step(decay, message):
    model = adapted()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=message):
        train(model, AdamW(0.1), decay=decay)
    np.testing.assert_array_equal(model.get_parameters(), before)


def data():
    return X, T


def test_shards_take_groups_and_decay_too(tmp_path):
    options = {"groups": {"*_b": 3.0}, "decay": {"up.*": 0.0}, "rng": 1}
    whole, sharded, file = adapted(), adapted(), tmp_path / "run.npz"
    train(whole, AdamW(0.05, weight_decay=0.4), epochs=2, **{name: options[name] for name in ("groups", "decay")})
    run = partial(fit_shards, sharded, [data], MeanSquaredError(), checkpoint=file, resume=True)
    run(AdamW(0.05, weight_decay=0.4), 2, 4, **options)
    np.testing.assert_array_equal(sharded.get_parameters(), whole.get_parameters())
    with pytest.raises(ArgumentError, match=r"decay is .*'up.lora.matrix_a': 0.0.* in the file, None here"):
        run(AdamW(0.05, weight_decay=0.4), 3, 4, **options | {"decay": None})
