"""Optimizers compared with textbook versions that process one number at a time."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    SGD,
    Adam,
    AdamW,
    ArgumentError,
    ArgumentOutOfRangeError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    Momentum,
    NotSupportedError,
    Optimizer,
)

SHAPE = (3, 4)
WHOLE = None
FIRST_COLUMN = (slice(None), slice(0, 1))
TWO_COLUMNS = (slice(None), slice(0, 2))
MIDDLE_COLUMNS = (slice(None), slice(1, 3))
FIRST_ROW = (slice(0, 1), slice(None))
BLOCK = (slice(1, 3), slice(2, 4))
PARTS = [WHOLE, FIRST_COLUMN, TWO_COLUMNS, MIDDLE_COLUMNS, FIRST_ROW, BLOCK]


# ---------------------------------------------------------------- the textbook, one number at a time


def sgd(parameter, gradients, eta):
    for g in gradients:
        parameter -= eta * g
    return parameter


def momentum(parameter, gradients, eta, mu, nesterov=False):
    velocity = 0.0
    for g in gradients:
        velocity = mu * velocity + g
        parameter -= eta * (g + mu * velocity if nesterov else velocity)
    return parameter


def adam(parameter, gradients, eta, beta1, beta2, epsilon, decay=0.0):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        parameter -= eta * (m_hat / (math.sqrt(v_hat) + epsilon) + decay * parameter)
    return parameter


RULES = {
    "sgd": (lambda: SGD(0.1), lambda p, gs: sgd(p, gs, 0.1)),
    "momentum": (lambda: Momentum(0.1, 0.8), lambda p, gs: momentum(p, gs, 0.1, 0.8)),
    "momentum defaults": (lambda: Momentum(0.1), lambda p, gs: momentum(p, gs, 0.1, 0.9)),
    "nesterov": (lambda: Momentum(0.1, 0.8, nesterov=True), lambda p, gs: momentum(p, gs, 0.1, 0.8, nesterov=True)),
    "adam": (lambda: Adam(0.1, 0.8, 0.95, 1e-3), lambda p, gs: adam(p, gs, 0.1, 0.8, 0.95, 1e-3)),
    "adam defaults": (lambda: Adam(), lambda p, gs: adam(p, gs, 1e-3, 0.9, 0.999, 1e-8)),
    "adam of the last gradient": (lambda: Adam(0.1, 0.0, 0.5), lambda p, gs: adam(p, gs, 0.1, 0.0, 0.5, 1e-8)),
    "adamw": (lambda: AdamW(0.1, 0.8, 0.95, 1e-3, 0.2), lambda p, gs: adam(p, gs, 0.1, 0.8, 0.95, 1e-3, 0.2)),
    "adamw defaults": (lambda: AdamW(), lambda p, gs: adam(p, gs, 1e-3, 0.9, 0.999, 1e-8, 0.01)),
}

each = pytest.mark.parametrize(("optimizer", "textbook"), RULES.values(), ids=RULES.keys())
each_optimizer = pytest.mark.parametrize("optimizer", [rule[0] for rule in RULES.values()], ids=RULES.keys())


def masked(part, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[... if part is None else part] = True
    return mask


def run(optimizer, parameter, steps, name="p"):
    """The parameter after steps of (gradient, part)."""
    parameter = parameter.copy()
    for gradient, part in steps:
        parameter += optimizer.update(name, gradient * masked(part, gradient.shape), parameter, part)
    return parameter


def by_textbook(textbook, parameter, steps):
    """Each element separately, with the gradients of the steps that trained it."""
    result = parameter.copy()
    for index in np.ndindex(parameter.shape):
        gradients = [gradient[index] for gradient, part in steps if masked(part, parameter.shape)[index]]
        result[index] = textbook(float(parameter[index]), gradients)
    return result


def drawn(parts, seed=0, shape=SHAPE):
    random = np.random.default_rng(seed)
    return random.standard_normal(shape), [(random.standard_normal(shape), part) for part in parts]


# ---------------------------------------------------------------- whole arrays


@each
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2)], ids=str)
def test_several_steps_agree_with_the_textbook(optimizer, textbook, shape):
    parameter, steps = drawn([WHOLE] * 6, shape=shape)
    found = run(optimizer(), parameter, steps)
    np.testing.assert_allclose(found, by_textbook(textbook, parameter, steps), rtol=1e-11)


@pytest.mark.parametrize(
    ("optimizer", "updates"),
    [
        (SGD(0.5), [-1, -2, 0]),
        (Momentum(0.5, 0.5), [-1, -2.5, -1.25]),
        (Momentum(0.5, 0.5, nesterov=True), [-1.5, -3.25, -0.625]),
    ],
    ids=["sgd", "momentum", "nesterov"],
)
def test_worked_updates(optimizer, updates):
    optimizer, parameter = copy.deepcopy(optimizer), np.zeros(1)
    assert [optimizer.update("p", np.array([g]), parameter)[0] for g in (2.0, 4.0, 0.0)] == updates


@pytest.mark.parametrize("gradient", [1e-4, 1.0, -1e4])
def test_bias_correction_makes_the_first_step_the_learning_rate(gradient):
    update = Adam(0.25).update("p", np.array([gradient]), np.zeros(1))
    np.testing.assert_allclose(update, [-0.25 * np.sign(gradient)], rtol=1e-3)


def test_adamw_decay_does_not_pass_through_the_moments():
    update = AdamW(0.5, weight_decay=0.25).update("p", np.zeros(1), np.array([8.0]))
    np.testing.assert_array_equal(update, [-1.0])


def test_adam_does_not_decay():
    np.testing.assert_array_equal(Adam(0.5).update("p", np.zeros(1), np.array([8.0])), [0.0])


@each_optimizer
def test_each_name_has_separate_state(optimizer):
    parameter, steps = drawn([WHOLE] * 4)
    alone, together = optimizer(), optimizer()
    expected = run(alone, parameter, steps)
    found = parameter.copy()
    for gradient, part in steps:
        together.update("other", 7 * gradient, parameter)
        found += together.update("p", gradient, found, part)
    np.testing.assert_array_equal(found, expected)


# ---------------------------------------------------------------- parts


@each
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=8), seed=st.integers(0, 2**32 - 1))
def test_parts_agree_with_the_textbook_for_each_element(optimizer, textbook, parts, seed):
    parameter, steps = drawn(parts, seed)
    found = run(optimizer(), parameter, steps)
    np.testing.assert_allclose(found, by_textbook(textbook, parameter, steps), rtol=1e-11, atol=1e-14)


@each_optimizer
@pytest.mark.parametrize("part", PARTS[1:], ids=str)
def test_the_update_is_exactly_zero_outside_the_part(optimizer, part):
    rule = optimizer()
    parameter, steps = drawn([WHOLE, WHOLE])
    run(rule, parameter, steps)
    update = rule.update("p", masked(part) * 1.0, parameter, part)
    np.testing.assert_array_equal(update != 0, masked(part))


@each_optimizer
def test_the_state_outside_the_part_does_not_change(optimizer):
    parameter, (first, last) = drawn([WHOLE, WHOLE])
    rule = optimizer()
    parameter = run(rule, parameter, [first])
    rested = copy.deepcopy(rule)
    run(rule, parameter, [(np.full(SHAPE, 9.0), FIRST_COLUMN)] * 5)
    busy, idle = (r.update("p", last[0], parameter) for r in (rule, rested))
    np.testing.assert_allclose(busy[:, 1:], idle[:, 1:], rtol=1e-14)


@pytest.mark.parametrize("optimizer", [Momentum(0.1), Adam(0.1), AdamW(0.1)], ids=repr)
def test_the_state_inside_the_part_changes(optimizer):
    parameter, (first, last) = drawn([WHOLE, WHOLE])
    run(optimizer, parameter, [first])
    rested = copy.deepcopy(optimizer)
    run(optimizer, parameter, [(np.full(SHAPE, 9.0), FIRST_COLUMN)] * 5)
    busy, idle = (r.update("p", last[0], parameter) for r in (optimizer, rested))
    assert (busy[:, 0] != idle[:, 0]).all()


@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_a_dylora_step_changes_only_the_components_it_trained(mode):
    adapter = DyLoRAAdapter(DenseLayer(5, 4, rng=0), 4, [1, 2, 4], mode=mode, rng=0)
    adapter.lora_layer.matrix_b[...] = np.random.default_rng(1).standard_normal((4, 4))
    optimizer = AdamW(0.1, weight_decay=0.5)
    for rank in (4, 2):
        adapter.backward(np.ones_like(adapter.forward(np.ones((3, 5)), rank=rank)))
        before = adapter.lora_layer.get_matrix_a(), adapter.lora_layer.get_matrix_b()
        adapter.apply_updates(optimizer.updates(adapter))
    moved_a = (adapter.lora_layer.matrix_a != before[0]).any(axis=0)
    moved_b = (adapter.lora_layer.matrix_b != before[1]).any(axis=1)
    expected = [mode == "full", True, False, False]
    np.testing.assert_array_equal(moved_a, expected)
    np.testing.assert_array_equal(moved_b, expected)


# ---------------------------------------------------------------- the textbook form in the code


rates, decays = st.floats(1e-3, 1.0), st.floats(0.0, 0.99)
momentums = st.builds(Momentum, rates, decays, st.booleans())
adams = st.builds(Adam, rates, decays, st.floats(0.5, 0.999), st.floats(1e-8, 1e-2))
adamws = st.builds(AdamW, rates, decays, st.floats(0.5, 0.999), st.floats(1e-8, 1e-2), st.floats(0.0, 2.0))
dtypes = st.sampled_from([np.float32, np.float64])
sequences_of_parts = st.lists(st.sampled_from(PARTS), min_size=1, max_size=8)
seeds = st.integers(0, 2**32 - 1)


def in_dtype(dtype, parts, seed):
    """A parameter, and the steps as (gradient, part, index of the part)."""
    parameter, steps = drawn(parts, seed)
    wholes = [((gradient * masked(part)).astype(dtype), part, ... if part is None else part) for gradient, part in steps]
    return parameter.astype(dtype), wholes


def assert_equal_up_to_rounding(found, expected, scale=1.0):
    tolerance = 100 * np.finfo(found.dtype).eps
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


@given(optimizer=momentums, dtype=dtypes, parts=sequences_of_parts, seed=seeds)
def test_momentum_in_place_equals_its_textbook_form_to_the_bit(optimizer, dtype, parts, seed):
    parameter, steps = in_dtype(dtype, parts, seed)
    v = np.zeros_like(parameter)
    for gradient, part, here in steps:
        expected = np.zeros_like(parameter)
        expected[here], v[here] = optimizer._textbook(gradient[here], v[here])
        update = optimizer.update("p", gradient, parameter, part)
        np.testing.assert_array_equal(update, expected)
        np.testing.assert_array_equal(optimizer.get_state()["p:velocity"], v)
        parameter += update


@given(optimizer=adams | adamws, dtype=dtypes, parts=sequences_of_parts, seed=seeds)
def test_adam_in_place_agrees_with_its_textbook_form(optimizer, dtype, parts, seed):
    parameter, steps = in_dtype(dtype, parts, seed)
    m, v, t = np.zeros_like(parameter), np.zeros_like(parameter), np.zeros(SHAPE, int)
    for gradient, part, here in steps:
        expected = np.zeros_like(parameter)
        t[here] += 1
        expected[here], m[here], v[here] = optimizer._textbook(gradient[here], parameter[here], m[here], v[here], t[here])
        update = optimizer.update("p", gradient, parameter, part)
        assert_equal_up_to_rounding(update, expected, optimizer.learning_rate)
        state = optimizer.get_state()
        assert_equal_up_to_rounding(state["p:first"], m)
        assert_equal_up_to_rounding(state["p:second"], v)
        np.testing.assert_array_equal(np.broadcast_to(state["p:steps"], SHAPE), t)
        parameter += update


# ---------------------------------------------------------------- layers


def trained_once(optimizer, dtype=np.float64):
    """A layer with pending gradients, and the updates for them."""
    layer = DenseLayer(3, 2, dtype=dtype, rng=0)
    layer.backward(layer.forward(np.arange(12.0).reshape(4, 3)))
    return layer, optimizer.updates(layer)


@each_optimizer
def test_updates_cover_every_gradient(optimizer):
    layer, updates = trained_once(optimizer())
    assert updates.keys() == layer.gradients.keys() == {"weight", "bias"}
    other = optimizer()
    for name, gradient in layer.gradients.items():
        np.testing.assert_array_equal(updates[name], other.update(name, gradient, layer.named_parameters()[name]))


@each_optimizer
def test_computing_updates_modifies_no_array(optimizer):
    layer = DenseLayer(3, 2, rng=0)
    layer.backward(layer.forward(np.ones((4, 3))))
    parameters, gradients = layer.get_parameters(), layer.get_parameter_gradients()
    optimizer().updates(layer)
    np.testing.assert_array_equal(layer.get_parameters(), parameters)
    np.testing.assert_array_equal(layer.get_parameter_gradients(), gradients)


@each_optimizer
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(optimizer, dtype):
    rule = optimizer()
    for _ in range(3):
        _, updates = trained_once(rule, dtype)
    assert {update.dtype for update in updates.values()} == {np.dtype(dtype)}


@each_optimizer
def test_updates_need_a_pending_gradient(optimizer):
    layer = DenseLayer(3, 2, rng=0)
    with pytest.raises(InvalidOperationError, match="backward"):
        optimizer().updates(layer)


@each_optimizer
def test_a_step_consumes_the_gradients(optimizer):
    rule = optimizer()
    layer, updates = trained_once(rule)
    layer.apply_updates(updates)
    with pytest.raises(InvalidOperationError, match="backward"):
        rule.updates(layer)


@each
def test_reset_discards_the_state(optimizer, textbook):
    rule = optimizer()
    parameter, steps = drawn([WHOLE, FIRST_COLUMN, WHOLE])
    run(rule, parameter, drawn([WHOLE, FIRST_ROW], seed=5)[1])
    rule.reset()
    np.testing.assert_allclose(run(rule, parameter, steps), by_textbook(textbook, parameter, steps), rtol=1e-12)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        ([], {"up.a", "up.b", "down.a", "x[1]"}),
        (["up.a"], {"up.b", "down.a", "x[1]"}),
        (["*.a"], {"up.b", "x[1]"}),
        (["nothing", "up.*", "?own.*"], {"x[1]"}),
        (["x[1]"], {"up.a", "up.b", "down.a"}),  # a name, although not one that it matches as a pattern
        (["*"], set()),
    ],
)
def test_reset_discards_the_state_of_names_and_patterns(names, left):
    rule = Momentum(0.1)
    for name in ("up.a", "up.b", "down.a", "x[1]"):
        rule.update(name, np.ones(2), np.ones(2))
    with pytest.raises(ArgumentError, match="each of names must be a string, got 3"):
        rule.reset([*names, 3])
    rule.reset(iter(names))
    assert {key.partition(":")[0] for key in rule.get_state()} == left


@pytest.mark.parametrize("optimizer", [Momentum(0.1), Adam(0.1)], ids=repr)
def test_a_name_whose_shape_changed_is_refused(optimizer):
    optimizer.update("p", np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ArgumentError, match=r"state, \(2, 3\), got \(2, 4\); .* call reset\(\['p'\]\) first"):
        optimizer.update("p", np.ones((2, 4)), np.ones((2, 4)))


@each_optimizer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_continues_identically(optimizer, copied):
    rule = optimizer()
    parameter, steps = drawn([WHOLE, FIRST_COLUMN, WHOLE])
    parameter = run(rule, parameter, steps)
    twin = copied(rule)
    np.testing.assert_array_equal(run(rule, parameter, steps), run(twin, parameter, steps))


# ---------------------------------------------------------------- arguments


@each_optimizer
@pytest.mark.parametrize("rate", [np.nan, np.inf, -np.inf, None, "0.1", [0.1], 1j], ids=str)
def test_an_invalid_learning_rate_is_refused_and_the_old_one_kept(optimizer, rate):
    rule = optimizer()
    before = rule.learning_rate
    with pytest.raises(ArgumentError, match="learning_rate"):
        rule.learning_rate = rate
    assert rule.learning_rate == before
    with pytest.raises(ArgumentError, match="learning_rate"):
        type(rule)(rate)


@each_optimizer
def test_the_learning_rate_may_change_between_steps(optimizer):
    rule = optimizer()
    twin = copy.deepcopy(rule)
    rule.learning_rate = 2 * twin.learning_rate
    gradient, parameter = np.ones(SHAPE), np.ones(SHAPE)
    np.testing.assert_allclose(rule.update("p", gradient, parameter), 2 * twin.update("p", gradient, parameter))


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (Momentum, {"momentum": 1.0}),
        (Momentum, {"momentum": -0.1}),
        (Momentum, {"momentum": np.nan}),
        (Adam, {"beta1": 1.0}),
        (Adam, {"beta2": -0.1}),
        (Adam, {"epsilon": 0.0}),
        (Adam, {"epsilon": np.inf}),
        (AdamW, {"beta2": 1.0}),
        (AdamW, {"weight_decay": -0.1}),
        (AdamW, {"weight_decay": np.nan}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__name__,
)
def test_arguments_out_of_range_are_refused(optimizer, arguments):
    with pytest.raises(ArgumentOutOfRangeError, match=next(iter(arguments))):
        optimizer(0.1, **arguments)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (SGD(0.1), ["SGD(", "learning_rate=0.1"]),
        (Momentum(0.1, 0.5, nesterov=True), ["Momentum(", "learning_rate=0.1", "momentum=0.5", "nesterov="]),
        (Adam(0.1), ["Adam(", "beta1=0.9", "beta2=0.999", "epsilon=1e-08"]),
        (AdamW(0.1), ["AdamW(", "weight_decay=0.01"]),
    ],
    ids=["SGD", "Momentum", "Adam", "AdamW"],
)
def test_repr_shows_the_arguments_and_not_the_state(optimizer, words):
    optimizer.update("secret", np.ones(2), np.ones(2))
    assert all(word in repr(optimizer) for word in words)
    assert "secret" not in repr(optimizer)


def test_repr_handles_attributes_of_any_type():
    class Scheduled(Optimizer):
        def __init__(self, learning_rate, schedule):
            super().__init__(learning_rate)
            self.schedule = schedule

        def update(self, name, gradient, parameter, part=None):
            return -self.learning_rate * gradient

    assert repr(Scheduled(0.1, "cosine")) == "Scheduled(learning_rate=0.1, schedule='cosine')"


def test_a_rule_without_update_cannot_be_instantiated():
    with pytest.raises(TypeError, match="update"):
        Optimizer(0.1)


def test_a_custom_rule_needs_one_method():
    class Sign(Optimizer):
        def update(self, name, gradient, parameter, part=None):
            return -self.learning_rate * np.sign(gradient)

    layer, updates = trained_once(Sign(0.5))
    np.testing.assert_array_equal(updates["weight"], -0.5 * np.sign(layer.gradients["weight"]))


# ---------------------------------------------------------------- the state as arrays


@pytest.mark.parametrize(
    "build", [lambda: SGD(0.1), lambda: Momentum(0.1), lambda: Adam(0.1)], ids=["SGD", "Momentum", "Adam"]
)
def test_an_optimizer_given_the_state_of_another_continues_like_it(build):
    random = np.random.default_rng(0)
    first, second, parameter = build(), build(), random.normal(size=SHAPE)
    for part in PARTS:
        first.update("a:b", random.normal(size=SHAPE), parameter, part)
    state = first.get_state()
    second.set_state(state)
    gradient = random.normal(size=SHAPE)
    expected = first.update("a:b", gradient, parameter)
    np.testing.assert_array_equal(second.update("a:b", gradient, parameter), expected)
    for array in state.values():
        array[...] = 7  # both optimizers hold copies
    np.testing.assert_array_equal(second.update("a:b", gradient, parameter), first.update("a:b", gradient, parameter))


@pytest.mark.parametrize(
    ("theirs", "ours"), [(Adam(0.1), Momentum(0.1)), (Momentum(0.1), Adam(0.1)), (Adam(0.1), SGD(0.1))]
)
def test_the_state_of_a_different_type_is_refused(theirs, ours):
    theirs.update("p", np.ones(2), np.ones(2))
    before = ours.get_state()
    with pytest.raises(ArgumentError, match=f"arrays must be the state of {type(ours).__name__}, got keys "):
        ours.set_state(theirs.get_state())
    assert ours.get_state() == before == {}


def test_state_without_state_type_cannot_be_exported():
    class Counting(Optimizer):
        def update(self, name, gradient, parameter, part=None):
            self._states[name] = self._states.get(name, 0) + 1
            return -gradient / self._states[name]

    optimizer = Counting(0.1)
    assert optimizer.get_state() == {}
    optimizer.update("p", np.ones(2), np.ones(2))
    with pytest.raises(NotSupportedError, match="Counting has state but does not define state_type"):
        optimizer.get_state()
