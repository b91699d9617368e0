"""`fit(..., average="task")`: training tasks together, in mixed batches, is training each of them apart."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np import (
    SGD,
    Adam,
    AdamW,
    ArgumentError,
    DenseLayer,
    FunctionLoss,
    Huber,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    Sequential,
    SoftmaxCrossEntropy,
    apply_lora,
    fit,
    tanh,
)
from lora_np.distributed import fit_shards

TASKS = ("a", "b", "c")
OPTIMIZERS = {
    "SGD": lambda: SGD(0.02),
    "Momentum": lambda: Momentum(0.005),
    "Nesterov": lambda: Momentum(0.005, nesterov=True),
    "Adam": lambda: Adam(0.02, epsilon=1e-3),
    "AdamW": lambda: AdamW(0.02, epsilon=1e-3, weight_decay=0.1),
}
GROUPS = {"*.a.*": 0.5, "down.tasks.b.matrix_b": 2.0, "*.c.*": 0.0}


def model_of(tasks=TASKS, seed=3):
    """Two adapted layers, each with branches of different ranks, whose factors are all random."""

    def adapter(layer):
        adapter = MultiLoRAAdapter(layer, tasks[0], 1, rng=seed)
        for number, task in enumerate(tasks[1:]):
            adapter.add_task(task, 2 + number % 2)
        return adapter

    base = Sequential({"up": DenseLayer(4, 5, tanh, rng=1), "down": DenseLayer(5, 3, rng=2)})
    return with_branches(apply_lora(base, adapter), seed)


def with_branches(model, seed=3):
    rng = np.random.default_rng(seed)
    for p in model.named_parameters().values():
        p[...] = rng.uniform(-1, 1, p.shape)
    return model


def data(tasks, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((len(tasks), 4)), rng.standard_normal((len(tasks), 3))


def batches(rows, batch_size):
    return [np.arange(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]


def train_apart(model, task, samples, tasks, optimizer, batch_size, loss, epochs=2, **options):
    """Train one task on its rows of each batch, as a separate batch; returns the sum of its losses in each step."""
    (x, t), losses = samples, []
    for batch in batches(len(tasks), batch_size) * epochs:
        rows = [row for row in batch if tasks[row] == task]
        if rows:
            history = fit(model, (x[rows], t[rows]), loss, optimizer, 1, len(rows), tasks=[task] * len(rows), **options)
        losses.append(history.step_losses[0] if rows else 0.0)
    return losses


def of_task(task, arrays):
    return {name: array for name, array in arrays.items() if f"tasks.{task}." in name}


def assert_near(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-12, atol=1e-12, err_msg=name)


rows_of_tasks = st.lists(st.sampled_from([*TASKS, None]), min_size=1, max_size=11)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@settings(max_examples=20, deadline=None)
@given(
    tasks=rows_of_tasks,
    batch_size=st.integers(1, 6),
    loss=st.sampled_from([MeanSquaredError(), Huber(0.5), SoftmaxCrossEntropy()]),
    groups=st.sampled_from([None, GROUPS]),
    seed=st.integers(0, 2**16),
)
def test_training_together_is_training_apart(kind, tasks, batch_size, loss, groups, seed):
    x, t = data(tasks, seed)
    t = abs(t)  # targets of the cross-entropy are not negative
    model, optimizer = model_of(), OPTIMIZERS[kind]()
    options = {"groups": groups, "shuffle": False}
    history = fit(model, (x, t), loss, optimizer, 2, batch_size, tasks=tasks, average="task", **options)
    losses = []
    for task in [*TASKS, None]:
        alone, own = model_of(), OPTIMIZERS[kind]()
        losses.append(train_apart(alone, task, (x, t), tasks, own, batch_size, loss, **options))
        assert_near(of_task(task, model.named_parameters()), of_task(task, alone.named_parameters()))
        assert_near(of_task(task, optimizer.get_state()), of_task(task, own.get_state()))
    np.testing.assert_allclose(history.step_losses, np.sum(losses, axis=0), rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    tasks=rows_of_tasks,
    batch_size=st.integers(1, 3),
    accumulate=st.integers(2, 4),
    kind=st.sampled_from(list(OPTIMIZERS)),
    seed=st.integers(0, 2**16),
)
def test_passes_of_a_step_average_each_task_over_all_of_them(tasks, batch_size, accumulate, kind, seed):
    def train(batch_size, **more):
        model, optimizer = model_of(), OPTIMIZERS[kind]()
        history = fit(
            model,
            data(tasks, seed),
            MeanSquaredError(),
            optimizer,
            2,
            batch_size,
            tasks=tasks,
            average="task",
            rng=0,
            **more,
        )
        return model.named_parameters(), optimizer.get_state(), history.step_losses

    whole, parts = train(batch_size * accumulate), train(batch_size, accumulate=accumulate)
    assert_near(parts[0], whole[0])
    assert_near(parts[1], whole[1])
    np.testing.assert_allclose(parts[2], whole[2], rtol=1e-12)


def test_a_penalty_counts_once_however_many_passes_a_step_has():
    def train(batch_size, accumulate):
        base = DenseLayer(4, 3, rng=1)
        base.regularization = type(base.regularization)(l2=0.5)
        model = with_branches(MultiLoRAAdapter(base, "a", 2, freeze_base_layer=False, rng=0))
        model.add_task("b", 1)
        tasks = ["a", "b", "a", None, "b"]
        fit(
            model,
            data(tasks, 0),
            MeanSquaredError(),
            SGD(0.1),
            2,
            batch_size,
            tasks=tasks,
            average="task",
            accumulate=accumulate,
            shuffle=False,
        )
        return model.named_parameters()

    assert_near(train(2, 3), train(6, 1))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_task_that_is_added_during_training_starts_its_own_state(kind):
    first, second = ["a", "b", "a", "b", "b"], ["c", "a", "c", "c", "b", "a"]
    model, optimizer, loss = model_of(("a", "b")), OPTIMIZERS[kind](), MeanSquaredError()
    together = partial(fit, loss=loss, optimizer=optimizer, epochs=2, batch_size=2, average="task", shuffle=False)
    together(model, data(first, 1), tasks=first)
    for name in ("up", "down"):
        model.children()[name].add_task("c", 2)
    alone, own = model.clone(), OPTIMIZERS[kind]()
    together(model, data(second, 2), tasks=second)
    train_apart(alone, "c", data(second, 2), second, own, 2, loss, shuffle=False)
    assert_near(of_task("c", model.named_parameters()), of_task("c", alone.named_parameters()))
    assert_near(of_task("c", optimizer.get_state()), own.get_state())
    steps = {name: array for name, array in optimizer.get_state().items() if name.endswith(":steps")}
    if "Adam" in kind:
        assert {int(array.max()) for array in of_task("c", steps).values()} == {4}  # two batches in two epochs
        assert {int(array.max()) for array in of_task("b", steps).values()} == {8}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_task_that_is_added_again_starts_anew_after_a_reset(kind):
    tasks, fresh = ["a", "b", "a", "b", "b"], OPTIMIZERS[kind]()
    model, optimizer = model_of(("a", "b")), OPTIMIZERS[kind]()
    train = partial(fit, loss=MeanSquaredError(), epochs=2, batch_size=2, average="task", tasks=tasks, shuffle=False)
    train(model, data(tasks, 1), optimizer=optimizer)
    states = optimizer.get_state()
    for name in ("up", "down"):
        layer = model.children()[name]
        layer.remove_task("b")
        layer.add_task("b", 2)
    optimizer.reset(["*.b.*"])
    left = optimizer.get_state()
    assert left.keys() == {name for name in states if ".b." not in name}
    assert all(np.array_equal(left[name], states[name]) for name in left)
    new = model.clone()
    train(model, data(tasks, 2), optimizer=optimizer)
    train(new, data(tasks, 2), optimizer=fresh)
    assert_near(of_task("b", model.named_parameters()), of_task("b", new.named_parameters()))
    assert_near(of_task("b", optimizer.get_state()), of_task("b", fresh.get_state()))


def test_the_default_average_is_over_all_rows_of_the_batch():
    tasks = ["a", "a", "a", "b"]
    found = {}
    for average in ("batch", "task"):
        model = model_of()
        before = model.named_parameters()["down.tasks.b.matrix_b"].copy()
        fit(model, data(tasks, 0), MeanSquaredError(), SGD(0.1), 1, 4, tasks=tasks, average=average, shuffle=False)
        found[average] = model.named_parameters()["down.tasks.b.matrix_b"] - before
    np.testing.assert_allclose(found["task"], 4 * found["batch"], rtol=1e-9)  # one of four rows


def test_a_task_without_labels_in_a_batch_is_left_alone():
    tasks, labels = ["a", "b", "a", "b"], np.array([0, -1, 2, -1])
    model, optimizer = model_of(), AdamW(0.1, weight_decay=0.5)
    before = {name: p.copy() for name, p in model.named_parameters().items()}
    x, _ = data(tasks, 0)
    history = fit(model, (x, labels), SoftmaxCrossEntropy(), optimizer, 1, 4, tasks=tasks, average="task", shuffle=False)
    assert not of_task("b", optimizer.get_state())
    for name, p in of_task("b", model.named_parameters()).items():
        np.testing.assert_array_equal(p, before[name])
    alone = model_of()
    rows = [0, 2]
    other = fit(
        alone,
        (x[rows], labels[rows]),
        SoftmaxCrossEntropy(),
        AdamW(0.1, weight_decay=0.5),
        1,
        2,
        tasks=["a"] * 2,
        shuffle=False,
    )
    assert_near(of_task("a", model.named_parameters()), of_task("a", alone.named_parameters()))
    assert history.step_losses == pytest.approx(other.step_losses, rel=1e-12)


def test_a_pass_without_labels_of_a_task_counts_nothing_for_it():
    tasks, labels = ["a", "b", "a", "b"], np.array([0, -1, 2, 1])
    found = []
    for batch_size, accumulate in [(2, 2), (4, 1)]:
        model = model_of()
        fit(
            model,
            (data(tasks, 0)[0], labels),
            SoftmaxCrossEntropy(),
            SGD(0.1),
            1,
            batch_size,
            tasks=tasks,
            average="task",
            accumulate=accumulate,
            shuffle=False,
        )
        found.append(model.named_parameters())
    assert_near(*found)


@pytest.mark.parametrize("average", ["batch", "task"])
def test_rows_without_a_label_might_as_well_be_absent(average):
    tasks, labels = ["a", "b", "a", "b", "c"], np.array([-1, -1, 0, 1, -100])
    x, _ = data(tasks, 0)
    found, expected = model_of(), model_of()
    options = {"average": average, "validation": (x, labels, tasks), "rng": 0}
    history = fit(found, (x, labels), SoftmaxCrossEntropy(), Adam(0.1), 3, 1, tasks=tasks, **options)
    other = fit(expected, (x[2:4], labels[2:4]), SoftmaxCrossEntropy(), Adam(0.1), 3, 1, tasks=tasks[2:4], **options)
    assert history == other
    np.testing.assert_array_equal(found.get_parameters(), expected.get_parameters())


def test_any_loss_can_be_averaged_by_task():
    tasks = ["a", "b", "a", "b", "b"]
    found = []
    for loss in (MeanSquaredError(), FunctionLoss(lambda p, t: np.mean((p - t) ** 2))):
        model = model_of()
        fit(model, data(tasks, 0), loss, SGD(0.1), 1, 5, tasks=tasks, average="task", shuffle=False)
        found.append(model.get_parameters())
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_the_validation_loss_adds_up_those_of_the_tasks():
    tasks, valid = ["a", "b", "a", "b"], ["b", "b", "c", "b"]
    x, t = data(valid, 5)
    losses = {}
    for average in ("batch", "task"):
        model = model_of()
        history = fit(
            model,
            data(tasks, 0),
            MeanSquaredError(),
            SGD(0.1),
            1,
            4,
            tasks=tasks,
            average=average,
            validation=(x, t, valid),
            shuffle=False,
        )
        losses[average] = history.validation_losses[0]
        y, rows = model.predict(x, tasks=valid), [0, 1, 3]
        means = MeanSquaredError()(y[rows], t[rows]) + MeanSquaredError()(y[2:3], t[2:3])
        assert losses[average] == pytest.approx(means if average == "task" else MeanSquaredError()(y, t), rel=1e-12)


def test_tasks_without_labels_do_not_count_in_the_validation_loss():
    tasks, valid = ["a", "b"], ["a", "b", "b"]
    x, _ = data(valid, 5)
    model = model_of()
    history = fit(
        model,
        (data(tasks, 0)[0], [0, 1]),
        SoftmaxCrossEntropy(),
        SGD(0.1),
        1,
        2,
        tasks=tasks,
        average="task",
        validation=(x, [-1, 0, 1], valid),
    )
    expected = SoftmaxCrossEntropy()(model.predict(x[1:], tasks=valid[1:]), [0, 1])
    assert history.validation_losses == pytest.approx([expected], rel=1e-12)


def test_validation_without_tasks_is_a_plain_mean():
    tasks = ["a", "b"]
    x, t = data(tasks, 5)
    model = model_of()
    history = fit(model, data(tasks, 0), MeanSquaredError(), SGD(0.1), 1, 2, tasks=tasks, average="task", validation=(x, t))
    assert history.validation_losses == [MeanSquaredError()(model.predict(x), t)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "row", "tasks": ["a", "b"]}, "average must be one of 'batch', 'task', got 'row'"),
        ({"average": None, "tasks": ["a", "b"]}, "average must be one of 'batch', 'task', got None"),
        ({"average": "task"}, "average must be 'batch' if no tasks are given, got 'task'"),
    ],
)
def test_bad_averages_are_refused_before_the_first_step(options, message):
    model = model_of()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=message):
        fit(model, data(["a", "b"], 0), MeanSquaredError(), SGD(0.1), 1, 2, **options)
    np.testing.assert_array_equal(model.get_parameters(), before)


def test_clipping_couples_the_tasks():
    tasks = ["a", "b"]
    x, t = data(tasks, 0)
    far = t * np.array([[1e6], [1.0]])  # the gradient of "a" is long
    moved = {}
    for name, targets, options in [("free", far, {}), ("clipped", far, {"clip_norm": 1.0})]:
        model = model_of()
        before = {path: p.copy() for path, p in model.named_parameters().items()}
        fit(model, (x, targets), MeanSquaredError(), SGD(1.0), 1, 2, tasks=tasks, average="task", **options)
        moved[name] = {path: p - before[path] for path, p in model.named_parameters().items()}
    norms = {name: np.sqrt(sum((change**2).sum() for change in changes.values())) for name, changes in moved.items()}
    assert norms["clipped"] == pytest.approx(1.0)
    for path, change in of_task("b", moved["clipped"]).items():
        np.testing.assert_allclose(change, moved["free"][path] / norms["free"], rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- shards


def shard(tasks, seed):
    return (*data(tasks, seed), tasks)


@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(rows_of_tasks, min_size=1, max_size=3),
    batch_size=st.integers(1, 4),
    kind=st.sampled_from(["SGD", "AdamW"]),
)
def test_shards_average_each_task_over_all_of_them(parts, batch_size, kind):
    found, expected = model_of(), model_of()
    loaders = [partial(shard, tasks, seed) for seed, tasks in enumerate(parts)]
    fit_shards(found, loaders, MeanSquaredError(), OPTIMIZERS[kind](), 1, batch_size, average="task", shuffle=False)
    optimizer = OPTIMIZERS[kind]()
    for start in range(0, max(map(len, parts)), batch_size):
        pieces = [[array[start : start + batch_size] for array in loader()] for loader in loaders]
        pieces = [piece for piece in pieces if len(piece[0])]
        x, t = (np.concatenate([piece[k] for piece in pieces]) for k in (0, 1))
        tasks = [task for piece in pieces for task in piece[2]]
        fit(expected, (x, t), MeanSquaredError(), optimizer, 1, len(x), tasks=tasks, average="task", shuffle=False)
    assert_near(found.named_parameters(), expected.named_parameters())


def test_one_shard_is_fit_to_the_bit():
    tasks = ["a", "b", None, "b", "c", "a", "a"]
    found, expected = model_of(), model_of()
    histories = [
        fit_shards(found, [partial(shard, tasks, 0)], MeanSquaredError(), Adam(0.1), 2, 3, average="task", rng=0),
        fit(expected, data(tasks, 0), MeanSquaredError(), Adam(0.1), 2, 3, tasks=tasks, average="task", rng=0),
    ]
    assert found.get_parameters().tobytes() == expected.get_parameters().tobytes()
    assert histories[0] == histories[1]


def test_every_shard_must_have_tasks():
    loaders = [partial(shard, ["a", "b"], 0), partial(data, ["a", "b"], 1)]
    with pytest.raises(ArgumentError, match=r"shard 1.* average must be 'batch' if no tasks are given"):
        fit_shards(model_of(), loaders, MeanSquaredError(), SGD(0.1), 1, average="task")


def test_a_run_resumes_only_with_the_same_average(tmp_path):
    loaders, path = [partial(shard, ["a", "b", "b"], 0)], tmp_path / "run.npz"
    train = partial(fit_shards, shards=loaders, loss=MeanSquaredError(), epochs=2, rng=0, checkpoint=path)
    train(model_of(), optimizer=SGD(0.1), average="task")
    with pytest.raises(ArgumentError, match="average is 'task' in the file, 'batch' here"):
        train(model_of(), optimizer=SGD(0.1), resume=True)
    model = model_of()
    assert len(train(model, optimizer=SGD(0.1), average="task", resume=True).step_losses) == 2
