"""Losses: worked examples, and gradients against numerical derivatives of the value."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    ArgumentError,
    ArgumentNullError,
    ArgumentOutOfRangeError,
    BinaryCrossEntropy,
    FunctionLoss,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    SoftmaxCrossEntropy,
)
from lora_np.functions.numerical import numerical_gradient

REGRESSION = [MeanSquaredError(), MeanAbsoluteError(), Huber(), Huber(0.25)]
ANALYTIC = [*REGRESSION, BinaryCrossEntropy(), SoftmaxCrossEntropy()]

each = pytest.mark.parametrize("loss", ANALYTIC, ids=repr)


def drawn(loss, shape, seed=0, scale=2.0):
    """Predictions, and targets that are valid for the loss."""
    random = np.random.default_rng(seed)
    predictions = scale * random.standard_normal(shape)
    if isinstance(loss, BinaryCrossEntropy):
        return predictions, random.uniform(size=shape)
    if isinstance(loss, SoftmaxCrossEntropy):
        return predictions, random.integers(0, 4, shape).astype(float)
    # Differences are odd multiples of 1/16, away from every kink, where a central difference averages two slopes.
    return predictions, predictions + (2 * random.integers(-16, 16, shape) + 1) / 16


# ---------------------------------------------------------------- the gradient matches the value


@each
@given(seed=st.integers(0, 2**32 - 1), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
def test_compute_returns_the_gradient_of_its_value(loss, seed, shape):
    predictions, targets = drawn(loss, shape, seed)
    expected = numerical_gradient(lambda p: loss.compute(p, targets)[0], predictions)
    np.testing.assert_allclose(loss.compute(predictions, targets)[1], expected, rtol=1e-10, atol=1e-15)


@each
@given(seed=st.integers(0, 2**32 - 1))
def test_value_and_gradient_agree_with_the_value_alone(loss, seed):
    predictions, targets = drawn(loss, (3, 4), seed)
    value, gradient = loss.value_and_gradient(predictions, targets)
    expected = numerical_gradient(lambda p: loss(p, targets), predictions, method="central")
    assert loss(predictions, targets) == value
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-8)


@each
def test_the_value_decreases_along_the_negative_gradient(loss):
    predictions, targets = drawn(loss, (5, 4))
    value, gradient = loss.value_and_gradient(predictions, targets)
    assert loss(predictions - 1e-3 * gradient, targets) < value


# ---------------------------------------------------------------- worked examples


@pytest.mark.parametrize(
    ("loss", "predictions", "targets", "value", "gradient"),
    [
        (MeanSquaredError(), [[1, 2], [3, 4]], [[1, 0], [0, 8]], 29 / 4, [[0, 1], [1.5, -2]]),
        (MeanAbsoluteError(), [[1, 2], [3, 4]], [[1, 0], [0, 8]], 9 / 4, [[0, 0.25], [0.25, -0.25]]),
        (Huber(2), [[1, 2], [3, 4]], [[1, 1], [0, 8]], (0 + 0.5 + 4 + 6) / 4, [[0, 0.25], [0.5, -0.5]]),
        (BinaryCrossEntropy(), [0, 0], [1, 0], np.log(2), [-0.25, 0.25]),
        (BinaryCrossEntropy(), [np.log(3)], [0.75], np.log(4) - 0.75 * np.log(3), [0]),
        (SoftmaxCrossEntropy(), [[0, 0], [0, np.log(3)]], [0, 1], np.log(8 / 3) / 2, [[-0.25, 0.25], [0.125, -0.125]]),
        (SoftmaxCrossEntropy(), [0, 0], [3, 1], 4 * np.log(2), [-1, 1]),
    ],
    ids=["mse", "mae", "huber", "bce", "bce at its minimum", "labels", "weights"],
)
def test_worked_example(loss, predictions, targets, value, gradient):
    found, slope = loss.value_and_gradient(predictions, targets)
    assert found == pytest.approx(value, rel=1e-15)
    np.testing.assert_allclose(slope, gradient, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("loss", REGRESSION, ids=repr)
def test_the_loss_of_a_perfect_prediction_is_zero(loss):
    value, gradient = loss.value_and_gradient([[1.0, -2.0]], [[1.0, -2.0]])
    assert value == 0
    np.testing.assert_array_equal(gradient, [[0, 0]])


@each
def test_the_mean_does_not_depend_on_the_number_of_equal_rows(loss):
    predictions, targets = drawn(loss, (1, 4))
    value, gradient = loss.value_and_gradient(predictions, targets)
    many, many_gradient = loss.value_and_gradient(np.repeat(predictions, 5, axis=0), np.repeat(targets, 5, axis=0))
    assert many == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(many_gradient.sum(axis=0), gradient[0], rtol=1e-14)


# ---------------------------------------------------------------- Huber


def test_huber_with_a_large_delta_is_half_the_squared_error():
    predictions, targets = drawn(Huber(), (4, 3))
    assert Huber(1e6)(predictions, targets) == pytest.approx(MeanSquaredError()(predictions, targets) / 2, rel=1e-14)


def test_huber_with_a_small_delta_is_delta_times_the_absolute_error():
    predictions, targets = drawn(Huber(), (4, 3))
    expected = 1e-9 * MeanAbsoluteError()(predictions, targets)
    assert Huber(1e-9)(predictions, targets) == pytest.approx(expected, rel=1e-7)


def test_huber_is_continuous_where_its_parts_meet():
    at, above = (Huber(2.0)([2.0 + step], [0.0]) for step in (0.0, 1e-12))
    assert at == 2
    assert above == pytest.approx(2, rel=1e-11)


def test_huber_does_not_square_large_errors():
    with np.errstate(over="raise"):
        value, gradient = Huber().value_and_gradient([1e200], [0.0])
    assert value == 1e200
    np.testing.assert_array_equal(gradient, [1])


@pytest.mark.parametrize("delta", [0, -1.0, np.nan, np.inf, None, "1"])
def test_huber_refuses_an_invalid_delta(delta):
    with pytest.raises(ArgumentError, match="delta"):
        Huber(delta)


# ---------------------------------------------------------------- cross-entropies


@given(seed=st.integers(0, 2**32 - 1), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
def test_labels_and_one_hot_rows_are_equivalent(seed, shape):
    random = np.random.default_rng(seed)
    logits = random.standard_normal(shape)
    labels = random.integers(0, shape[-1], shape[:-1])
    by_label = SoftmaxCrossEntropy().value_and_gradient(logits, labels)
    one_hot = (np.arange(shape[-1]) == labels[..., None]).astype(float)
    by_row = SoftmaxCrossEntropy().value_and_gradient(logits, one_hot)
    assert by_label[0] == by_row[0]
    np.testing.assert_array_equal(by_label[1], by_row[1])


def test_labels_of_a_large_vocabulary_take_no_square_matrix():
    logits = np.zeros((2, 20_000), np.float32)
    tracemalloc.start()
    value, gradient = SoftmaxCrossEntropy().value_and_gradient(logits, [3, -1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert value == pytest.approx(np.log(20_000))
    assert not gradient[1].any()
    assert peak < 10 * logits.nbytes


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_may_have_any_integer_dtype(dtype):
    assert SoftmaxCrossEntropy()([[0.0, 0.0]], np.array([1], dtype)) == pytest.approx(np.log(2))


@given(shift=st.floats(-1e3, 1e3))
def test_softmax_cross_entropy_is_invariant_to_a_shift(shift):
    logits = np.array([[1.0, -2.0, 0.5]])
    assert SoftmaxCrossEntropy()(logits + shift, [2]) == pytest.approx(SoftmaxCrossEntropy()(logits, [2]), rel=1e-10)


def test_labels_of_the_wrong_shape_are_refused_naming_both_valid_shapes():
    with pytest.raises(ArgumentError, match=r"labels of shape \(2, 3\) or one-hot rows of shape \(2, 3, 4\), got \(3,\)"):
        SoftmaxCrossEntropy()(np.zeros((2, 3, 4)), np.zeros(3, int))


@pytest.mark.parametrize(
    ("labels", "wrong"), [([3], 3), ([-2], -2), ([0, 3], 3), ([2, -99], -99), ([-1, -100, -101], -101)], ids=str
)
def test_labels_out_of_range_are_refused(labels, wrong):
    with pytest.raises(ArgumentOutOfRangeError, match=rf"in 0\.\.2, or -1 or -100 to be ignored, got {wrong}$"):
        SoftmaxCrossEntropy()(np.zeros((len(labels), 3)), labels)


@given(seed=st.integers(0, 2**32 - 1), shape=st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple))
def test_ignored_labels_have_no_loss_and_no_gradient(seed, shape):
    random = np.random.default_rng(seed)
    logits = random.standard_normal(shape)
    labels = random.integers(0, shape[-1], shape[:-1])
    labels.flat[1:][random.random(labels.size - 1) < 0.3] = -1
    labels.flat[1:][random.random(labels.size - 1) < 0.3] = -100
    kept = labels >= 0
    value, gradient = SoftmaxCrossEntropy().value_and_gradient(logits, labels)
    expected, slope = SoftmaxCrossEntropy().value_and_gradient(logits[kept], labels[kept])
    assert value == pytest.approx(expected, rel=1e-14, abs=1e-15)
    np.testing.assert_allclose(gradient[kept], slope, rtol=1e-13, atol=1e-16)
    np.testing.assert_array_equal(gradient[~kept], 0)


def test_ignored_labels_keep_float32():
    logits = np.zeros((3, 2), np.float32)
    value, gradient = SoftmaxCrossEntropy().value_and_gradient(logits, [0, -1, 1])
    assert value == pytest.approx(np.log(2), rel=1e-6)
    assert gradient.dtype == np.float32
    np.testing.assert_array_equal(gradient, [[-0.25, 0.25], [0, 0], [0.25, -0.25]])


def test_labels_that_are_all_ignored_are_refused():
    with pytest.raises(ArgumentError, match="at least one label that is not ignored"):
        SoftmaxCrossEntropy()(np.zeros((2, 3)), [-1, -1])


@pytest.mark.parametrize(("labels", "dtype"), [([1.0], "float64"), ([True], "bool")])
def test_labels_that_are_not_integers_are_refused(labels, dtype):
    with pytest.raises(ArgumentError, match=f"integer labels, got dtype {dtype}"):
        SoftmaxCrossEntropy()(np.zeros((1, 3)), labels)


def test_negative_weights_are_refused():
    with pytest.raises(ArgumentOutOfRangeError, match=r"got -0\.5"):
        SoftmaxCrossEntropy()([[1.0, 2.0]], [[1.5, -0.5]])


def test_softmax_cross_entropy_needs_an_axis_of_classes():
    with pytest.raises(ArgumentError, match="got a scalar"):
        SoftmaxCrossEntropy()(1.0, 0)


@pytest.mark.parametrize("target", [-0.1, 1.1, np.nan])
def test_binary_targets_must_lie_between_zero_and_one(target):
    with pytest.raises(ArgumentOutOfRangeError, match=rf"\[0, 1\], got .*{target}"):
        BinaryCrossEntropy()([[0.0, 0.0]], [[0.5, target]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        (SoftmaxCrossEntropy(), 1e4, [[0.5, -0.5], [0, 0]]),
        (BinaryCrossEntropy(), 5e3, [[0.25, -0.25], [0, 0]]),
    ],
    ids=["softmax", "binary"],
)
def test_large_logits_give_finite_values(loss, value, gradient, dtype):
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found, slope = loss.value_and_gradient(logits, np.array([[0, 1], [0, 1]], dtype))
    assert found == value
    np.testing.assert_array_equal(slope, gradient)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "scale"), [(MeanSquaredError(), 0.5), (MeanAbsoluteError(), 1.0), (Huber(), 1.0)], ids=["mse", "mae", "huber"]
)
def test_a_mean_in_range_is_right_although_the_sum_is_out_of_range(loss, scale, dtype):
    largest = np.finfo(dtype).max
    error = dtype(largest**scale * 0.4)  # the loss of one element is in range, and that of ten is not
    predictions = np.full((5, 2), error)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value, slope = loss.value_and_gradient(predictions, np.zeros_like(predictions))
    assert value == pytest.approx(float(error) ** round(1 / scale), rel=1e-5)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("low", ["largest", "infinity"])
def test_classes_that_are_impossible_and_absent_cost_nothing(low, dtype):
    low = dtype(-np.inf) if low == "infinity" else -np.finfo(dtype).max
    logits = np.array([[low, np.finfo(dtype).max if np.isfinite(low) else 0.0], [1.0, 1.0]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value, slope = SoftmaxCrossEntropy().value_and_gradient(logits, [1, 0])
    assert value == pytest.approx(np.log(2) / 2)
    np.testing.assert_allclose(slope, [[0, 0], [-0.25, 0.25]], atol=1e-7)


@pytest.mark.parametrize("labels", [[1, 0], np.array([1, 0], np.int8)], ids=["list", "int8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_for_labels_has_the_dtype_of_the_logits(dtype, labels):
    _, slope = SoftmaxCrossEntropy().value_and_gradient(np.zeros((2, 3), dtype), labels)
    assert slope.dtype == dtype


# ---------------------------------------------------------------- arguments


@each
@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (4,), (3, 4, 1), ()], ids=str)
def test_nothing_is_broadcast(loss, shape):
    with pytest.raises(ArgumentError, match="targets must") as raised:
        loss(np.zeros((3, 4)), np.zeros(shape))
    assert "(3, 4)" in str(raised.value)
    assert str(shape) in str(raised.value)


@each
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)], ids=str)
def test_the_loss_of_an_empty_batch_is_zero(loss, shape):
    value, gradient = loss.value_and_gradient(np.zeros(shape), np.zeros(shape))
    assert value == 0
    assert gradient.shape == shape


def test_the_loss_of_an_empty_batch_of_labels_is_zero():
    assert SoftmaxCrossEntropy()(np.zeros((0, 3)), np.zeros(0, int)) == 0


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_has_the_dtype_of_the_predictions(loss, dtype):
    predictions, targets = drawn(loss, (3, 4))
    value, gradient = loss.value_and_gradient(predictions.astype(dtype), targets)
    assert gradient.dtype == dtype
    assert type(value) is float
    assert value == pytest.approx(loss(predictions, targets), rel=1e-5)


@each
def test_integer_predictions_are_converted_to_floats(loss):
    value, gradient = loss.value_and_gradient([[2, -1]], [[0, 1]])
    expected, slope = loss.value_and_gradient([[2.0, -1.0]], [[0.0, 1.0]])
    assert value == expected
    np.testing.assert_array_equal(gradient, slope)


@each
def test_check_refuses_mismatched_shapes_and_returns_what_compute_expects(loss):
    predictions, targets = loss.check([[2, -1]], [[0, 1]])
    assert predictions.dtype == targets.dtype == np.float64
    assert loss.compute(predictions, targets)[0] == loss([[2, -1]], [[0, 1]])
    with pytest.raises(ArgumentError, match="targets must"):
        loss.check(np.zeros((1, 2)), np.zeros((2, 2)))


@each
def test_arguments_are_not_modified(loss):
    predictions, targets = drawn(loss, (3, 4))
    predictions.flags.writeable = targets.flags.writeable = False
    loss.value_and_gradient(predictions, targets)


@each
@pytest.mark.parametrize("argument", ["predictions", "targets"])
def test_none_is_refused(loss, argument):
    arguments = {"predictions": [[0.0]], "targets": [[0.0]]} | {argument: None}
    with pytest.raises(ArgumentNullError, match=argument):
        loss(**arguments)


@each
@pytest.mark.parametrize("value", [[["a", "b"]], [[1j, 0]], [[1.0, 2.0], [3.0]]], ids=["text", "complex", "ragged"])
def test_predictions_that_are_not_real_numbers_are_refused(loss, value):
    with pytest.raises(ArgumentError, match="predictions must be an array of real numbers"):
        loss(value, [[0.0, 0.0]])


def test_a_loss_without_compute_cannot_be_instantiated():
    with pytest.raises(TypeError, match="compute"):
        Loss()


@pytest.mark.parametrize(
    ("loss", "text"), [(MeanSquaredError(), "MeanSquaredError()"), (Huber(0.5), "Huber(delta=0.5)")], ids=["plain", "huber"]
)
def test_repr(loss, text):
    assert repr(loss) == text


# ---------------------------------------------------------------- a plain function


@each
@given(seed=st.integers(0, 2**32 - 1))
def test_a_wrapped_loss_agrees_with_the_loss(loss, seed):
    predictions, targets = drawn(loss, (3, 2), seed)
    value, gradient = FunctionLoss(loss).value_and_gradient(predictions, targets)
    expected, slope = loss.value_and_gradient(predictions, targets)
    assert value == expected
    np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-7)


def test_a_function_may_return_a_zero_dimensional_array():
    value, gradient = FunctionLoss(lambda p, t: np.asarray((p * t).sum())).value_and_gradient([1.0, 2.0], [3.0, 5.0])
    assert value == 13
    np.testing.assert_allclose(gradient, [3, 5], rtol=1e-9)


def test_the_function_defines_which_targets_are_valid():
    assert FunctionLoss(lambda p, t: p.sum() * t[0])([1.0, 2.0], [5]) == 15


def test_a_function_loss_keeps_float32():
    gradient = FunctionLoss(lambda p, t: (p**2).sum()).value_and_gradient(np.ones(2, np.float32), [0])[1]
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, [2, 2], rtol=1e-6)


@pytest.mark.parametrize(
    "result", [np.ones(2), np.ones((1, 1)), 1j, None, "1"], ids=["vector", "matrix", "complex", "none", "text"]
)
def test_a_function_that_does_not_return_a_real_scalar_is_refused(result):
    with pytest.raises(ArgumentError, match="function's result"):
        FunctionLoss(lambda p, t: result)([1.0], [1.0])


@pytest.mark.parametrize("function", [None, 3, "mse"])
def test_a_function_that_is_not_callable_is_refused(function):
    with pytest.raises(ArgumentError, match="function must be callable"):
        FunctionLoss(function)


def test_function_loss_repr_shows_the_function():
    assert repr(FunctionLoss(len)) == "FunctionLoss(<built-in function len>)"
