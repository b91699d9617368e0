"""Tasks with ranks: each row of a mixed batch against a DyLoRA adapter of its task alone, and what has to be refused."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    SGD,
    Adam,
    AdamW,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    LoRALayer,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    Sequential,
    fit,
    load_layer,
    save_layer,
)
from lora_np.run import Draw, Run, Tasks
from lora_np.testing import check_gradients
from lora_np.training import SortedStart, rank_per_row, sort_components
from tests.kinds import batch, bits, randomised, snapshot
from tests.strategies import seeds

IN, OUT = 6, 5
PLAIN = {"plain": 3, "thin": 1}
RANKED = {"a": (4, [1, 2, 4], {}), "b": (3, [2, 3], {"scaling": "paper"}), "c": (4, [1, 3], {"scaling": "rslora"})}
"""Rank, active ranks and other arguments."""
ALPHA = 3.0


def tasks(seed=0, frozen=True, **options):
    """An adapter with plain tasks and tasks with ranks."""
    adapter = MultiLoRAAdapter(DenseLayer(IN, OUT, rng=0), "plain", PLAIN["plain"], ALPHA, frozen, rng=1)
    adapter.add_task("thin", PLAIN["thin"], ALPHA)
    for name, (rank, ranks, own) in RANKED.items():
        adapter.add_task(name, rank, ALPHA, ranks, **own, **options)
    return randomised(adapter, seed)


def alone(adapter, name):
    """The DyLoRA adapter of a task with ranks, with copies of its factors."""
    branch, (_, ranks, _) = copy.deepcopy(adapter.get_task_adapter(name)), RANKED[name]
    return DyLoRAAdapter.around(adapter.base_layer, branch, mode=adapter.task_ranks[name].mode, active_ranks=ranks)


def rank_of(name, data):
    """A rank for a row: any for a row that ignores it."""
    return data.draw(st.sampled_from(RANKED[name][1]) if name in RANKED else st.integers(-1, 9))


NAMES = [None, *PLAIN, *RANKED]


# ---------------------------------------------------------------- any rank in any mixed batch


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9), st.data(), seeds)
def test_each_row_is_that_of_its_task_alone_at_its_rank(names, data, seed):
    adapter, x, dy = tasks(seed), batch(len(names), 2, IN, seed=seed), batch(len(names), 2, OUT, seed=seed + 1)
    ranks = [rank_of(name, data) for name in names]
    y = adapter.forward(x, tasks=names, rank=ranks)
    dx = adapter.backward(dy)
    gradients = dict(adapter.gradients)
    expected = {}
    for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        if name in RANKED:
            one, prefix = alone(adapter, name), "lora"
            own_y = one.forward(x[i], rank=rank)
        else:
            one, prefix = tasks(seed), f"tasks.{name}"
            own_y = one.forward(x[i : i + 1], tasks=[name])[0]
        assert_allclose(y[i], own_y, rtol=1e-12, atol=1e-13)
        assert_allclose(dx[i], one.backward(dy[i].reshape(own_y.shape) if name in RANKED else dy[i : i + 1]).reshape(2, IN))
        for key in ("matrix_a", "matrix_b") if name is not None else ():
            own = one.gradients[f"{prefix}.{key}"]
            expected[f"tasks.{name}.{key}"] = expected.get(f"tasks.{name}.{key}", 0) + own
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_allclose(gradients[name], gradient, rtol=1e-11, atol=1e-12)
        assert_array_equal(gradients[name] == 0, gradient == 0)


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=8), st.data(), seeds)
def test_gradients_are_those_of_the_function(names, data, seed):
    ranks = [rank_of(name, data) for name in names]
    check_gradients(tasks(seed, frozen=False), batch(len(names), IN), tasks=names, rank=ranks, method="complex", rtol=1e-10)


@pytest.mark.parametrize("rank", [1, 3])
def test_gradients_in_frozen_mode_are_those_of_one_block(rank):
    adapter, x, names = tasks(mode="frozen"), batch(4, IN), ["c", "plain", "c", None]
    check_gradients(adapter, x, tasks=names, rank=rank, method="complex", active_only=True, rtol=1e-10)
    adapter.forward(x, tasks=names, rank=rank)
    adapter.backward(batch(4, OUT))
    trained = [bool(column.any()) for column in adapter.gradients["tasks.c.matrix_a"].T]
    assert trained == ([True, False, False, False] if rank == 1 else [False, True, True, False])


def test_many_small_tasks_are_gathered_beside_slices():
    adapter = MultiLoRAAdapter(DenseLayer(IN, OUT, rng=0), "t0", 2, ALPHA, rng=1)
    for i in range(1, 40):
        adapter.add_task(f"t{i}", 2, ALPHA, [1, 2] if i % 2 else None)
    randomised(adapter)
    names, x, dy = list(adapter.task_adapters), batch(40, IN), batch(40, OUT)
    ranks = [1 + i // 2 % 2 for i in range(40)]
    y = adapter.forward(x, tasks=names, rank=ranks)
    adapter.backward(dy)
    gradients = dict(adapter.gradients)
    for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        assert_allclose(y[i], adapter.forward(x[i : i + 1], tasks=[name], rank=[rank])[0], rtol=1e-12)
        adapter.backward(dy[i : i + 1])
        for key, gradient in adapter.gradients.items():
            assert_allclose(gradients[key], gradient, rtol=1e-11, atol=1e-13)


def test_without_a_rank_each_task_is_deployed_at_its_own():
    adapter, x = tasks(), batch(4, IN)
    adapter.task_deployment_ranks = {"a": 2, "b": 3, "c": 1}
    names = ["a", "b", "plain", "c"]
    assert_array_equal(adapter.predict(x, tasks=names), adapter.predict(x, tasks=names, rank=[2, 3, 9, 1]))
    assert_array_equal(adapter.eval().forward(x, tasks=names), adapter.predict(x, tasks=names))
    adapter.current_task = "c"
    assert_array_equal(adapter.predict(x), alone(adapter, "c").predict(x, rank=1))


def test_a_training_pass_makes_one_draw_from_which_each_task_derives_its_rank():
    adapter, x = tasks(), batch(2, IN)
    model = Sequential([adapter, DyLoRAAdapter(DenseLayer(OUT, OUT), 4, [1, 2, 4], rng=0)])
    for _ in range(8):
        run = model.new_run(x, tasks=["a", "b"], training=True)
        assert isinstance(run.rank, Draw)
        ranks = [adapter.task_ranks[name].rank_in(run) for name in RANKED]
        assert ranks[0] == model.children()["1"].rank_in(run)
        assert ranks == [adapter.task_ranks[name].rank_at(run.rank.quantile) for name in RANKED]


def test_a_pass_of_a_task_without_ranks_ignores_the_rank():
    adapter, x = tasks(), batch(3, IN)
    assert_array_equal(adapter.predict(x, rank=7), adapter.predict(x))
    assert_array_equal(
        adapter.predict(x, tasks=["thin", None, "plain"], rank=2), adapter.predict(x, tasks=["thin", None, "plain"])
    )


def test_a_task_may_have_no_rows():
    """As a task of empty sequences does."""
    adapter, x, dy = tasks(), batch(2, IN), batch(2, OUT)
    run = Run(tasks=Tasks.coded(("a", "b"), np.zeros(2, int)), rank=np.array([1, 2]))
    y, cache = adapter.apply(x, run)
    assert_allclose(y, adapter.predict(x, tasks=["a", "a"], rank=[1, 2]), rtol=1e-12)
    _, gradients = adapter.vjp(dy, cache)
    assert not gradients["tasks.b.matrix_a"].any()
    assert gradients["tasks.a.matrix_a"].any()


def test_a_rank_may_be_a_function_of_the_task():
    adapter, x = tasks(), batch(2, IN)
    chosen = {"a": 2, "b": 3, "c": 1}
    y = adapter.predict(x, tasks=["a", "c"], rank=lambda task: chosen[task.task_name])
    assert_array_equal(y, adapter.predict(x, tasks=["a", "c"], rank=[2, 1]))


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("new", 4, 1.0, [2, 1]), "active_ranks"),
        (("new", 4, 1.0, [1, 5]), "active_ranks"),
        (("new", 9, 1.0, [1]), "rank must"),
        (("a", 4, 1.0, [1]), "task_name must be new"),
        (("new", 4, 1.0, None, "frozen"), "active_ranks must not be None"),
        (("new", 4, 1.0, [1, 2], "other"), "mode must"),
    ],
)
def test_an_invalid_task_is_refused_and_nothing_changes(arguments, match):
    adapter, (name, rank, alpha, ranks, *mode) = tasks(), arguments
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=match):
        adapter.add_task(name, rank, alpha, ranks, **({"mode": mode[0]} if mode else {}))
    assert snapshot(adapter) == before


def test_probabilities_need_ranks():
    with pytest.raises(ArgumentError, match="rank_distribution"):
        tasks().add_task("new", 2, rank_distribution=[1.0])


@pytest.mark.parametrize("rank", [3, [1, 3], lambda task: 3])
def test_a_rank_that_is_not_active_for_a_task_present_is_refused(rank):
    adapter, x = tasks(), batch(2, IN)
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=r"rank must be one of the active ranks \(1, 2, 4\), got 3"):
        adapter.predict(x, tasks=["plain", "a"], rank=rank)
    assert snapshot(adapter) == before
    adapter.predict(x, tasks=["plain", "b"], rank=rank)


def test_ranks_by_row_are_refused_in_frozen_mode_if_a_gradient_will_follow():
    adapter, x, names = tasks(mode="frozen"), batch(2, IN), ["a", "plain"]
    with pytest.raises(InvalidOperationError, match="task 'a': mode must be 'full'"):
        adapter.forward(x, tasks=names, rank=[1, 1])
    adapter.predict(x, tasks=names, rank=[1, 1])


def test_a_training_pass_needs_a_rank():
    adapter, x = tasks(), batch(1, IN)
    adapter.current_task = "a"
    with pytest.raises(InvalidOperationError, match="task 'a': a training pass needs a rank"):
        adapter.apply(x, Run(training=True))


@pytest.mark.parametrize(("name", "rank", "match"), [("a", 3, "active"), ("plain", 1, "active ranks"), ("x", 1, "one of")])
def test_deployment_ranks_are_checked(name, rank, match):
    adapter = tasks()
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=match):
        adapter.set_task_deployment_rank(name, rank)
    with pytest.raises(ArgumentError, match=match):
        adapter.task_deployment_ranks = {"b": 2, name: rank}
    assert snapshot(adapter) == before


# ---------------------------------------------------------------- merging, files, copies


def test_merging_takes_the_deployment_rank_of_the_task():
    adapter, x = tasks(), batch(3, IN)
    adapter.set_task_deployment_rank("a", 2)
    merged = adapter.merge_task_to_layer("a")
    assert_allclose(merged.predict(x), adapter.predict(x, tasks=["a"] * 3, rank=2), rtol=1e-12)
    adapter.current_task = "a"
    assert_array_equal(adapter.merge_to_original_layer().weight, merged.weight)


def test_the_cost_is_that_of_the_deployed_components():
    adapter = tasks()
    adapter.current_task = "a"
    adapter.set_task_deployment_rank("a", 2)
    other = DyLoRAAdapter(DenseLayer(IN, OUT), 4, [1, 2, 4])
    other.current_deployment_rank = 2
    assert adapter.estimate_flops() == other.estimate_flops()


def test_diagnostics_name_the_deployment_ranks():
    adapter = tasks()
    adapter.set_task_deployment_rank("a", 2)
    shown = adapter.get_diagnostics()["multilora.deployment_ranks"]
    assert shown == "a: 2 of [1, 2, 4], b: 3 of [2, 3], c: 3 of [1, 3]"
    assert "multilora.deployment_ranks" not in MultiLoRAAdapter(DenseLayer(2, 2), "a", 1).get_diagnostics()


def test_files_and_copies_keep_the_ranks(tmp_path):
    adapter, x = tasks(), batch(3, IN)
    adapter.add_task("d", 4, 1.0, [1, 2], mode="frozen", rank_distribution=[0.25, 0.75])
    adapter.task_deployment_ranks = {"a": 1, "d": 1}
    save_layer(adapter, tmp_path / "tasks.npz")
    for twin in (load_layer(tmp_path / "tasks.npz"), pickle.loads(pickle.dumps(adapter)), copy.deepcopy(adapter)):
        assert twin.config()["ranks"] == adapter.config()["ranks"]
        assert twin.task_deployment_ranks == {"a": 1, "b": 3, "c": 3, "d": 1}
        assert_array_equal(twin.predict(x, tasks=["a", "d", "b"]), adapter.predict(x, tasks=["a", "d", "b"]))
        assert all(ranks.lora_layer is twin.get_task_adapter(name) for name, ranks in twin.task_ranks.items())
        twin.set_task_deployment_rank("a", 4)
        assert adapter.task_deployment_ranks["a"] == 1


def test_the_seed_of_the_adapter_decides_the_ranks():
    runs = []
    for _ in range(2):
        adapter = MultiLoRAAdapter(DenseLayer(IN, OUT), "a", 4, active_ranks=[1, 2, 3, 4], rng=7)
        passes = [adapter.new_run(batch(1, IN), training=True) for _ in range(8)]
        runs.append([adapter.task_ranks["a"].rank_in(run) for run in passes])
    assert runs[0] == runs[1]


def test_a_copy_draws_the_same_ranks():
    adapter, x = tasks(), batch(2, IN)
    twin = pickle.loads(pickle.dumps(adapter))
    for _ in range(5):
        y = adapter.forward(x, tasks=["a", "c"])
        assert_array_equal(y, twin.forward(x, tasks=["a", "c"]))


def test_removing_a_task_removes_its_ranks():
    adapter = MultiLoRAAdapter(DenseLayer(IN, OUT), "a", 4, active_ranks=[1, 4])
    adapter.add_task("b", 2)
    assert adapter.settings == ("current_task", "task_deployment_ranks")
    assert adapter.remove_task("a")
    assert dict(adapter.task_ranks) == {}
    assert adapter.settings == ("current_task",)
    adapter.predict(batch(2, IN))


def test_a_new_branch_of_lower_rank_replaces_the_ranks_above_it():
    adapter = tasks()
    adapter.replace_task("a", LoRALayer(IN, OUT, 3, rng=0))
    assert adapter.task_ranks["a"].active_ranks == (1, 2, 3)
    assert adapter.task_deployment_ranks["a"] == 3
    thinner = tasks().with_branches(lambda branch: branch.at_rank(min(branch.rank, 2)))
    assert {name: ranks.active_ranks for name, ranks in thinner.task_ranks.items()} == {"a": (1, 2), "b": (2,), "c": (1, 2)}


def test_a_changed_copy_leaves_the_ranks_of_the_adapter_alone():
    adapter, x = tasks(), batch(2, IN)
    y = adapter.predict(x, tasks=["a", "b"])
    branch, base = adapter.get_task_adapter("a").clone(), adapter.base_layer.clone()
    for changed in ({"tasks.a": branch}, {"base": base}, {f"tasks.{name}": branch.at_rank(4) for name in "abc"}):
        twin = adapter.with_children(changed)
        twin.task_deployment_ranks = {"a": 1, "b": 2, "c": 1}
        assert_array_equal(adapter.predict(x, tasks=["a", "b"]), y)
        assert all(ranks.lora_layer is twin.get_task_adapter(name) for name, ranks in twin.task_ranks.items())


# ---------------------------------------------------------------- training

OPTIMIZERS = [lambda: SGD(0.1), lambda: Momentum(0.1), lambda: Adam(0.05), lambda: AdamW(0.05, weight_decay=0.1)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_training_together_equals_training_apart(optimizer, mode):
    """With one shared quantile per step, a task of a mixed batch trains as it does in batches of its rows alone."""
    rows = {"a": [0, 3, 4], "plain": [1, 6], "c": [2, 5, 7]}
    X, T = batch(8, IN, seed=3), batch(8, OUT, seed=4)
    names = np.empty(8, object)
    for name, own in rows.items():
        names[own] = name

    def trained(chosen):
        adapter, quantiles = tasks(mode=mode), np.random.default_rng(5)
        schedule = lambda adapters, rng, n: Draw(quantiles.random())  # noqa: E731
        fit(
            adapter, (X[chosen], T[chosen]), MeanSquaredError(), optimizer(), 6, 8, tasks=names[chosen].tolist(),
            average="task", rank_schedule=schedule, shuffle=False,
        )  # fmt: skip
        return adapter.named_parameters()

    together = trained(slice(None))
    for name, own in rows.items():
        apart = trained(own)
        for key in (f"tasks.{name}.matrix_a", f"tasks.{name}.matrix_b"):
            assert_allclose(together[key], apart[key], rtol=1e-11, atol=1e-12)
    assert bits({"b": together["tasks.b.matrix_a"]}) == bits({"b": tasks().named_parameters()["tasks.b.matrix_a"]})


@pytest.mark.parametrize("schedule", [rank_per_row, SortedStart(0.5), SortedStart(2, then=rank_per_row)])
def test_rank_schedules_train_every_task(schedule):
    adapter = tasks()
    before = adapter.clone().named_parameters()
    X, T, names = batch(12, IN), batch(12, OUT), ["a", "b", "plain"] * 4
    history = fit(adapter, (X, T), MeanSquaredError(), Adam(0.02), 4, 4, tasks=names, rank_schedule=schedule, rng=0)
    assert history.epoch_losses[-1] < history.epoch_losses[0]
    moved = {name.split(".")[1] for name, array in adapter.named_parameters().items() if (array != before[name]).any()}
    assert moved == {"a", "b", "plain"}


def test_accumulated_parts_take_the_same_steps():
    X, T, names = batch(8, IN), batch(8, OUT), ["a", "b", "plain", "c"] * 2
    found = []
    for size, parts in [(8, 1), (2, 4)]:
        adapter = tasks()
        fit(
            adapter, (X, T), MeanSquaredError(), SGD(0.1), 3, size, tasks=names, accumulate=parts, average="task",
            rank_schedule=rank_per_row, rng=0, weights=np.arange(1.0, 9),
        )  # fmt: skip
        found.append(adapter.get_parameters())
    assert_allclose(*found, rtol=1e-11, atol=1e-12)


def test_sorting_keeps_the_function_of_each_task_at_its_highest_rank():
    adapter, x = tasks(), batch(5, IN)
    names = ["a", "b", "c", "plain", "thin"]
    before, plain = adapter.predict(x, tasks=names), adapter.get_task_adapter("plain").get_matrix_a()
    optimum = np.linalg.svd(adapter.get_task_adapter("a").merge_weights())[1]
    assert sort_components(adapter) == 3
    assert_allclose(adapter.predict(x, tasks=names), before, rtol=1e-10)
    assert_array_equal(adapter.get_task_adapter("plain").matrix_a, plain)
    branch = adapter.get_task_adapter("a")
    error = np.linalg.norm(branch.merge_weights() - branch.merge_weights(rank=2))
    assert_allclose(error, np.linalg.norm(optimum[2:4]), rtol=1e-10)


def test_dropout_of_a_task_with_ranks():
    adapter, x = tasks(), batch(6, IN)
    adapter.add_task("d", 2, 1.0, [1, 2], dropout=0.5)
    randomised(adapter)
    names = ["d", "a", "plain", "d", None, "d"]
    run = adapter.new_run(x, tasks=names, rank=[1, 2, 0, 2, 0, 1], training=True)
    y, _ = adapter.apply(x, run)
    assert_array_equal(adapter.apply(x, run)[0], y)
    inference = adapter.predict(x, tasks=names, rank=[1, 2, 0, 2, 0, 1])
    assert [bool((a == b).all()) for a, b in zip(y, inference, strict=True)] == [name != "d" for name in names]
    check_gradients(adapter, x, tasks=names, rank=[1, 2, 0, 2, 0, 1], training=True, method="complex", rtol=1e-10)


def test_a_mixed_batch_draws_a_seed_for_dropout_and_one_rank_for_all():
    adapter, x = MultiLoRAAdapter(DenseLayer(IN, OUT), "d", 2, active_ranks=[1, 2], dropout=0.5, rng=0), batch(2, IN)
    run = adapter.new_run(x, training=True)
    assert run.seed is not None
    assert isinstance(run.rank, Draw)
