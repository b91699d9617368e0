"""Mixed batches: every mix of tasks against one row at a time, and no work that grows with the number of tasks."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    DenseLayer,
    DyLoRAAdapter,
    FullyConnectedLayer,
    MultiLoRAAdapter,
    Regularization,
    Sequential,
    StandardLoRAAdapter,
    relu,
    tanh,
)
from lora_np.base import pending
from lora_np.run import Run, Tasks
from tests.kinds import batch, bits, randomised
from tests.strategies import seeds

IN, OUT = 5, 4
TASKS = {"a": (1, 3.0), "b": (3, -1.0), "c": (2, 0.0), "d": (4, 0.5), "e": (2, 7.0)}
"""Rank and alpha."""


def on(base, frozen=True, seed=0):
    """A randomised adapter with these tasks."""
    first, *others = TASKS
    adapter = MultiLoRAAdapter(base, first, *TASKS[first], frozen, rng=0)
    for name in others:
        adapter.add_task(name, *TASKS[name])
    return randomised(adapter, seed)


BASES = {
    "dense": lambda dtype: DenseLayer(IN, OUT, dtype=dtype),
    "fully-connected": lambda dtype: FullyConnectedLayer(IN, OUT, dtype=dtype),
    "activation": lambda dtype: DenseLayer(IN, OUT, tanh, dtype=dtype),
    "sequential": lambda dtype: Sequential([DenseLayer(IN, 6, relu, dtype=dtype), DenseLayer(6, OUT, dtype=dtype)]),
    "sequential-routed": lambda dtype: Sequential([on(DenseLayer(IN, 6, dtype=dtype)), DenseLayer(6, OUT, dtype=dtype)]),
    "standard": lambda dtype: StandardLoRAAdapter(DenseLayer(IN, OUT, dtype=dtype), 2, rng=0),
    "dylora": lambda dtype: DyLoRAAdapter(DenseLayer(IN, OUT, dtype=dtype), 3, [1, 3], rng=0).eval(),
    "multilora": lambda dtype: on(DenseLayer(IN, OUT, dtype=dtype)),
}

names = st.sampled_from([None, *TASKS])
mixes = st.one_of(
    st.lists(names, min_size=1, max_size=9),
    st.lists(names, min_size=1, max_size=9).map(lambda tasks: sorted(tasks, key=str)),
    st.tuples(names, st.integers(1, 5)).map(lambda drawn: [drawn[0]] * drawn[1]),
    st.permutations([None, *TASKS]),
    st.tuples(st.permutations(list(TASKS)), st.integers(1, 3)).map(lambda drawn: drawn[0] * drawn[1]),
    names.map(lambda task: [task]),
)
"""Any, sorted, one for all rows, a task for each row, each task again and again, one row."""


@pytest.mark.parametrize("base", BASES)
@given(
    tasks=mixes,
    inner=st.sampled_from([(), (1,), (2,), (0,), (2, 3)]),
    dtype=st.sampled_from([np.float64, np.float32]),
    frozen=st.booleans(),
    seed=seeds,
)
def test_a_mixed_batch_equals_its_rows_one_at_a_time(base, tasks, inner, dtype, frozen, seed):
    adapter = on(BASES[base](dtype), frozen, seed).eval()
    x = batch(len(tasks), *inner, IN, seed=seed).astype(dtype)
    dy = batch(len(tasks), *inner, OUT, seed=seed + 1).astype(dtype)
    y, dx = adapter.forward(x, tasks=tasks), adapter.backward(dy)
    gradients = dict(adapter.gradients)
    assert {y.dtype, dx.dtype, *(gradient.dtype for gradient in gradients.values())} == {np.dtype(dtype)}
    near = {"rtol": 1e-10, "atol": 1e-10} if dtype == np.float64 else {"rtol": 1e-3, "atol": 2e-3}

    expected = {name: np.zeros(gradient.shape) for name, gradient in gradients.items()}
    for row, task in enumerate(tasks):
        x_row, dy_row = x[row : row + 1], dy[row : row + 1]
        y_row, cache = adapter.base_layer.apply(x_row, Run(tasks=Tasks.of([task], 1)))
        dx_row, own = adapter.base_layer.vjp(dy_row, cache)
        if not frozen:
            for name, gradient in own.items():
                expected[f"base.{name}"] += gradient
        if task is not None:
            branch = adapter.get_task_adapter(task)
            A, B, s = branch.matrix_a, branch.matrix_b, branch.alpha / branch.rank
            y_row, dx_row = y_row + s * (x_row @ A @ B), dx_row + s * (dy_row @ B.T @ A.T)
            flat_x, flat_dy = x_row.reshape(-1, IN), dy_row.reshape(-1, OUT)
            expected[f"tasks.{task}.matrix_a"] += s * flat_x.T @ (flat_dy @ B.T)
            expected[f"tasks.{task}.matrix_b"] += s * (flat_x @ A).T @ flat_dy
        assert_allclose(y[row : row + 1], y_row, **near)
        assert_allclose(dx[row : row + 1], dx_row, **near)
    for name, gradient in gradients.items():
        assert_allclose(gradient, expected[name], **near)
    assert {name.split(".")[1] for name in gradients if name.startswith("tasks.")} == set(tasks) - {None}
    assert_allclose(adapter.predict(x, tasks=tasks), y, **near)


def test_a_step_changes_only_the_tasks_present():
    adapter = on(DenseLayer(IN, OUT))
    before = bits(adapter.named_parameters(frozen=True))
    adapter.forward(batch(4, IN), tasks=["d", None, "b", "d"])
    adapter.backward(batch(4, OUT))
    adapter.update_parameters(0.1)
    after = bits(adapter.named_parameters(frozen=True))
    assert {name.split(".")[1] for name in after if after[name] != before[name]} == {"b", "d"}


# ---------------------------------------------------------------- the branch by itself

ROWS = ["b", None, "a", "b", "e", "a"]


def branch_of(adapter, tasks):
    return adapter.select(Run(tasks=Tasks.of(tasks, len(tasks)))).branch


@pytest.mark.parametrize("tasks", [ROWS, sorted(ROWS, key=str)], ids=["mixed", "sorted"])
@pytest.mark.parametrize("inner", [(), (2,)], ids=["rows", "rows-of-rows"])
@pytest.mark.parametrize("name", ["input", "a.matrix_a", "a.matrix_b", "b.matrix_a", "e.matrix_b"])
def test_gradients_by_complex_step_of_one_array_alone(tasks, inner, name):
    adapter = on(DenseLayer(IN, OUT))
    x, dy = batch(6, *inner, IN), batch(6, *inner, OUT, seed=2)
    branch = branch_of(adapter, tasks)
    _, cache = branch.apply(x, Run())
    dx, gradients = branch.vjp(dy, cache)
    found = (gradients | {"input": dx})[name]

    layer, _, attribute = name.partition(".")
    array = x if name == "input" else getattr(adapter.get_task_adapter(layer), attribute)
    for index in np.ndindex(array.shape):
        stepped = array.astype(complex)
        stepped[index] += 1e-20j
        if name == "input":
            y, _ = branch_of(adapter, tasks).apply(stepped, Run())
        else:
            setattr(adapter.get_task_adapter(layer), attribute, stepped)
            y, _ = branch_of(adapter, tasks).apply(x, Run())
            setattr(adapter.get_task_adapter(layer), attribute, array)
        assert_allclose(found[index], (dy * y).sum().imag / 1e-20, rtol=1e-12, atol=1e-13)


def test_a_complex_gradient_goes_back_through_real_factors():
    branch = branch_of(on(DenseLayer(IN, OUT)), ROWS)
    _, cache = branch.apply(batch(6, IN), Run())
    real, imaginary = batch(6, OUT), batch(6, OUT, seed=2)
    dx, gradients = branch.vjp(real + 1j * imaginary, cache)
    expected_dx, expected = branch.vjp(imaginary, cache)
    assert_allclose(dx.imag, expected_dx, rtol=1e-12)
    assert_allclose(gradients["b.matrix_a"].imag, expected["b.matrix_a"], rtol=1e-12)


def test_gradients_that_are_not_requested_are_not_computed():
    branch = branch_of(on(DenseLayer(IN, OUT)), ROWS)
    _, cache = branch.apply(batch(6, IN), Run())
    dx, gradients = branch.vjp(batch(6, OUT), cache)
    only_dx, nothing = branch.vjp(batch(6, OUT), cache, parameters=False)
    no_dx, only_gradients = branch.vjp(batch(6, OUT), cache, inputs=False)
    assert (no_dx, nothing) == (None, {})
    assert_array_equal(only_dx, dx)
    assert bits(only_gradients) == bits(gradients)


@pytest.mark.parametrize("tasks", [["b", "b", None, None, "a"], [None, "e", "e", "e", "c"], ["a", "b", "c", "d", "e"]])
def test_rows_that_are_sorted_already_are_not_moved(tasks):
    x = batch(5, IN)
    _, (x_rows, *_) = branch_of(on(DenseLayer(IN, OUT)), tasks).apply(x, Run())
    assert np.shares_memory(x_rows, x)


def test_an_output_is_never_the_input():
    branch, x = branch_of(on(DenseLayer(IN, IN)), [None, None]), batch(2, IN)
    y, _ = branch.apply(x, Run())
    assert_array_equal(y, np.zeros((2, IN)))
    assert not np.shares_memory(x, y)


# ---------------------------------------------------------------- ten thousand tasks


class Looked(dict):
    """A dict that may be looked into, but not walked through: only its first two entries may be visited."""

    def _walked(self, *_):
        raise AssertionError("a walk through all tasks")

    def __iter__(self):
        yield from itertools.islice(super().__iter__(), 2)
        self._walked()

    items = values = keys = copy = __or__ = __ror__ = _walked


def guarded(adapter):
    """The adapter, which from now on fails where all of its tasks are walked through."""
    adapter._tasks = Looked(adapter._tasks)
    return adapter


@pytest.fixture
def many():
    return guarded(on(DenseLayer(IN, OUT)))


def test_the_guard_notices_a_walk(many):
    for walk in (many.named_parameters, many.walk, lambda: many.parameter_count):
        with pytest.raises(AssertionError, match="a walk through all tasks"):
            walk()


@pytest.mark.parametrize(
    "wrap",
    [lambda adapter: adapter, lambda adapter: Sequential([DenseLayer(IN, IN), adapter])],
    ids=["alone", "in-a-model"],
)
@pytest.mark.parametrize("tasks", [ROWS, ["a"] * 6, [None] * 6, None], ids=["mixed", "one", "none", "current"])
def test_a_pass_walks_through_no_tasks(wrap, tasks):
    adapter = on(DenseLayer(IN, OUT))
    layer = wrap(adapter)
    guarded(adapter)
    x = batch(6, IN)
    for _ in range(2):
        y = layer.forward(x) if tasks is None else layer.forward(x, tasks=tasks)
        layer.backward(batch(6, OUT))
        pending(layer)
    assert_allclose(layer.predict(x) if tasks is None else layer.predict(x, tasks=tasks), y)
    assert layer.compute_auxiliary_loss() == 0


def test_adding_selecting_or_looking_up_a_task_walks_through_no_tasks(many):
    many.add_task("f", 2)
    many.current_task = "f"
    assert many.get_task_rank("f") == many.children()["tasks.f"].rank == 2
    assert len(many) == 6
    assert many.remove_task("b")


def test_the_children_are_a_live_view():
    adapter = on(DenseLayer(IN, OUT))
    children = adapter.children()
    assert list(children) == ["base", *(f"tasks.{name}" for name in TASKS)]
    assert children["base"] is adapter.base_layer
    assert children["tasks.b"] is adapter.get_task_adapter("b")
    adapter.add_task("x.y", 1)
    assert children["tasks.x.y"] is adapter.get_task_adapter("x.y")
    assert len(children) == 2 + len(TASKS)
    with pytest.raises(TypeError):
        children["tasks.z"] = adapter.lora_layer


@pytest.mark.parametrize("name", ["", "tasks", "tasks.", "tasks.nobody", "a", "lora.a", "base.a"])
def test_names_that_are_not_those_of_children_are_not_found(name):
    assert name not in on(DenseLayer(IN, OUT)).children()


def test_only_a_base_that_trains_has_a_penalty():
    base = randomised(DenseLayer(IN, OUT, regularization=Regularization(0.5, 0.25)))
    assert on(base, frozen=False).compute_auxiliary_loss() == base.compute_auxiliary_loss() > 0
    assert on(base, frozen=True).compute_auxiliary_loss() == 0


def test_an_error_names_only_a_few_of_many_tasks():
    adapter = on(DenseLayer(IN, OUT))
    for number in range(100):
        adapter.add_task(f"task {number}", 1)
    with pytest.raises(ValueError, match=r"one of 'a', 'b', .*, \.\.\. 105 in all; got 'nobody'$") as caught:
        adapter.get_task_adapter("nobody")
    assert "task 50" not in str(caught.value)


def test_a_task_costs_its_factors_and_a_small_object():
    def memory_of(count):
        adapter = MultiLoRAAdapter(DenseLayer(64, 64, dtype=np.float32), "first", 8, rng=0)
        tracemalloc.start()
        for number in range(count):
            adapter.add_task(f"task {number}", 8)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return taken / count

    memory_of(10)  # whatever the first call keeps, such as the lines that it covers
    factors = 2 * 64 * 8 * 4
    assert memory_of(200) < 1.5 * factors + 2000  # the last block has room for half as many tasks again


def test_the_gradients_of_factors_need_no_input_gradient():
    adapter = on(DenseLayer(IN, OUT, rng=0))
    x, dy, tasks = batch(12, IN), batch(12, OUT), ["a", "b", "c"] * 4  # more than two rows of a task: slices
    _, cache = adapter.apply(x, Run(tasks=Tasks.of(tasks, 12)))
    dx, gradients = adapter.vjp(dy, cache)
    none, alone = adapter.vjp(dy, cache, inputs=False)
    assert dx is not None
    assert none is None
    assert bits(alone) == bits(gradients)
