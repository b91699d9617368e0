"""`fit` with validation data: what is measured, when it stops, and which parameters remain. Clipping by the global norm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lora_np import (
    SGD,
    Adam,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    MeanSquaredError,
    MultiLoRAAdapter,
    NonFiniteError,
    SoftmaxCrossEntropy,
    fit,
)
from lora_np._validation import file_path
from lora_np.training import History
from lora_np.training.clipping import clipped

RNG = np.random.default_rng(0)
X, V = RNG.standard_normal((10, 3)), RNG.standard_normal((7, 3))
TRUE = np.array([[1.0, -1.0], [2.0, 0.0], [0.0, 3.0]])
LOSS = MeanSquaredError()


def train(model=None, optimizer=None, epochs=3, **options):
    model = DenseLayer(3, 2, rng=0) if model is None else model
    return fit(model, (X, X @ TRUE), LOSS, optimizer or SGD(0.05), epochs, 4, rng=1, **options)


def too_far(epochs):
    """Training that leaves a good start: the validation targets are those of the initial model. Also the parameters."""
    model, seen = DenseLayer(3, 2, rng=0), []
    target = V @ (0.7 * model.weight + 0.3 * TRUE)

    def note(progress):
        if progress.is_epoch_end:
            seen.append(model.get_parameters())

    return model, (V, target), seen, {"epochs": epochs, "callbacks": [note]}


# ---------------------------------------------------------------- what is measured


def test_the_validation_loss_is_that_of_the_model_after_each_epoch():
    model, seen, expected = DenseLayer(3, 2, rng=0), [], []

    def note(progress):
        seen.append(progress.validation_loss)
        if progress.is_epoch_end:
            expected.append(LOSS(model.predict(V), V @ TRUE))

    history = train(model, validation=(V, V @ TRUE), callbacks=[note])
    np.testing.assert_allclose(history.validation_losses, expected, rtol=1e-12)
    assert seen == [loss for value in history.validation_losses for loss in (None, None, value)]


def test_a_mean_over_labels_is_not_a_mean_over_batches():
    model, labels = DenseLayer(3, 2, rng=0), np.array([0, -1, -1, 1, 0, 1, -1])
    data, loss = (X, np.arange(10) % 2), SoftmaxCrossEntropy()
    history = fit(model, data, loss, SGD(0.1), 1, 3, rng=1, validation=(V, labels))
    assert history.validation_losses == [pytest.approx(loss(model.predict(V), labels), rel=1e-12)]


def test_validation_does_not_change_the_training():
    def parameters(**options):
        model = DyLoRAAdapter(DenseLayer(3, 2, rng=0), 2, [1, 2], rng=2)
        history = train(model, Adam(0.05), **options)
        return [*model.get_parameters(), *history.step_losses]

    assert parameters() == parameters(validation=(V, V @ TRUE))


def test_dylora_is_measured_at_its_deployment_rank():
    model = DyLoRAAdapter(DenseLayer(3, 2, rng=0), 2, [1, 2], rng=2)
    model.set_deployment_rank(1)
    history = train(model, validation=(V, V @ TRUE))
    at_ranks = [LOSS(model.predict(V, rank=rank), V @ TRUE) for rank in (1, 2)]
    assert history.validation_losses[-1] == pytest.approx(at_ranks[0], rel=1e-12) != pytest.approx(at_ranks[1], rel=1e-12)


def test_each_validation_row_has_its_task():
    model = MultiLoRAAdapter(DenseLayer(3, 2, rng=0), "a", 2, rng=2)
    model.add_task("b", 1)
    tasks = ["a", "b", None, "b", "b", "a", "a"]
    history = train(model, tasks=["a", "b"] * 5, validation=(V, V @ TRUE, tasks))
    assert history.validation_losses[-1] == pytest.approx(LOSS(model.predict(V, tasks=tasks), V @ TRUE), rel=1e-12)


# ---------------------------------------------------------------- the best epoch


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_the_patience_and_puts_the_best_parameters_back(patience):
    model, validation, seen, options = too_far(40)
    history = train(model, validation=validation, patience=patience, **options)
    best = int(np.argmin(history.validation_losses))
    assert 0 < best < 30
    assert history.best_epoch == best + 1
    assert len(history.epoch_losses) == len(seen) == best + 1 + patience
    np.testing.assert_array_equal(model.get_parameters(), seen[best])


def test_a_new_best_epoch_renews_the_patience():
    model, losses = DenseLayer(3, 2, rng=0), iter([9.0, 7.0, 8.0, 6.0, 6.5, 5.0, 5.5, 5.5, 1.0, 0.0])
    model.weight[...] = 0

    def move(progress):
        if progress.is_epoch_end:
            model.bias[...] = next(losses)

    model.bias[...] = 10.0
    options = {"validation": (V, np.zeros((7, 2))), "patience": 2, "callbacks": [move], "epochs": 10}
    history = train(model, SGD(0.0), **options)
    np.testing.assert_allclose(np.sqrt(history.validation_losses), [10, 9, 7, 8, 6, 6.5, 5, 5.5, 5.5])
    assert history.best_epoch == 7
    np.testing.assert_array_equal(model.bias, 5.0)


def losses_of(values, **options):
    """The losses of the epochs of a run whose validation loss takes the given values; its parameters at the end."""
    model, following = DenseLayer(3, 2, rng=0), iter(values[1:])
    model.weight[...], model.bias[...] = 0, np.sqrt(values[0])

    def move(progress):
        if progress.is_epoch_end:
            model.bias[...] = np.sqrt(next(following, 0.0))

    options = {"validation": (V, np.zeros((7, 2))), "callbacks": [move], "epochs": len(values)} | options
    history = train(model, SGD(0.0), **options)
    return history.validation_losses, model.bias[0] ** 2


def test_an_improvement_within_the_tolerance_does_not_renew_the_patience():
    values = [8.0, 7.0, 6.5, 6.25, 5.0, 4.0]
    for tolerance, expected in [(0.0, values), (1.5, values[:3]), (1.0, values[:2] + values[2:3]), (0.5, values)]:
        losses, last = losses_of(values, patience=2, tolerance=tolerance)
        np.testing.assert_allclose(losses, expected)
        assert last == pytest.approx(min(expected))  # the best parameters, within the tolerance too


def test_without_validation_the_training_loss_decides_and_nothing_is_put_back():
    model, data = DenseLayer(3, 2, rng=0), (X[:4], np.zeros((4, 2)))
    model.weight[...] = 0
    following = iter([3.0, 2.0, 2.5, 2.25, 1.0])

    def move(progress):
        model.bias[...] = next(following)

    model.bias[...] = 4.0
    history = fit(model, data, LOSS, SGD(0.0), 9, 4, callbacks=[move], patience=2)
    np.testing.assert_allclose(np.sqrt(history.epoch_losses), [4, 3, 2, 2.5, 2.25])
    np.testing.assert_array_equal(model.bias, 1.0)


def test_the_best_parameters_are_put_back_although_the_patience_lasts():
    model, validation, seen, options = too_far(40)
    history = train(model, validation=validation, patience=100, **options)
    assert len(history.epoch_losses) == 40
    np.testing.assert_array_equal(model.get_parameters(), seen[history.best_epoch - 1])


def test_without_patience_nothing_is_put_back():
    model, validation, seen, options = too_far(40)
    history = train(model, validation=validation, **options)
    assert history.best_epoch < 40
    np.testing.assert_array_equal(model.get_parameters(), seen[-1])


def test_a_validation_loss_that_is_not_finite_is_never_the_best():
    model = DenseLayer(3, 2, rng=0)
    history = train(model, validation=(V * 1e200, V @ TRUE), patience=2, epochs=5)
    assert len(history.epoch_losses) == 2
    assert not any(map(math.isfinite, history.validation_losses))
    assert history.best_epoch is None


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.1}, "tolerance requires patience"),
        ({"tolerance": -0.1, "patience": 2}, "tolerance must be at least 0"),
        ({"patience": 0, "validation": (V, V @ TRUE)}, "patience must be at least 1"),
        ({"validation": V}, r"validation must be \(inputs, targets\)"),
        ({"validation": {"x": 1}}, r"validation must be \(inputs, targets\)"),
        ({"validation": (V, V @ TRUE, None, None, None)}, r"validation must be \(inputs, targets\)"),
        ({"validation": (V[:3], V @ TRUE)}, "validation: data must have the same, non-zero number of rows"),
        ({"validation": (V[:, :2], V @ TRUE)}, "validation: inputs"),
        ({"validation": (V, V @ TRUE, ["a"] * 7)}, "validation: tasks"),
        ({"validation": (V, V @ TRUE, None, [1.0])}, "validation: weights must have shape"),
        ({"clip_norm": 0}, "clip_norm must be greater than 0"),
        ({"clip_norm": "1"}, "clip_norm must be a real number"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_step(options, message):
    model, optimizer = DenseLayer(3, 2, rng=0), Adam(0.05)
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=message):
        train(model, optimizer, **options)
    np.testing.assert_array_equal(model.get_parameters(), before)
    assert optimizer.get_state() == {}


# ---------------------------------------------------------------- the history


def test_a_history_is_described_in_one_line():
    assert repr(History()) == "History(epochs=0, steps=0)"
    history = History([3.0, 1.0], [3.0, 1.0], [(), ()], [0.5, 0.75])
    assert repr(history) == "History(epochs=2, steps=2, loss=3 -> 1, best_validation_loss=0.5 (epoch 1))"


# ---------------------------------------------------------------- clipping


def norm(gradients):
    return math.sqrt(sum(float((g.astype(np.longdouble) ** 2).sum()) for g in gradients.values()))


@given(
    a=arrays(float, (2, 3), elements=st.floats(-1e3, 1e3)),
    b=arrays(np.float32, (4,), elements=st.floats(-1e3, 1e3, width=32)),
    scale=st.sampled_from([1e-150, 1.0, 1e150]),
    clip_norm=st.floats(0.01, 1e4),
)
def test_gradients_are_scaled_together_to_the_norm(a, b, scale, clip_norm):
    gradients = {"a": a * scale, "b": b}
    before = norm(gradients)
    after = clipped(gradients, clip_norm)
    assert norm(after) == pytest.approx(min(before, clip_norm), rel=1e-6)
    for name, g in gradients.items():
        assert after[name].dtype == g.dtype
        np.testing.assert_allclose(after[name], g * min(1, clip_norm / before if before else 1), rtol=1e-5, atol=1e-30)


def test_squares_that_overflow_in_float32_do_not_matter():
    g = np.full(4, 1e30, np.float32)
    np.testing.assert_allclose(clipped({"g": g}, 1.0)["g"], np.full(4, 0.5), rtol=1e-6)


def test_a_clipped_step_has_the_norm_times_the_learning_rate():
    model = DenseLayer(3, 2, rng=0)
    before = model.get_parameters()
    fit(model, (X, 100 * X @ TRUE), LOSS, SGD(0.5), 1, 10, clip_norm=0.25)
    assert np.linalg.norm(model.get_parameters() - before) == pytest.approx(0.5 * 0.25)


@pytest.mark.parametrize("mode", ["full", "frozen"])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_norm_is_that_of_the_trained_components(mode, rank):
    model = DyLoRAAdapter(DenseLayer(3, 2, rng=0), 2, [1, 2], mode=mode, rng=2)
    model.lora_layer.matrix_b[...] = 1
    before = model.get_parameters()
    fit(model, (X, 100 * X @ TRUE), LOSS, SGD(0.5), 1, 10, clip_norm=0.25, rank_schedule=lambda *_: rank)
    moved = model.get_parameters() - before
    assert np.linalg.norm(moved) == pytest.approx(0.5 * 0.25)
    assert np.count_nonzero(moved) == (3 + 2) * (1 if mode == "frozen" else rank)


def test_a_gradient_that_is_not_finite_is_not_clipped():
    with pytest.raises(NonFiniteError, match="step 1"), np.errstate(all="ignore"):
        fit(DenseLayer(3, 2, rng=0), (X * 1e200, X @ TRUE), LOSS, SGD(0.1), 1, 10, clip_norm=1.0)


def test_a_path_must_be_valid_unicode():
    with pytest.raises(ArgumentError, match=r"file must be a path, got 'a\\ud800', which is not valid Unicode"):
        file_path("file", "a\ud800")
    assert file_path("file", b"caf\xc3\xa9") == "café"


@pytest.mark.parametrize("path", ["", b"", "a\0b", b"\0"])
def test_a_path_that_no_system_knows(path):
    with pytest.raises(ArgumentError, match="file must be a path without null characters, and not empty, got"):
        file_path("file", path)
