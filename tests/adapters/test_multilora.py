"""MultiLoRA: tasks, what a switch may not do, and mixed batches."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    ArgumentError,
    ArgumentNullError,
    ArgumentOutOfRangeError,
    DenseLayer,
    InvalidOperationError,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    load_layer,
    relu,
    tanh,
)
from lora_np.run import Run, Tasks
from lora_np.testing import numerical_gradient
from tests.kinds import BASES, batch, bits, randomised, snapshot
from tests.strategies import arrays, leading_axes, seeds, sizes

TASKS = {"first": 1, "second": 3, "third": 2}
"""The tasks of the adapter below, with their ranks."""


def built(base=None, frozen=True, seed=0):
    """A randomised adapter 5 -> 4, or on another base; "first" is current."""
    base = DenseLayer(5, 4) if base is None else base
    adapter = MultiLoRAAdapter(base, "first", 1, 3.0, frozen, rng=seed)
    for name, rank in list(TASKS.items())[1:]:
        adapter.add_task(name, min(rank, base.input_size, base.output_size))
    return randomised(adapter, seed)


def inside_a_model(adapter):
    return Sequential({"in": DenseLayer(5, 5, tanh, rng=0), "multi": adapter})


def itself(adapter):
    return adapter


WRAPPERS = [itself, inside_a_model]


def passed(layer, tasks=None):
    """A forward and a backward pass, routed where tasks are given."""
    rows = 3 if tasks is None else len(tasks)
    x, dy = batch(rows, 5), batch(rows, 4, seed=2)
    y = layer.forward(x) if tasks is None else layer.forward(x, tasks=tasks)
    return y, layer.backward(dy)


# ---------------------------------------------------------------- the worked example

X = np.array([[1, 2, 3], [4, 5, 6]])
G = np.array([[1, 1], [2, 0]])


@pytest.fixture
def worked(base_class):
    base = base_class(3, 2)
    base.set_parameter("weight", base.in_layout(np.array([[1, 0], [0, 1], [0, 0]])))
    base.set_parameter("bias", [0.5, -0.5])
    adapter = MultiLoRAAdapter(base, "a", 1, alpha=2)
    adapter.add_task("b", 2)
    adapter.set_parameter("tasks.a.matrix_a", [[1], [0], [1]])
    adapter.set_parameter("tasks.a.matrix_b", [[1, 2]])
    adapter.set_parameter("tasks.b.matrix_a", [[1, 0], [0, 1], [1, 1]])
    adapter.set_parameter("tasks.b.matrix_b", [[0, 1], [1, 0]])
    return adapter


@pytest.mark.parametrize(
    ("task", "y", "dx", "dA", "dB", "merged"),
    [
        ("a", [[9.5, 17.5], [24.5, 44.5]], [[7, 1, 6], [6, 0, 4]], [[22], [32], [42]], [[48, 8]], [[3, 4], [0, 1], [2, 4]]),
        (
            "b",
            [[6.5, 5.5], [15.5, 14.5]],
            [[2, 2, 2], [2, 2, 2]],
            [[1, 9], [2, 12], [3, 15]],
            [[24, 4], [27, 5]],
            [[1, 1], [1, 1], [1, 1]],
        ),
    ],
    ids=["a", "b"],
)
def test_an_example_worked_by_hand(worked, task, y, dx, dA, dB, merged):
    worked.current_task = task
    assert_array_equal(worked.forward(X), y)
    assert_array_equal(worked.backward(G), dx)
    assert_array_equal(worked.gradients[f"tasks.{task}.matrix_a"], dA)
    assert_array_equal(worked.gradients[f"tasks.{task}.matrix_b"], dB)
    assert_array_equal(worked.merge_task_to_layer(task).matrix, merged)
    assert set(worked.gradients) == {f"tasks.{task}.matrix_a", f"tasks.{task}.matrix_b"}


def test_the_example_as_a_mixed_batch(worked):
    assert_array_equal(worked.forward([*X, [1, 0, 2]], tasks=["b", "a", None]), [[6.5, 5.5], [24.5, 44.5], [1.5, -0.5]])
    assert_array_equal(worked.backward([*G, [3, 1]]), [[2, 2, 2], [6, 0, 4], [3, 1, 0]])
    assert_array_equal(worked.gradients["tasks.a.matrix_a"], [[16], [20], [24]])
    assert_array_equal(worked.gradients["tasks.a.matrix_b"], [[40, 0]])
    assert_array_equal(worked.gradients["tasks.b.matrix_a"], [[1, 1], [2, 2], [3, 3]])
    assert_array_equal(worked.gradients["tasks.b.matrix_b"], [[4, 4], [5, 5]])


# ---------------------------------------------------------------- tasks


def test_the_default_task_is_current():
    adapter = MultiLoRAAdapter(DenseLayer(5, 4), "only", 2)
    assert adapter.current_task == "only"
    assert list(adapter.task_adapters) == ["only"]
    assert adapter.number_of_tasks == len(adapter) == 1


def test_adding_a_task_keeps_the_current_one():
    adapter = built()
    adapter.add_task("fourth", 2, alpha=5.0)
    assert adapter.current_task == "first"
    assert list(adapter.task_adapters) == ["first", "second", "third", "fourth"]
    assert (adapter.get_task_rank("fourth"), adapter.get_task_adapter("fourth").alpha) == (2, 5.0)
    assert adapter.number_of_tasks == len(adapter) == 4


def test_each_task_has_its_own_rank_and_its_alpha_is_that_by_default():
    adapter = built()
    for name, rank in TASKS.items():
        assert adapter.get_task_rank(name) == rank
        assert adapter.get_task_adapter(name).alpha == (3.0 if name == "first" else rank)


def test_a_new_task_computes_the_same_as_the_base():
    adapter = built()
    adapter.add_task("fourth", 2)
    adapter.current_task = "fourth"
    assert_array_equal(adapter.predict(batch(3, 5)), adapter.base_layer.predict(batch(3, 5)))


@pytest.mark.parametrize(
    "select",
    [MultiLoRAAdapter.set_current_task, MultiLoRAAdapter.current_task.fset],
    ids=["method", "property"],
)
def test_rank_alpha_and_branch_follow_the_current_task(select):
    adapter = built()
    select(adapter, "second")
    assert adapter.current_task == "second"
    assert (adapter.rank, adapter.alpha) == (3, 3.0)
    assert adapter.lora_layer is adapter.task_adapters["second"]


def test_each_task_has_a_different_output():
    adapter, outputs = built(), set()
    for task in TASKS:
        adapter.current_task = task
        outputs.add(adapter.predict(batch(3, 5)).tobytes())
    assert len(outputs) == 3


def test_the_view_of_the_tasks_is_live_and_cannot_be_written_to():
    adapter = built()
    view = adapter.task_adapters
    adapter.add_task("fourth", 1)
    assert "fourth" in view
    assert isinstance(view["fourth"], LoRALayer)
    with pytest.raises(TypeError):
        view["fifth"] = view["fourth"]
    with pytest.raises(TypeError):
        del view["first"]


@pytest.mark.parametrize("name", ["first", "nobody", "", None, 3])
def test_membership(name):
    assert (name in built()) is (name == "first")


def test_removing_a_task_drops_its_arrays():
    adapter = built()
    assert adapter.remove_task("third") is True
    assert list(adapter.task_adapters) == ["first", "second"]
    assert not any("third" in name for name in adapter.named_parameters())
    assert adapter.current_task == "first"


def test_removing_the_current_task_makes_the_first_that_remains_current():
    adapter = built()
    adapter.current_task = "third"
    adapter.remove_task("third")
    assert adapter.current_task == "first"
    adapter.remove_task("first")
    assert adapter.current_task == "second"


@pytest.mark.parametrize("name", ["nobody", "", None, 3])
def test_removing_an_unknown_task_returns_false_even_with_one_left(name):
    adapter = MultiLoRAAdapter(DenseLayer(5, 4), "only", 2)
    assert adapter.remove_task(name) is False
    assert built().remove_task(name) is False


def test_the_last_task_cannot_be_removed():
    adapter = MultiLoRAAdapter(DenseLayer(5, 4), "only", 2)
    with pytest.raises(InvalidOperationError, match="'only'"):
        adapter.remove_task("only")
    assert list(adapter.task_adapters) == ["only"]


def test_a_removed_task_can_be_added_again():
    adapter = built()
    old = adapter.get_task_adapter("third")
    adapter.remove_task("third")
    adapter.add_task("third", 1)
    assert adapter.get_task_adapter("third") is not old
    assert not adapter.get_task_adapter("third").matrix_b.any()


NOT_A_NAME = ["", " ", "\t\n", 3, ["first"], b"first"]


@pytest.mark.parametrize("name", [*NOT_A_NAME, None, "first"], ids=repr)
def test_a_bad_name_is_not_added(name):
    adapter = built()
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=r"^task_name must"):
        adapter.add_task(name, 1)
    assert snapshot(adapter) == before
    assert list(adapter.task_adapters) == list(TASKS)


@pytest.mark.parametrize("name", [*NOT_A_NAME, None], ids=repr)
def test_a_bad_default_name_is_refused(name):
    expected = ArgumentNullError if name is None else ArgumentError
    with pytest.raises(expected, match=r"^default_task_name must"):
        MultiLoRAAdapter(DenseLayer(5, 4), name, 1)


BAD_RANKS = [0, -1, 5, 2**62, True, 1.5, "2", None]


@pytest.mark.parametrize("rank", BAD_RANKS, ids=repr)
def test_a_bad_rank_adds_nothing(rank):
    adapter = built()
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=rf"rank.*{rank}"):
        adapter.add_task("fourth", rank)
    assert snapshot(adapter) == before
    assert "fourth" not in adapter


@pytest.mark.parametrize("rank", BAD_RANKS, ids=repr)
def test_a_bad_default_rank_is_refused(rank):
    with pytest.raises(ArgumentError, match=rf"^default_rank must .*{rank}"):
        MultiLoRAAdapter(DenseLayer(5, 4), "first", rank)


@pytest.mark.parametrize("alpha", [np.nan, np.inf], ids=repr)
def test_a_bad_alpha_adds_nothing(alpha):
    adapter = built()
    before = snapshot(adapter)
    with pytest.raises(ArgumentOutOfRangeError, match=rf"^alpha must be finite, got {alpha}"):
        adapter.add_task("fourth", 1, alpha)
    assert snapshot(adapter) == before


BY_NAME = {
    "current_task": MultiLoRAAdapter.current_task.fset,
    "set_current_task": MultiLoRAAdapter.set_current_task,
    "get_task_adapter": MultiLoRAAdapter.get_task_adapter,
    "get_task_rank": MultiLoRAAdapter.get_task_rank,
    "merge_task_to_layer": MultiLoRAAdapter.merge_task_to_layer,
}


@pytest.mark.parametrize("name", ["nobody", "", "First", 3, ["first"], None], ids=repr)
@pytest.mark.parametrize("method", BY_NAME.values(), ids=BY_NAME)
def test_an_unknown_task_is_named_in_the_error(method, name):
    adapter = built()
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=r"^task_name must") as caught:
        method(adapter, name)
    assert repr(name) in str(caught.value)
    assert isinstance(caught.value, ArgumentNullError) is (name is None)
    assert snapshot(adapter) == before


def test_the_error_lists_the_tasks():
    with pytest.raises(ArgumentError, match="'first', 'second', 'third'"):
        built().get_task_adapter("nobody")


def test_names_may_contain_dots_and_spaces():
    adapter = MultiLoRAAdapter(DenseLayer(5, 4), "a.b", 1, rng=0)
    adapter.add_task("a", 2)
    adapter.add_task("a.b.matrix_a", 1)
    adapter.add_task("two words", 1)
    assert len(adapter.named_parameters()) == 8
    file = io.BytesIO()
    randomised(adapter).serialize(file)
    assert bits(load_layer(file).named_parameters(frozen=True)) == bits(adapter.named_parameters(frozen=True))


# ---------------------------------------------------------------- one task trains, the others stand still


@pytest.mark.parametrize("task", TASKS)
def test_a_step_changes_only_the_current_task(base_class, frozen, task):
    adapter = built(randomised(base_class(5, 4)), frozen)
    adapter.current_task = task
    before = bits(adapter.named_parameters(frozen=True))
    passed(adapter)
    adapter.update_parameters(0.5)
    after = bits(adapter.named_parameters(frozen=True))
    moved = {name for name in after if after[name] != before[name]}
    expected = {f"tasks.{task}.matrix_a", f"tasks.{task}.matrix_b"}
    assert moved == (expected if frozen else expected | {"base.weight", "base.bias"})


@pytest.mark.parametrize("task", TASKS)
def test_the_flat_gradient_of_other_tasks_is_exactly_zero(task):
    adapter = built()
    adapter.current_task = task
    passed(adapter)
    flat, start = adapter.get_parameter_gradients(), 0
    for name, branch in adapter.task_adapters.items():
        part = flat[start : start + branch.parameter_count]
        assert part.any() == (name == task)
        start += branch.parameter_count
    assert start == adapter.parameter_count == 9 + 27 + 18


def test_tasks_can_be_trained_in_turn():
    alone, mixed = built(), built()
    for task in ["first", "second", "first"]:
        mixed.current_task = task
        passed(mixed)
        mixed.update_parameters(0.01)
        if task == "first":
            passed(alone)
            alone.update_parameters(0.01)
    assert bits(mixed.task_adapters["first"].named_parameters()) == bits(alone.task_adapters["first"].named_parameters())


# ---------------------------------------------------------------- a switch between forward, backward and step


def switch(adapter):
    adapter.current_task = "second"


def remove_current(adapter):
    adapter.remove_task("first")


def remove_and_add_again(adapter):
    adapter.remove_task("first")
    adapter.add_task("first", 1)
    adapter.current_task = "first"


CHANGES = [switch, remove_current, remove_and_add_again]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("change", CHANGES)
def test_trap_5_backward_refuses_a_changed_task(change, wrap):
    adapter = built()
    layer = wrap(adapter)
    layer.forward(batch(3, 5))
    change(adapter)
    before = snapshot(layer)
    with pytest.raises(InvalidOperationError, match=rf"{layer.layer_name}: the task has changed"):
        layer.backward(batch(3, 4))
    assert snapshot(layer) == before


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("change", CHANGES)
def test_trap_5_a_step_refuses_a_changed_task(change, wrap):
    adapter = built()
    layer = wrap(adapter)
    passed(layer)
    change(adapter)
    before = snapshot(layer)
    with pytest.raises(InvalidOperationError, match=rf"{layer.layer_name}: the task has changed"):
        layer.update_parameters(0.1)
    assert snapshot(layer) == before


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_task_switched_back_is_not_changed(wrap):
    adapter = built()
    layer = wrap(adapter)
    _, expected = passed(layer)
    layer.forward(batch(3, 5))
    adapter.current_task = "third"
    adapter.predict(batch(3, 5))
    adapter.current_task = "first"
    assert_array_equal(layer.backward(batch(3, 4, seed=2)), expected)
    layer.update_parameters(0.1)


def test_changes_to_other_tasks_have_no_effect():
    adapter = built()
    adapter.forward(batch(3, 5))
    adapter.add_task("fourth", 1)
    adapter.backward(batch(3, 4))
    adapter.remove_task("third")
    adapter.update_parameters(0.1)


def test_gradients_before_a_switch_stay_until_they_are_cleared_or_replaced():
    adapter = built()
    passed(adapter)
    switch(adapter)
    passed(adapter)
    adapter.update_parameters(0.1)
    assert not adapter.gradients


def test_a_switch_deep_inside_a_model_is_noticed():
    adapter = built(base=DenseLayer(5, 5))
    outer = StandardLoRAAdapter(Sequential([adapter, DenseLayer(5, 4)]), 2)
    outer.forward(batch(3, 5))
    switch(adapter)
    with pytest.raises(InvalidOperationError):
        outer.backward(batch(3, 4))


# ---------------------------------------------------------------- another branch for a task


def test_a_task_can_get_a_new_branch_of_any_rank():
    adapter = built()
    branch = LoRALayer.from_factors(batch(5, 6), batch(6, 4))
    adapter.replace_task("second", branch)
    assert adapter.get_task_adapter("second") is branch
    assert list(adapter.task_adapters) == list(TASKS)
    assert_allclose(
        adapter.predict(batch(3, 5), tasks=["second"] * 3),
        adapter.base_layer.predict(batch(3, 5)) + branch.predict(batch(3, 5)),
        rtol=1e-12,
    )


def test_trap_5_a_pass_does_not_go_back_through_another_branch():
    adapter = built()
    adapter.forward(batch(3, 5))
    adapter.replace_task("first", randomised(LoRALayer(5, 4, 1)))
    with pytest.raises(InvalidOperationError, match="the task has changed"):
        adapter.backward(batch(3, 4))


@pytest.mark.parametrize(
    ("task", "branch", "message"),
    [
        ("nobody", LoRALayer(5, 4, 1), "'nobody'"),
        ("first", LoRALayer(4, 4, 1), "4 -> 4"),
        ("first", LoRALayer(5, 3, 1), "5 -> 3"),
        ("first", LoRALayer(5, 4, 1, dtype=np.float32), "in float64, got .* in float32"),
    ],
    ids=["unknown-task", "input-size", "output-size", "dtype"],
)
def test_a_branch_that_does_not_fit_replaces_nothing(task, branch, message):
    adapter = built()
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=message):
        adapter.replace_task(task, branch)
    assert snapshot(adapter) == before


# ---------------------------------------------------------------- mixed batches

MIXED = ["third", None, "first", "third", "second", None, "first", "third"]


@pytest.mark.parametrize("method", ["forward", "predict"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_each_row_goes_through_its_own_task(wrap, method):
    adapter = built()
    layer = wrap(adapter)
    x = batch(len(MIXED), 5)
    y = getattr(layer, method)(x, tasks=MIXED)
    expected = []
    for row, task in zip(x, MIXED, strict=True):
        adapter.current_task = task or "first"
        before = layer.layers[0].predict(row) if layer is not adapter else row
        expected.append(adapter.base_layer.predict(before) if task is None else layer.predict(row))
    assert_allclose(y, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("current", TASKS)
def test_routing_neither_uses_nor_changes_the_current_task(current):
    adapter = built()
    expected, _ = passed(adapter, MIXED)
    adapter.current_task = current
    y, _ = passed(adapter, MIXED)
    assert_array_equal(y, expected)
    assert adapter.current_task == current


def test_a_batch_of_one_task_equals_a_pass_of_that_task():
    adapter = built()
    y, dx = passed(adapter, ["first"] * 3)
    gradients = bits(adapter.gradients)
    assert (y.tobytes(), dx.tobytes()) == tuple(array.tobytes() for array in passed(adapter))
    assert bits(adapter.gradients) == gradients


def test_rows_without_a_task_use_the_base_alone(base_class, frozen):
    adapter = built(randomised(base_class(5, 4)), frozen)
    y, dx = passed(adapter, [None] * 3)
    assert_array_equal(y, adapter.base_layer.forward(batch(3, 5)))
    assert_array_equal(dx, adapter.base_layer.backward(batch(3, 4, seed=2)))
    assert set(adapter.gradients) == (set() if frozen else {"base.weight", "base.bias"})


def test_an_empty_mixed_batch():
    adapter = built()
    before = bits(adapter.named_parameters())
    assert adapter.forward(np.empty((0, 5)), tasks=[]).shape == (0, 4)
    assert adapter.backward(np.empty((0, 4))).shape == (0, 5)
    adapter.update_parameters(0.1)
    assert bits(adapter.named_parameters()) == before


@st.composite
def mixed_batches(draw):
    """An adapter, an input with its rows along the first axis, an output gradient, a task for each row."""
    input_size, output_size = draw(sizes())
    base = draw(st.sampled_from(list(BASES.values())))(input_size, output_size)
    adapter = built(base, draw(st.booleans()), draw(seeds))
    tasks = draw(st.lists(st.sampled_from([None, *TASKS]), max_size=8))
    inner = draw(leading_axes)
    x = draw(arrays((len(tasks), *inner, input_size)))
    dy = draw(arrays((len(tasks), *inner, output_size)))
    return adapter, x, dy, tasks


@given(mixed_batches())
def test_a_mixed_batch_combines_the_passes_of_its_tasks(case):
    adapter, x, dy, tasks = case
    y, dx = adapter.forward(x, tasks=tasks), adapter.backward(dy)
    gradients = dict(adapter.gradients)
    base = {name: 0.0 for name in gradients if name.startswith("base.")}
    for task in dict.fromkeys(tasks):
        rows = [i for i, each in enumerate(tasks) if each == task]
        if task is None:
            adapter.forward(x[rows], tasks=[None] * len(rows))
        else:
            adapter.current_task = task
            adapter.forward(x[rows])
        assert_allclose(adapter.backward(dy[rows]), dx[rows], rtol=1e-11, atol=1e-11)
        assert_allclose(adapter.predict(x[rows], tasks=[task] * len(rows)), y[rows], rtol=1e-11, atol=1e-11)
        own = adapter.gradients
        base = {name: total + own[name] for name, total in base.items()}
        for name in own.keys() - base.keys():
            assert_allclose(gradients[name], own[name], rtol=1e-11, atol=1e-11)
    for name, total in base.items():
        assert_allclose(gradients[name], total, rtol=1e-11, atol=1e-11)
    present = {f"tasks.{task}.matrix_{letter}" for task in tasks if task is not None for letter in "ab"}
    assert gradients.keys() - base.keys() == present


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_routed_gradients_by_complex_step(wrap, base_class):
    layer = wrap(built(randomised(base_class(5, 4)), frozen=False))
    x, dy = batch(len(MIXED), 5), batch(len(MIXED), 4, seed=2)
    layer.forward(x, tasks=MIXED)
    found = {"input": layer.backward(dy)} | dict(layer.gradients)

    analytic = in_complex_numbers(layer)
    arrays = {"input": x.astype(complex)} | analytic.named_parameters()

    def objective_of(name):
        def objective(value):
            kept = arrays[name].copy()
            arrays[name][...] = value
            total = (dy * analytic.apply(arrays["input"], Run(tasks=Tasks.of(MIXED, len(MIXED))))[0]).sum()
            arrays[name][...] = kept
            return total

        return objective

    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = numerical_gradient(objective_of(name), array.real)
        assert_allclose(found[name], expected, rtol=1e-10, atol=1e-12)


def in_complex_numbers(layer):
    twin = layer.clone()
    for inner in twin.walk().values():
        for name in inner.parameter_names:
            setattr(inner, name, getattr(inner, name).astype(complex))
    return twin


def test_only_the_tasks_present_change():
    adapter = built()
    before = bits(adapter.named_parameters(frozen=True))
    passed(adapter, ["third", None, "first"])
    adapter.update_parameters(0.5)
    after = bits(adapter.named_parameters(frozen=True))
    moved = {name.split(".")[1] for name in after if after[name] != before[name]}
    assert moved == {"first", "third"}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_switching_the_current_task_does_not_affect_a_mixed_pass(wrap):
    adapter = built()
    layer = wrap(adapter)
    layer.forward(batch(3, 5), tasks=["first", "third", None])
    adapter.current_task = "second"
    layer.backward(batch(3, 4))
    adapter.current_task = "third"
    layer.update_parameters(0.1)


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("change", [remove_current, remove_and_add_again])
def test_removing_a_task_of_a_mixed_pass_is_noticed(change, wrap):
    adapter = built()
    layer = wrap(adapter)
    layer.forward(batch(3, 5), tasks=["first", "third", None])
    change(adapter)
    before = snapshot(layer)
    with pytest.raises(InvalidOperationError, match="the task has changed"):
        layer.backward(batch(3, 4))
    assert snapshot(layer) == before


def test_removing_a_task_that_is_not_present_has_no_effect():
    adapter = built()
    adapter.forward(batch(3, 5), tasks=["first", "third", None])
    adapter.remove_task("second")
    adapter.backward(batch(3, 4))
    adapter.update_parameters(0.1)


BAD_TASKS = {
    "too-few": (["first"], "one entry for each of 3 rows of input, got 1"),
    "too-many": (["first"] * 4, "got 4"),
    "unknown": (["first", "nobody", None], "'nobody'"),
    "empty-name": (["first", "", None], "''"),
    "a-string": ("abc", "'abc'"),
    "a-number": (3, "3"),
    "numbers": ([1, 2, 3], "1"),
}


@pytest.mark.parametrize("method", ["forward", "predict"])
@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize(("tasks", "shown"), BAD_TASKS.values(), ids=BAD_TASKS)
def test_bad_tasks_are_refused(tasks, shown, wrap, method):
    layer = wrap(built())
    _, dx = passed(layer)
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=rf"^tasks must.*{shown}"):
        getattr(layer, method)(batch(3, 5), tasks=tasks)
    assert snapshot(layer) == before
    assert_array_equal(layer.backward(batch(3, 4, seed=2)), dx)


@pytest.mark.parametrize("method", ["forward", "predict"])
def test_one_row_without_an_axis_cannot_be_routed(method):
    with pytest.raises(ArgumentError, match=r"^input must have shape \(rows, \.\.\., 5\) if tasks are given, got \(5,\)$"):
        getattr(built(), method)(batch(5), tasks=["first"])


def test_a_layer_without_tasks_takes_rows_without_a_task_only():
    layer, x = DenseLayer(5, 4, rng=0), batch(3, 5)
    assert_array_equal(layer.forward(x, tasks=[None] * 3), layer.predict(x))
    with pytest.raises(ArgumentError, match="has tasks"):
        layer.forward(x, tasks=[None, "first", None])


def test_a_task_that_one_of_two_adapters_lacks_is_refused():
    model = Sequential([built(DenseLayer(5, 5)), MultiLoRAAdapter(DenseLayer(5, 4), "first", 1)])
    model.forward(batch(2, 5), tasks=["first", None])
    with pytest.raises(ArgumentError, match="'second'"):
        model.forward(batch(2, 5), tasks=["second", None])


def test_adapters_inside_adapters_are_routed_too():
    inner = built(DenseLayer(5, 4))
    outer = randomised(StandardLoRAAdapter(inner, 2))
    x = batch(3, 5)
    tasks = ["second", None, "first"]
    assert_allclose(outer.forward(x, tasks=tasks), inner.predict(x, tasks=tasks) + outer.lora_layer.predict(x), rtol=1e-12)


def test_routed_passes_keep_float32():
    adapter = built(DenseLayer(5, 4, dtype=np.float32))
    y, dx = passed(adapter, ["third", None, "first"])
    assert {y.dtype, dx.dtype, *(g.dtype for g in adapter.gradients.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize("spoilt", ["x", "y", "dy", "dx"])
def test_the_caller_may_overwrite_the_buffers_of_a_mixed_pass(spoilt):
    adapter, tasks = built(frozen=False), ["third", None, "first"]
    _, expected_dx = passed(adapter, tasks)
    expected = bits(adapter.gradients)
    buffers = {"x": batch(3, 5), "dy": batch(3, 4, seed=2)}
    buffers["y"] = adapter.forward(buffers["x"], tasks=tasks)
    if spoilt in ("x", "y"):
        buffers[spoilt][...] = np.nan
    buffers["dx"] = adapter.backward(buffers["dy"])
    assert_array_equal(buffers["dx"], expected_dx)
    buffers[spoilt][...] = np.nan
    assert bits(adapter.gradients) == expected


def test_mixed_predictions_are_safe_from_many_threads():
    adapter = built()
    cases = [(batch(8, 5, seed=seed), MIXED[seed % 8 :] + MIXED[: seed % 8]) for seed in range(40)]
    serial = [adapter.predict(x, tasks=tasks).tobytes() for x, tasks in cases]
    with ThreadPoolExecutor(8) as pool:
        parallel = [y.tobytes() for y in pool.map(lambda case: adapter.predict(case[0], tasks=case[1]), cases)]
    assert parallel == serial


def test_numpy_arrays_of_names_are_accepted():
    adapter = built()
    expected, _ = passed(adapter, ["third", "second", "first"])
    assert_array_equal(adapter.forward(batch(3, 5), tasks=np.array(["third", "second", "first"])), expected)
    assert_array_equal(adapter.forward(batch(3, 5), tasks=iter(["third", "second", "first"])), expected)


# ---------------------------------------------------------------- merging, files, description


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_merged_by_name_whatever_the_current_one(base_class, task):
    adapter = built(randomised(base_class(5, 4)))
    before = snapshot(adapter)
    merged = adapter.merge_task_to_layer(task)
    assert snapshot(adapter) == before
    assert_allclose(merged.predict(batch(3, 5)), adapter.predict(batch(3, 5), tasks=[task] * 3), rtol=1e-11)


def test_merging_to_the_original_layer_takes_the_current_task():
    adapter = built()
    adapter.current_task = "third"
    assert_array_equal(adapter.merge_to_original_layer().weight, adapter.merge_task_to_layer("third").weight)


@pytest.mark.parametrize("base", [DenseLayer(5, 4, relu), Sequential([DenseLayer(5, 4)])], ids=["activation", "stack"])
def test_a_task_on_an_unsupported_base_cannot_be_merged(base):
    with pytest.raises(NotSupportedError):
        built(base).merge_task_to_layer("second")


def test_the_current_task_survives_copies_and_files():
    adapter = built()
    adapter.current_task = "third"
    file = io.BytesIO()
    adapter.serialize(file)
    blank = built()
    blank.deserialize(file)
    for twin in (adapter.clone(), load_layer(file), blank):
        assert twin.current_task == "third"
        assert list(twin.task_adapters) == list(TASKS)
        assert_array_equal(twin.predict(batch(3, 5)), adapter.predict(batch(3, 5)))


def test_a_task_added_to_a_clone_is_not_in_the_original():
    adapter = built()
    adapter.clone().add_task("fourth", 1)
    assert "fourth" not in adapter


def test_the_mode_reaches_every_task():
    adapter = built().eval()
    assert not any(branch.is_training for branch in adapter.task_adapters.values())


def test_a_task_added_in_evaluation_mode_is_in_evaluation_mode():
    adapter = built().eval()
    adapter.add_task("fourth", 1)
    assert not adapter.get_task_adapter("fourth").is_training


def test_diagnostics_show_the_tasks():
    adapter = built()
    adapter.current_task = "second"
    found = adapter.get_diagnostics()
    assert found["multilora.number_of_tasks"] == "3"
    assert found["multilora.current_task"] == "second"
    assert found["multilora.tasks"] == "first, second, third"
    assert found["lora.rank"] == "3"


def test_diagnostics_of_many_tasks_stay_short():
    adapter = built()
    for number in range(6):
        adapter.add_task(f"task {number}", 1)
    assert adapter.get_diagnostics()["multilora.tasks"].endswith("task 3, ... 9 in all")


@pytest.mark.parametrize("frozen", [True, False])
def test_the_number_of_parameters_is_that_of_all_arrays(frozen):
    adapter = built(frozen=frozen)
    assert adapter.parameter_count == sum(array.size for array in adapter.named_parameters().values())
    total = sum(array.size for array in adapter.named_parameters(frozen=True).values())
    assert f"{total:,}" in repr(adapter)


def test_resetting_forgets_the_pass_of_every_task():
    adapter = built()
    passed(adapter)
    adapter.task_adapters["second"].forward(batch(3, 5))
    adapter.reset_state()
    for layer in (adapter, adapter.task_adapters["second"]):
        with pytest.raises(InvalidOperationError):
            layer.backward(batch(3, 4))


@pytest.mark.parametrize(
    "name", ["tasks.unknown.matrix_a", "tasks.matrix_a", "tasks.first.matrix_c", "tasks.first", "first.matrix_a"]
)
def test_updates_of_arrays_that_do_not_exist_are_refused(name):
    adapter = built()
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match="no trainable parameter"):
        adapter.apply_updates({"tasks.first.matrix_a": np.ones((5, 1)), name: np.ones((5, 1))})
    assert snapshot(adapter) == before
