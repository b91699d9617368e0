"""`fit`: it learns, it can be repeated, it gives everything back, and it stops before it does harm."""

import itertools
import math
import re

import numpy as np
import pytest

from lora_np import (
    SGD,
    ActivationLayer,
    Adam,
    ArgumentError,
    ArgumentNullError,
    DenseLayer,
    DyLoRAAdapter,
    FunctionLoss,
    InvalidOperationError,
    Loss,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    NonFiniteError,
    Regularization,
    Sequential,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    apply_lora,
    fit,
    relu,
)
from lora_np.run import Draw
from lora_np.training import independent_ranks, rank_per_row, shared_rank

RANKS = [1, 2, 4]


def linear_data(rows=10, dtype=float):
    x = np.random.default_rng(0).standard_normal((rows, 3))
    return x.astype(dtype), (x @ np.array([[1.0, -1.0], [2.0, 0.0], [0.0, 3.0]])).astype(dtype)


def blobs(rows=90):
    """Three classes around three points, and labels."""
    random = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    return np.array([[3.0, 0.0], [-3.0, 1.0], [0.0, -3.0]])[labels] + 0.5 * random.standard_normal((rows, 2)), labels


def regression():
    return DenseLayer(3, 2, rng=0)


def train(model, data=None, optimizer=None, epochs=2, batch_size=4, loss=None, **keywords):
    data = linear_data() if data is None else data
    return fit(model, data, loss or MeanSquaredError(), optimizer or SGD(0.05), epochs, batch_size, **keywords)


def dylora_model(**keywords):
    """Two DyLoRA adapters with equal ranks."""
    first = DyLoRAAdapter(DenseLayer(5, 5, rng=0), 4, RANKS, rng=0, **keywords)
    second = DyLoRAAdapter(DenseLayer(5, 4, rng=1), 4, RANKS, rng=1, **keywords)
    return Sequential([first, second])


def dylora_data(rows=40):
    random = np.random.default_rng(0)
    return random.standard_normal((rows, 5)), random.standard_normal((rows, 4))


def multilora():
    adapter = MultiLoRAAdapter(DenseLayer(3, 2, rng=0), "a", 2, rng=0)
    adapter.add_task("b", 1)
    return adapter


class Recorded(Loss):
    """The squared error; remembers the targets that it was given."""

    def __init__(self):
        self.targets = []

    def compute(self, predictions, targets):
        self.targets.append(targets.ravel().tolist())
        return MeanSquaredError().compute(predictions, targets)


class Parameters:
    """A callback that remembers the parameters: at first, and after each step."""

    def __init__(self, model):
        self.seen = [model.get_parameters()]

    def __call__(self, progress):
        self.seen.append(progress.model.get_parameters())


def fail(progress):
    raise KeyError("stop")


# ---------------------------------------------------------------- it learns


def test_a_linear_problem_is_solved():
    model = regression()
    history = train(model, linear_data(60), SGD(0.2), epochs=60, batch_size=16, rng=0)
    assert history.epoch_losses[-1] < 1e-6 * history.epoch_losses[0]
    np.testing.assert_allclose(model.weight, [[1, -1], [2, 0], [0, 3]], atol=1e-2)


@pytest.mark.parametrize("optimizer", [SGD(0.3), Momentum(0.05), Adam(0.03)], ids=lambda o: type(o).__name__)
def test_a_classification_problem_is_solved(optimizer):
    data = blobs()
    model = Sequential([DenseLayer(2, 8, relu, rng=0), DenseLayer(8, 3, rng=1)])
    history = train(model, data, optimizer, epochs=20, batch_size=16, loss=SoftmaxCrossEntropy(), rng=0)
    assert history.epoch_losses[-1] < 0.1 * history.epoch_losses[0]
    assert (model.predict(data[0]).argmax(axis=-1) == data[1]).mean() > 0.97


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: StandardLoRAAdapter(layer, 2, rng=1),
        lambda layer: DyLoRAAdapter(layer, 2, [1, 2], rng=1),
        lambda layer: MultiLoRAAdapter(layer, "a", 2, rng=1),
    ],
    ids=["standard", "dylora", "multilora"],
)
def test_adapters_learn_while_the_base_does_not_change(wrap):
    base = Sequential([DenseLayer(2, 8, relu, rng=0), DenseLayer(8, 3, rng=1)])
    before = base.get_parameters()
    history = train(apply_lora(base, wrap), blobs(), Adam(0.03), 15, 16, SoftmaxCrossEntropy(), rng=0)
    assert history.epoch_losses[-1] < 0.5 * history.epoch_losses[0]
    np.testing.assert_array_equal(base.get_parameters(), before)


def test_one_step_equals_a_step_by_hand():
    data, found, expected = linear_data(4), regression(), regression()
    _, dy = MeanSquaredError().value_and_gradient(expected.forward(data[0]), data[1])
    expected.backward(dy)
    expected.update_parameters(0.05)
    train(found, data, epochs=1, shuffle=False)
    np.testing.assert_array_equal(found.get_parameters(), expected.get_parameters())


def test_a_plain_function_is_evaluated_only_at_predictions():
    model = DenseLayer(1, 1, rng=0)
    model.set_parameters([1.0, 1.0])
    loss = FunctionLoss(lambda predictions, targets: -math.log(predictions.mean()))
    history = train(model, (np.ones((4, 1)), np.ones((4, 1))), loss=loss)
    assert history.step_losses[0] == pytest.approx(-math.log(2))
    assert history.epoch_losses[1] < history.epoch_losses[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_model_is_kept(dtype):
    model = DenseLayer(3, 2, dtype=dtype, rng=0)
    train(model, optimizer=Adam(0.1))
    assert model.weight.dtype == model.bias.dtype == dtype


def test_rows_may_have_further_axes():
    random = np.random.default_rng(0)
    data = random.standard_normal((6, 5, 3)), random.standard_normal((6, 5, 2))
    assert train(regression(), data).epoch_losses[1] < train(regression(), data).epoch_losses[0]


def test_lists_are_accepted_as_data():
    assert len(train(DenseLayer(1, 1, rng=0), ([[1.0], [2.0]], [[1.0], [2.0]])).step_losses) == 2


# ---------------------------------------------------------------- it can be repeated


@pytest.mark.parametrize("build", [lambda: (regression(), linear_data()), lambda: (dylora_model(), dylora_data())])
def test_the_seed_determines_the_training(build):
    def run(seed):
        model, data = build()
        history = train(model, data, Adam(0.1), rng=seed)
        return history, model.get_parameters()

    (first, parameters), (second, again), (_, other) = run(3), run(3), run(4)
    assert first == second
    np.testing.assert_array_equal(parameters, again)
    assert (parameters != other).any()


def test_the_state_of_the_optimizer_carries_over():
    once, twice = regression(), regression()
    train(once, optimizer=Adam(0.1), epochs=4, shuffle=False)
    optimizer = Adam(0.1)
    for _ in range(2):
        train(twice, optimizer=optimizer, epochs=2, shuffle=False)
    np.testing.assert_array_equal(once.get_parameters(), twice.get_parameters())


def test_the_data_are_not_written_to():
    data = linear_data()
    for array in data:
        array.flags.writeable = False
    train(regression(), data)


# ---------------------------------------------------------------- batches


def targets_in_order(**keywords):
    """The targets that each of 2 x 3 batches had; row i has the target i."""
    loss = Recorded()
    train(DenseLayer(1, 1, rng=0), (np.ones((10, 1)), np.arange(10.0)[:, None]), loss=loss, **keywords)
    return loss.targets


def test_without_shuffling_the_rows_come_in_order_and_the_last_batch_is_smaller():
    assert targets_in_order(shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


def test_shuffling_visits_every_row_once_per_epoch_in_a_new_order():
    batches = targets_in_order(rng=0)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    first, second = ([*itertools.chain(*batches[start : start + 3])] for start in (0, 3))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != sorted(first)


def test_inputs_and_targets_stay_together():
    x = np.arange(10.0)[:, None]
    model = DenseLayer(1, 1, rng=0)
    model.set_parameters([2.0, 0.0])
    assert train(model, (x, 2 * x), rng=0).step_losses == [0] * 6


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 10), (3, 4), (10, 1), (99, 1)])
def test_history_has_a_loss_for_each_step_and_epoch(batch_size, steps):
    history = train(regression(), epochs=3, batch_size=batch_size)
    assert len(history.step_losses) == len(history.ranks) == 3 * steps
    assert len(history.epoch_losses) == 3
    assert history.ranks == [()] * (3 * steps)


def test_the_epoch_loss_is_the_mean_over_rows():
    model = regression()
    history = train(model, optimizer=SGD(0.0), epochs=2)
    expected = MeanSquaredError()(model.predict(linear_data()[0]), linear_data()[1])
    assert history.epoch_losses == pytest.approx([expected] * 2, rel=1e-14)


def test_losses_are_those_before_the_step():
    model = regression()
    expected = MeanSquaredError()(model.predict(linear_data()[0]), linear_data()[1])
    assert train(model, batch_size=10, shuffle=False).step_losses[0] == expected


def test_the_penalty_of_the_weights_is_part_of_the_loss():
    model = DenseLayer(3, 2, regularization=Regularization(l1=0.5, l2=2.0), rng=0)
    penalty = 0.5 * np.abs(model.weight).sum() + (model.weight**2).sum()
    expected = MeanSquaredError()(model.predict(linear_data()[0]), linear_data()[1]) + penalty
    history = train(model, batch_size=10, epochs=1, shuffle=False)
    assert history.step_losses == pytest.approx([expected], rel=1e-14)


def test_the_penalty_shrinks_the_weights():
    models = [DenseLayer(3, 2, regularization=Regularization(l2=l2), rng=0) for l2 in (0.0, 1.0)]
    for model in models:
        train(model, epochs=20)
    assert np.linalg.norm(models[1].weight) < 0.8 * np.linalg.norm(models[0].weight)


# ---------------------------------------------------------------- callbacks


def test_progress_counts_steps_and_epochs():
    seen = []
    model = regression()
    history = train(model, callbacks=[seen.append])
    assert all(progress.model is model for progress in seen)
    assert [(p.epoch, p.epochs, p.step, p.steps) for p in seen] == [
        (1, 2, 1, 6),
        (1, 2, 2, 6),
        (1, 2, 3, 6),
        (2, 2, 4, 6),
        (2, 2, 5, 6),
        (2, 2, 6, 6),
    ]
    assert [p.loss for p in seen] == history.step_losses
    assert [p.is_epoch_end for p in seen] == [False, False, True] * 2


@pytest.mark.parametrize("batch_size", [1, 3, 10, 20])
def test_each_epoch_ends_once(batch_size):
    seen = []
    train(regression(), epochs=3, batch_size=batch_size, callbacks=[seen.append])
    assert [p.epoch for p in seen if p.is_epoch_end] == [1, 2, 3]


def test_callbacks_run_in_order_after_the_step():
    calls, model = [], regression()
    before = model.get_parameters()

    def first(progress):
        calls.append("first")
        assert (progress.model.get_parameters() != before).any()

    train(model, epochs=1, callbacks=(callback for callback in (first, lambda _: calls.append("second"))))
    assert calls == ["first", "second"] * 3


def test_an_exception_from_a_callback_ends_the_training():
    seen = []
    with pytest.raises(KeyError, match="stop"):
        train(regression(), callbacks=[seen.append, fail])
    assert len(seen) == 1


# ---------------------------------------------------------------- ranks


def test_all_dylora_layers_share_one_rank_in_each_step():
    history = train(dylora_model(), dylora_data(), epochs=4, rng=0)
    assert all(len(ranks) == 2 and len(set(ranks)) == 1 for ranks in history.ranks)
    assert {rank for ranks in history.ranks for rank in ranks} == set(RANKS)


def test_independent_ranks_differ_between_layers():
    history = train(dylora_model(), dylora_data(), epochs=4, rank_schedule=independent_ranks, rng=0)
    assert {ranks[0] for ranks in history.ranks} == {ranks[1] for ranks in history.ranks} == set(RANKS)
    assert any(first != second for first, second in history.ranks)


@pytest.mark.parametrize("schedule", [shared_rank, independent_ranks])
def test_ranks_follow_the_distribution(schedule):
    model = dylora_model(rank_distribution=[0.0, 1.0, 0.0])
    history = train(model, dylora_data(), rank_schedule=schedule, rng=0)
    assert set(history.ranks) == {(2, 2)}


def test_history_records_the_ranks_that_were_trained():
    seen, model = [], dylora_model()

    def schedule(adapters, rng, rows):
        draw = shared_rank(adapters, rng, rows)
        seen.append(tuple(map(draw, adapters)))
        return draw

    history = train(model, dylora_data(), rank_schedule=schedule, rng=0)
    assert seen == history.ranks


def test_a_step_trains_only_the_components_of_its_rank():
    model = dylora_model()
    model.set_parameters(np.ones(model.parameter_count))
    train(
        model,
        dylora_data(),
        Adam(0.1),
        rank_schedule=lambda adapters, rng, rows: 2,
    )
    for adapter in model.layers:
        moved = (adapter.lora_layer.matrix_b != 1).any(axis=1)
        np.testing.assert_array_equal(moved, [True, True, False, False])


def test_a_schedule_may_leave_the_draw_to_the_layers():
    history = train(dylora_model(), dylora_data(), epochs=4, rank_schedule=lambda adapters, rng, rows: None, rng=0)
    assert {rank for ranks in history.ranks for rank in ranks} == set(RANKS)
    assert all(len(ranks) == 2 and len(set(ranks)) == 1 for ranks in history.ranks)


def test_a_rank_for_each_row_is_the_same_in_all_layers_and_drawn_for_each_step():
    seen, model = [], dylora_model()

    def schedule(adapters, rng, rows):
        seen.append(rank_per_row(adapters, rng, rows))
        return seen[-1]

    history = train(model, dylora_data(), rank_schedule=schedule, rng=0)
    assert len({draw.quantile.tobytes() for draw in seen}) == len(seen) == len(history.ranks)
    assert set(history.ranks) == {()}


def test_a_rank_for_each_row_trains_every_rank_in_each_step():
    # A batch of 4 rows has at least one of each of the three ranks.
    model, data = dylora_model(), dylora_data()
    found, expected, losses = model.clone(), model.clone(), []
    history = train(found, data, epochs=1, rank_schedule=rank_per_row, shuffle=False, rng=0)
    draws = np.random.default_rng(0)
    for start in range(0, 40, 4):
        quantile = draws.random()
        rows = [slice(row, row + 1) for row in range(start, start + 4)]
        total, loss, used = 0.0, 0.0, set()
        for row, rank in zip(rows, Draw.of_rows(quantile, 4)(expected[0]), strict=True):
            value, dy = MeanSquaredError().value_and_gradient(expected.forward(data[0][row], rank=int(rank)), data[1][row])
            expected.backward(dy)
            total, loss = total + expected.get_parameter_gradients() / 4, loss + value / 4
            used.add(int(rank))
        expected.set_parameters(expected.get_parameters() - 0.05 * total)
        losses.append(loss)
        assert used == set(RANKS)
    np.testing.assert_allclose(found.get_parameters(), expected.get_parameters(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(history.step_losses, losses, rtol=1e-10)


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize("callbacks", [[], [fail]], ids=["finished", "failed"])
def test_the_mode_of_each_layer_is_restored(callbacks):
    model = Sequential([regression(), DenseLayer(2, 2, rng=1)]).eval()
    model[1].train()
    try:
        train(model, callbacks=callbacks)
    except KeyError:
        assert callbacks
    assert [layer.is_training for layer in model.walk().values()] == [False, False, True]


def test_the_model_is_in_training_mode_during_training():
    modes = []
    train(dylora_model().eval(), dylora_data(), callbacks=[lambda p: modes.append(p.model[0].is_training)])
    assert all(modes)


# ---------------------------------------------------------------- tasks

TASKS = ["a", "b", None, "a", "b", "b", None, None, "a", "b"]


def test_mixed_batches_are_routed_as_by_hand():
    data, found, expected = linear_data(), multilora(), multilora()
    optimizer = Adam(0.1)
    for start in (0, 4, 8):
        rows = slice(start, start + 4)
        _, dy = MeanSquaredError().value_and_gradient(expected.forward(data[0][rows], tasks=TASKS[rows]), data[1][rows])
        expected.backward(dy)
        expected.apply_updates(optimizer.updates(expected))
    train(found, data, Adam(0.1), epochs=1, tasks=TASKS, shuffle=False)
    np.testing.assert_array_equal(found.get_parameters(), expected.get_parameters())


def test_shuffled_rows_keep_their_tasks():
    # Task a learns +x and task b learns -x, which no shared branch could.
    x = np.random.default_rng(0).standard_normal((40, 3))
    tasks = ["a", "b"] * 20
    model = multilora()
    model.add_task("c", 2)
    for name in "ab":
        model.remove_task(name)
    model.add_task("a", 2)
    model.add_task("b", 2)
    targets = x[:, :2] * np.where(np.arange(40) % 2, -1, 1)[:, None]
    history = train(model, (x, targets), Adam(0.1), epochs=60, batch_size=8, tasks=tasks, rng=0)
    assert history.epoch_losses[-1] < 1e-2 * history.epoch_losses[0]
    assert not model.get_task_adapter("c").matrix_b.any()


def test_the_current_task_is_neither_used_nor_changed():
    model = multilora()
    model.current_task = "b"
    before = model.get_task_adapter("b").get_matrix_a(), model.get_task_adapter("b").get_matrix_b()
    train(model, tasks=["a"] * 10)
    assert model.current_task == "b"
    for array, kept in zip((model.lora_layer.matrix_a, model.lora_layer.matrix_b), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_a_batch_of_the_base_alone_trains_nothing():
    model = multilora()
    before = model.get_parameters()
    history = train(model, tasks=[None] * 10)
    assert len(history.step_losses) == 6
    np.testing.assert_array_equal(model.get_parameters(), before)


# ---------------------------------------------------------------- bad input, before the first step

X, T = linear_data()

BAD = {
    "one array": ({"data": X}, "data must be a pair"),
    "three arrays": ({"data": (X, T, T)}, "data must be a pair"),
    "no data": ({"data": 3}, "data must be a pair"),
    "no inputs": ({"data": (None, T)}, "inputs must not be None"),
    "no targets": ({"data": (X, None)}, "targets must not be None"),
    "other features": ({"data": (X[:, :2], T)}, r"inputs must have shape \(\.\.\., 3\), got \(10, 2\)"),
    "fewer targets": ({"data": (X, T[:9])}, r"the same, non-zero number of rows .* \(10, 3\) and \(9, 2\)"),
    "no rows": ({"data": (X[:0], T[:0])}, r"the same, non-zero number of rows .* \(0, 3\)"),
    "one row": ({"data": (X[0], T[0])}, "the same, non-zero number of rows"),
    "a scalar target": ({"data": (X, 1.0)}, "the same, non-zero number of rows"),
    "text": ({"data": (X, [["a", "b"]] * 10)}, "targets must be an array of real numbers"),
    "complex": ({"data": (X * 1j, T)}, "inputs must be an array of real numbers"),
    "targets of another shape": ({"data": (X, T[:, :1])}, "targets must have shape"),
    "no epochs": ({"epochs": 0}, "epochs must be at least 1, got 0"),
    "half an epoch": ({"epochs": 0.5}, "epochs must be an integer, got 0.5"),
    "no batch": ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    "a batch of text": ({"batch_size": "4"}, "batch_size must be an integer"),
    "no rank schedule": ({"rank_schedule": None}, "rank_schedule must not be None"),
    "a rank as its schedule": ({"rank_schedule": 2}, "rank_schedule must be callable, got 2"),
    "no callbacks": ({"callbacks": [repr, 3]}, "callbacks must .*3"),
    "no loss": ({"loss": SGD(0.1)}, "loss must be a Loss"),
    "no optimizer": ({"optimizer": MeanSquaredError()}, "optimizer must be an Optimizer"),
    "bad seed": ({"rng": "seed"}, "rng must be a seed"),
    "too few tasks": ({"tasks": ["a"] * 9}, "tasks must have one entry for each of 10 rows of input, got 9"),
    "tasks in rows": ({"tasks": [["a"]] * 10}, "tasks"),
    "an unknown task": ({"tasks": ["z"] * 10}, "'z'"),
    "an unknown task at the end": ({"tasks": ["a"] * 9 + ["z"]}, "'z'"),
    "a list at the end": ({"tasks": ["a"] * 9 + [["a"]]}, "tasks must contain names or None, got .'a'."),
    "a number at the end": ({"tasks": ["a"] * 9 + [3]}, "tasks must contain names or None, got 3"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_the_first_step(arguments, message):
    model = multilora()
    parameters = Parameters(model)
    with pytest.raises(ArgumentError, match=message):
        train(model, **({"callbacks": [parameters], "shuffle": False} | arguments))
    assert len(parameters.seen) == 1
    np.testing.assert_array_equal(model.get_parameters(), parameters.seen[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0] * 9 + [2], r"labels in 0\.\.1, .*got 2"), ([0] * 9 + [-2], r"labels in 0\.\.1, .*got -2")],
    ids=["too large", "negative"],
)
def test_a_bad_label_in_the_last_row_is_refused_before_the_first_step(labels, message):
    model = regression()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=message):
        train(model, (X, labels), loss=SoftmaxCrossEntropy(), shuffle=False)
    np.testing.assert_array_equal(model.get_parameters(), before)


def test_tasks_need_a_layer_that_has_tasks():
    with pytest.raises(ArgumentError, match=r"no layer in .* has tasks"):
        train(regression(), tasks=["a"] * 10)


def test_tasks_of_none_are_accepted_for_any_model():
    np.testing.assert_array_equal(
        train(regression(), tasks=[None] * 10, rng=0).step_losses, train(regression(), rng=0).step_losses
    )


def test_missing_data_is_a_null_error():
    with pytest.raises(ArgumentNullError, match="inputs"):
        train(regression(), (None, T))


@pytest.mark.parametrize(
    "model",
    [ActivationLayer(3, relu), Sequential([DenseLayer(3, 3, rng=0)], frozen=["0"])],
    ids=["no parameters", "all frozen"],
)
def test_there_must_be_something_to_train(model):
    with pytest.raises(InvalidOperationError, match=f"{re.escape(model.layer_name)} has nothing to train"):
        train(model, (X, X))


# ---------------------------------------------------------------- numbers that are not finite


class Broken(Loss):
    """The squared error, but at one step the value or the gradient is replaced."""

    def __init__(self, step, value=None, slope=None):
        self.step, self.value, self.slope, self.calls = step, value, slope, 0

    def compute(self, predictions, targets):
        value, gradient = MeanSquaredError().compute(predictions, targets)
        self.calls += 1
        if self.calls == self.step:
            value = value if self.value is None else self.value
            gradient = gradient if self.slope is None else np.full_like(gradient, self.slope)
        return value, gradient


def stopped(model, match, **keywords):
    """The parameters after each step of a training that must stop, the initial ones first."""
    parameters = Parameters(model)
    with pytest.raises(NonFiniteError, match=match):
        train(model, callbacks=[parameters], shuffle=False, **keywords)
    return parameters.seen


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("row", [0, 5, 9])
def test_an_input_that_is_not_finite_stops_at_its_step(bad, row):
    x, t = linear_data()
    x[row, 1] = bad
    model = regression()
    seen = stopped(model, f"step {row + 1}, epoch 1: the loss is", data=(x, t), batch_size=1)
    assert len(seen) == row + 1
    # The last finite loss was that of the step before, and it was taken before that step's update.
    np.testing.assert_array_equal(model.get_parameters(), seen[max(row - 1, 0)])


def test_the_message_counts_steps_over_all_epochs():
    x, t = linear_data()
    model = regression()
    stopped(model, "step 5, epoch 2: the loss is nan.*smaller learning rate", loss=Broken(5, value=np.nan), data=(x, t))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_learning_rate_that_is_too_large_stops_at_the_last_finite_loss(rate, dtype):
    model = DenseLayer(3, 2, dtype=dtype, rng=0)
    x, t = linear_data(dtype=dtype)
    stopped(model, "not finite|the loss is", data=(x, t), optimizer=SGD(rate), epochs=200, batch_size=10)
    with np.errstate(over="ignore"):
        assert np.isfinite(MeanSquaredError()(model.predict(x), t))


@pytest.mark.parametrize("slope", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(slope):
    model = regression()
    seen = stopped(model, "step 3, epoch 1: .* is not finite", loss=Broken(3, slope=slope))
    np.testing.assert_array_equal(model.get_parameters(), seen[2])


def test_an_update_that_overflows_is_not_applied():
    model = regression()
    seen = stopped(model, "the update of .* is not finite", loss=Broken(1, slope=1e200), optimizer=SGD(1e200))
    np.testing.assert_array_equal(model.get_parameters(), seen[0])


def test_a_penalty_that_is_not_finite_counts_as_the_loss():
    model = DenseLayer(3, 2, regularization=Regularization(l2=1e200), rng=0)
    model.weight[...] = 1e100
    stopped(model, "step 1, epoch 1: the loss is inf")


def test_every_task_is_restored():
    model = multilora()
    seen = stopped(model, "step 4", loss=Broken(4, value=np.inf), tasks=TASKS, batch_size=3)
    np.testing.assert_array_equal(model.get_parameters(), seen[2])


def test_modes_and_ranks_are_restored_after_a_stop():
    model = dylora_model().eval()
    stopped(model, "step 2", data=dylora_data(), loss=Broken(2, value=np.nan))
    assert not any(layer.is_training for layer in model.walk().values())


def test_no_warning_comes_before_the_error():
    # Warnings are errors in these tests, so that an overflow on the way would show.
    x, t = linear_data()
    stopped(regression(), "the loss is", data=(x * 1e200, t))


@pytest.mark.parametrize("optimizer", [SGD(0.05), Momentum(0.05), Adam(0.05)], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("broken", [{"value": np.nan}, {"slope": np.nan}], ids=["loss", "gradient"])
def test_training_can_continue_with_the_same_optimizer_after_a_stop(optimizer, broken):
    model = regression()
    optimizer.reset()
    stopped(model, "step 3", loss=Broken(3, **broken), optimizer=optimizer)
    history = train(model, optimizer=optimizer, epochs=10)
    assert history.epoch_losses[-1] < history.epoch_losses[0]


def test_the_sum_of_large_losses_is_infinite_without_a_warning():
    layer = DenseLayer(3, 1, rng=0)
    history = fit(layer, (np.zeros((9, 3)), np.full((9, 1), 1e154)), MeanSquaredError(), SGD(1e-200), 1, 9)
    assert np.isfinite(history.step_losses).all()
    assert history.epoch_losses == [math.inf]
