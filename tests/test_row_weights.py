"""Weights of rows: losses and `fit` against repeated rows, rows left out, and numerical derivatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np import (
    SGD,
    Adam,
    ArgumentError,
    BinaryCrossEntropy,
    DenseLayer,
    DyLoRAAdapter,
    FunctionLoss,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    MultiLoRAAdapter,
    Sequential,
    SoftmaxCrossEntropy,
    apply_lora,
    fit,
    tanh,
)
from lora_np.functions.numerical import numerical_gradient
from lora_np.training import rank_per_row, shared_rank
from tests.test_losses import drawn


class Cubic(Loss):
    """A user's loss, which only computes a mean over rows."""

    def compute(self, predictions, targets):
        difference = predictions - targets
        n = max(len(predictions), 1)
        return (difference**3).sum() / n, 3 * difference**2 / n


ANALYTIC = [MeanSquaredError(), MeanAbsoluteError(), Huber(0.25), BinaryCrossEntropy(), SoftmaxCrossEntropy(), Cubic()]
LOSSES = [*ANALYTIC, FunctionLoss(lambda p, t: np.square(p - t).mean())]
each = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: repr(loss)[:20])

seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple)


def tolerance(loss):
    return {"rtol": 1e-6, "atol": 1e-8} if isinstance(loss, FunctionLoss) else {"rtol": 1e-12, "atol": 1e-14}


def integers(seed, rows):
    """Whole weights, some of them 0, but not all."""
    weights = np.random.default_rng(seed).integers(0, 4, rows)
    weights[0] += 1
    return weights


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("loss", ANALYTIC, ids=repr)
@given(seed=seeds, shape=shapes)
def test_the_weighted_gradient_is_that_of_the_weighted_value(loss, seed, shape):
    predictions, targets = drawn(loss, shape, seed)
    factors = np.random.default_rng(seed).uniform(0, 2, shape[0])
    value, gradient = loss.compute_weighted(predictions, targets, factors)
    expected = numerical_gradient(lambda p: loss.compute_weighted(p, targets, factors)[0], predictions)
    assert np.ndim(value) == 0
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-15)


@each
@given(seed=seeds, shape=shapes)
@settings(max_examples=30)
def test_a_whole_weight_repeats_a_row_and_0_leaves_it_out(loss, seed, shape):
    predictions, targets = drawn(loss, shape, seed)
    weights = integers(seed, shape[0])
    value, gradient = loss.value_and_gradient(predictions, targets, weights)
    repeated = [array.repeat(weights, axis=0) for array in (predictions, targets)]
    expected, slopes = loss.value_and_gradient(*repeated)
    assert value == pytest.approx(expected, rel=1e-12)
    assert loss(predictions, targets, weights) == value
    first = np.cumsum(weights) - weights
    for row, weight in enumerate(weights):
        own = weight * slopes[first[row]] if weight else np.zeros(shape[1:])
        np.testing.assert_allclose(gradient[row], own, **tolerance(loss))


@given(seed=seeds, shape=shapes)
def test_ignored_labels_do_not_count_whatever_their_weight(seed, shape):
    random = np.random.default_rng(seed)
    logits, labels = random.standard_normal(shape), random.integers(0, shape[-1], shape[:-1])
    labels.flat[1:][random.random(labels.size - 1) < 0.5] = -1
    weights = integers(seed, shape[0])
    value, gradient = SoftmaxCrossEntropy().value_and_gradient(logits, labels, weights)
    expected, slopes = SoftmaxCrossEntropy().value_and_gradient(
        logits.repeat(weights, axis=0), labels.repeat(weights, axis=0)
    )
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(gradient.sum(axis=0), slopes.sum(axis=0) if len(slopes) else 0, rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(gradient[labels < 0], 0)


@each
@pytest.mark.parametrize("weight", [1, 0.1, 1e300, 5e-324])
def test_equal_weights_change_nothing_whatever_their_size(loss, weight):
    predictions, targets = drawn(loss, (5, 4))
    value, gradient = loss.value_and_gradient(predictions, targets, np.full(5, weight))
    expected, slopes = loss.value_and_gradient(predictions, targets)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, slopes, **tolerance(loss))


def test_a_worked_example():
    value, gradient = MeanSquaredError().value_and_gradient([[1, 2], [3, 4]], [[1, 0], [0, 8]], [3, 1])
    assert value == pytest.approx((3 * 4 + 25) / 8, rel=1e-15)
    np.testing.assert_allclose(gradient, [[0, 1.5], [0.75, -1]], rtol=1e-15)


@each
def test_weights_of_zero_alone_give_no_loss_and_no_gradient(loss):
    predictions, targets = drawn(loss, (3, 4))
    value, gradient = loss.value_and_gradient(predictions, targets, np.zeros(3))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


@each
def test_no_rows_have_no_loss(loss):
    empty = np.zeros((0, 3))
    value, gradient = loss.value_and_gradient(empty, empty, [])
    assert value == 0
    assert gradient.shape == (0, 3)


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_that_of_the_predictions(loss, dtype):
    predictions, targets = drawn(loss, (3, 4))
    value, gradient = loss.value_and_gradient(predictions.astype(dtype), targets, [1, 2, 0.5])
    assert type(value) is float
    assert gradient.dtype == dtype


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, 2], r"weights must have shape \(3,\), one number per row, got \(2,\)"),
        (2.0, r"weights must have shape \(3,\), one number per row, got \(\)"),
        ([[1], [2], [3]], r"got \(3, 1\)"),
        ([1, -0.5, 2], r"weights must be finite and not negative, got -0\.5"),
        ([1, np.nan, 2], "weights must be finite and not negative, got nan"),
        ([1, np.inf, 2], "weights must be finite and not negative, got inf"),
        (["a", "b", "c"], "weights must be an array of real numbers"),
        ([1j, 1, 1], "weights must be an array of real numbers"),
    ],
)
def test_bad_weights_are_refused(weights, words):
    with pytest.raises(ArgumentError, match=words):
        MeanSquaredError()(np.zeros((3, 2)), np.zeros((3, 2)), weights)
    model = DenseLayer(2, 2, rng=0)
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=words):
        fit(model, (np.zeros((3, 2)), np.ones((3, 2))), MeanSquaredError(), SGD(0.1), 1, 3, weights=weights)
    np.testing.assert_array_equal(model.get_parameters(), before)


def test_one_row_has_no_weights():
    with pytest.raises(ArgumentError, match=r"weights need predictions with at least two axes, got shape \(3,\)"):
        MeanSquaredError()(np.zeros(3), np.zeros(3), np.ones(3))


# ---------------------------------------------------------------- fit

ROWS = 11
RNG = np.random.default_rng(0)
X, T, LABELS = RNG.standard_normal((ROWS, 4)), RNG.standard_normal((ROWS, 3)), RNG.integers(0, 3, ROWS)
LABELS[[2, 5]] = -1
WEIGHTS = np.array([2, 0, 1, 3, 1, 1, 0, 4, 1, 2, 1])
REPEATED = np.arange(ROWS).repeat(WEIGHTS)
TASKS = np.array([["a", "b", None][i % 3] for i in range(ROWS)], object)


def base():
    return Sequential([DenseLayer(4, 5, tanh, rng=1), DenseLayer(5, 3, rng=2)])


def dylora():
    return with_branches(apply_lora(base(), DyLoRAAdapter, max_rank=3, active_ranks=[1, 2, 3], rng=3))


def multilora():
    adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=1), "a", 2, rng=3)
    adapter.add_task("b", 3)
    return with_branches(adapter)


def with_branches(model):
    """With B drawn, so that A has gradients."""
    random = np.random.default_rng(4)
    for name, array in model.named_parameters().items():
        if name.endswith("matrix_b"):
            model.set_parameter(name, random.standard_normal(array.shape))
    return model


CASES = {
    "values": (base, MeanSquaredError(), T, {}),
    "labels": (base, SoftmaxCrossEntropy(), LABELS, {}),
    "ranks": (dylora, Huber(), T, {"rank_schedule": shared_rank}),
    "tasks": (multilora, MeanSquaredError(), T, {"tasks": TASKS}),
    "tasks apart": (multilora, SoftmaxCrossEntropy(), LABELS, {"tasks": TASKS, "average": "task"}),
    "a user's loss": (base, Cubic(), T, {}),
}
cases = pytest.mark.parametrize(("build", "loss", "targets", "options"), CASES.values(), ids=CASES.keys())


def trained(build, loss, targets, options, rows=slice(None), batch_size=100, **more):
    model = build()
    options = options | ({"tasks": options["tasks"][rows]} if "tasks" in options else {})
    history = fit(model, (X[rows], targets[rows]), loss, Adam(0.05, epsilon=1e-3), 3, batch_size, **options, **more)
    return model.get_parameters(), history


@cases
def test_a_whole_weight_trains_as_repeated_rows_do(build, loss, targets, options):
    weighted, history = trained(build, loss, targets, options, weights=WEIGHTS, shuffle=False, rng=0)
    repeated, expected = trained(build, loss, targets, options, REPEATED, shuffle=False, rng=0)
    np.testing.assert_allclose(weighted, repeated, rtol=0, atol=1e-12)
    np.testing.assert_allclose(history.step_losses, expected.step_losses, rtol=1e-12)
    np.testing.assert_allclose(history.epoch_losses, expected.epoch_losses, rtol=1e-12)


@cases
def test_rows_with_weight_0_might_as_well_be_absent(build, loss, targets, options):
    kept = np.flatnonzero(WEIGHTS)
    weighted, history = trained(build, loss, targets, options, batch_size=3, weights=WEIGHTS > 0, rng=0)
    without, expected = trained(build, loss, targets, options, kept, 3, weights=np.ones(len(kept)), rng=0)
    np.testing.assert_array_equal(weighted, without)
    assert history.step_losses == expected.step_losses


@cases
def test_equal_weights_train_as_none_do(build, loss, targets, options):
    weighted, history = trained(build, loss, targets, options, batch_size=4, weights=np.full(ROWS, 0.3), rng=0)
    plain, expected = trained(build, loss, targets, options, batch_size=4, rng=0)
    np.testing.assert_allclose(weighted, plain, rtol=0, atol=1e-12)
    np.testing.assert_allclose(history.epoch_losses, expected.epoch_losses, rtol=1e-12)


@cases
@pytest.mark.parametrize("schedule", [shared_rank, rank_per_row])
def test_accumulated_steps_equal_those_on_all_rows(build, loss, targets, options, schedule):
    options = options | {"weights": WEIGHTS + 0.5, "rng": 1, "rank_schedule": schedule}
    whole, expected = trained(build, loss, targets, options, batch_size=9)
    parts, history = trained(build, loss, targets, options, batch_size=3, accumulate=3)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-11)
    np.testing.assert_allclose(history.epoch_losses, expected.epoch_losses, rtol=1e-11)


def test_the_loss_of_an_epoch_is_weighted():
    _, history = trained(base, MeanSquaredError(), T, {}, batch_size=3, weights=WEIGHTS, shuffle=False)
    weights = WEIGHTS[WEIGHTS > 0]
    sums = np.add.reduceat(weights, np.arange(0, len(weights), 3))
    expected = (np.reshape(history.step_losses, (3, -1)) * sums).sum(axis=1) / weights.sum()
    np.testing.assert_allclose(history.epoch_losses, expected, rtol=1e-13)


def test_validation_rows_have_weights_too():
    model = base()
    history = fit(model, (X, T), MeanSquaredError(), SGD(0.1), 1, 4, rng=0, validation=(X, T, None, WEIGHTS))
    assert history.validation_losses == [pytest.approx(MeanSquaredError()(model.predict(X[REPEATED]), T[REPEATED]))]


def test_validation_rows_are_weighted_in_each_task():
    model, (_, loss, targets, options) = multilora(), CASES["tasks apart"]
    history = fit(model, (X, targets), loss, SGD(0.1), 1, 4, rng=0, validation=(X, targets, TASKS, WEIGHTS), **options)
    parts = [np.flatnonzero(task == TASKS).repeat(WEIGHTS[task == TASKS]) for task in ("a", "b", None)]
    losses = [loss(model.predict(X[part], tasks=TASKS[part].tolist()), targets[part]) for part in parts]
    assert history.validation_losses == [pytest.approx(sum(losses))]


def test_weights_of_any_size_train():
    huge, _ = trained(base, MeanSquaredError(), T, {}, batch_size=4, weights=WEIGHTS * 4e307, rng=0)
    plain, _ = trained(base, MeanSquaredError(), T, {}, batch_size=4, weights=WEIGHTS, rng=0)
    np.testing.assert_allclose(huge, plain, atol=1e-12)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(ArgumentError, match="weights must contain a number greater than 0 for a row with a label"):
        trained(base, MeanSquaredError(), T, {}, weights=np.zeros(ROWS))
    with pytest.raises(ArgumentError, match="weights must contain a number greater than 0 for a row with a label"):
        trained(base, SoftmaxCrossEntropy(), LABELS, {}, weights=LABELS < 0)
