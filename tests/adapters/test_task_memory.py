"""The memory of many tasks: stacks of a mixed batch against one row at a time, and views that stay live."""

import copy
import gc
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import Adam, DenseLayer, LoRALayer, MultiLoRAAdapter
from lora_np.adapters.task_groups import GATHERED_BYTES, STACK, TaskGroups
from lora_np.kernels import FactorMemory
from lora_np.kernels.factor_memory import FIRST_BYTES
from lora_np.run import Run, Tasks
from tests.kinds import batch, bits, randomised
from tests.strategies import seeds

IN, OUT = 5, 4
NAMES = [f"task {number}" for number in range(3 * STACK)]


def branches(seed=0, dtype=np.float64, names=NAMES):
    """A branch for each task, of ranks 1 to 3 and different scalings."""
    made = {}
    for number, name in enumerate(names):
        rank = 1 + number % 3
        A, B = batch(IN, rank, seed=seed + number), batch(rank, OUT, seed=seed + 1000 + number)
        made[name] = LoRALayer.from_factors(A.astype(dtype), B.astype(dtype), alpha=0.5 + number)
    return made


def together(seed=0, dtype=np.float64, frozen=True):
    return MultiLoRAAdapter.around_tasks(randomised(DenseLayer(IN, OUT, dtype=dtype)), branches(seed, dtype), frozen)


def one_by_one(seed=0, dtype=np.float64):
    """An adapter with the same tasks, added in a loop."""
    adapter = MultiLoRAAdapter(randomised(DenseLayer(IN, OUT, dtype=dtype)), "first", 1, rng=0)
    for name, branch in branches(seed, dtype).items():
        adapter.add_task(name, 3)
        adapter.replace_task(name, branch)
    return adapter


def groups(adapter, tasks):
    grouped = Tasks.of(tasks, len(tasks))
    branches = [adapter.task_adapters.get(name) for name in grouped.names]
    return TaskGroups.of(grouped, branches, adapter._memory)


def stacked(adapter, tasks):
    """The number of tasks in stacks."""
    return sum(len(stack.counts) for stack in groups(adapter, tasks).stacks)


def expected(adapter, x, dy, tasks):
    """y, dx and the gradients, one row at a time."""
    W, b = adapter.base_layer.weight, adapter.base_layer.bias
    y, dx = x @ W + b, dy @ W.T
    gradients = {}
    for row, task in enumerate(tasks):
        if task is not None:
            layer = adapter.get_task_adapter(task)
            A, B, s = layer.matrix_a, layer.matrix_b, layer.alpha / layer.rank
            y[row] += s * (x[row] @ A @ B)
            dx[row] += s * (dy[row] @ B.T @ A.T)
            rows_x, rows_dy = x[row].reshape(-1, IN), dy[row].reshape(-1, OUT)
            dA, dB = s * rows_x.T @ (rows_dy @ B.T), s * (rows_x @ A).T @ rows_dy
            for name, gradient in (("matrix_a", dA), ("matrix_b", dB)):
                gradients[f"tasks.{task}.{name}"] = gradients.get(f"tasks.{task}.{name}", 0) + gradient
    return y, dx, gradients


# ---------------------------------------------------------------- stacks

rows = st.permutations([*NAMES, *NAMES[:STACK], *NAMES[2::3], NAMES[0], NAMES[0], None, None])
"""Every task once, some of them twice, one of them four times, and the base."""


@pytest.mark.parametrize("make", [together, one_by_one], ids=["together", "one-by-one"])
@given(tasks=rows, inner=st.sampled_from([(), (1,), (2,), (2, 2), (0,)]), seed=seeds)
def test_stacks_equal_one_row_at_a_time(make, tasks, inner, seed):
    adapter = make(seed % 7)
    x, dy = batch(len(tasks), *inner, IN, seed=seed), batch(len(tasks), *inner, OUT, seed=seed + 1)
    y, dx, gradients = expected(adapter, x, dy, tasks)
    assert_allclose(adapter.predict(x, tasks=tasks), y, rtol=1e-11, atol=1e-11)
    assert_allclose(adapter.forward(x, tasks=tasks), y, rtol=1e-11, atol=1e-11)
    assert_allclose(adapter.backward(dy), dx, rtol=1e-11, atol=1e-11)
    assert adapter.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_allclose(adapter.gradients[name], gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("tasks", "count"),
    [
        (NAMES, 3 * STACK),
        (NAMES + NAMES, 3 * STACK),
        (NAMES[:-2], 2 * STACK - STACK),  # one task of two of the ranks is missing
        (NAMES[: 3 * STACK - 3], 0),
        (NAMES + NAMES[1::3] * 2, 2 * STACK),  # the tasks of one rank have too many rows
        ([None, *NAMES], 3 * STACK),
    ],
    ids=["once", "twice", "one-rank", "too-few", "too-many-rows", "none"],
)
def test_the_rule_of_the_stacks(tasks, count):
    assert stacked(together(), tasks) == count


@pytest.mark.parametrize(("inputs", "count"), [(GATHERED_BYTES // 16 - 2, STACK), (GATHERED_BYTES // 16 - 1, 0)])
def test_large_factors_are_not_gathered(inputs, count):
    names = list(map(str, range(STACK)))
    adapter = MultiLoRAAdapter(DenseLayer(inputs, 2), "0", 2, rng=0)
    for name in names[1:]:
        adapter.add_task(name, 2)
    assert stacked(adapter, names) == count


def test_stacks_keep_float32():
    adapter = together(dtype=np.float32)
    tasks = [name for name in NAMES for _ in range(2)]
    y = adapter.forward(batch(len(tasks), IN), tasks=tasks)
    dx = adapter.backward(batch(len(tasks), OUT))
    assert {y.dtype, dx.dtype, *(gradient.dtype for gradient in adapter.gradients.values())} == {np.dtype(np.float32)}


def test_the_gradient_of_the_input_of_stacks_by_complex_step():
    adapter = together()
    for name in NAMES[:STACK]:
        adapter.replace_task(name, randomised(LoRALayer(IN, OUT, 2)))
    tasks = NAMES[:STACK] + NAMES[: STACK // 2]
    assert stacked(adapter, tasks) == STACK
    x, dy, direction = batch(len(tasks), IN), batch(len(tasks), OUT, seed=2), batch(len(tasks), IN, seed=3)
    branch = adapter.select(Run(tasks=Tasks.of(tasks, len(tasks)))).branch
    y, _ = branch.apply(x + 1e-20j * direction, Run())
    _, cache = branch.apply(x, Run())
    dx, _ = branch.vjp(dy, cache)
    assert_allclose((dx * direction).sum(), (dy * y).sum().imag / 1e-20, rtol=1e-12)


def test_adam_trains_stacks_as_it_trains_single_tasks():
    adapter, single = together(), together()
    tasks, x = NAMES[::-1], batch(len(NAMES), IN)
    optimizers = Adam(0.1), Adam(0.1)
    for step in range(3):
        dy = batch(len(NAMES), OUT, seed=step)
        adapter.forward(x, tasks=tasks)
        adapter.backward(dy)
        adapter.apply_updates(optimizers[0].updates(adapter))
        for row, task in enumerate(tasks):
            single.current_task = task
            single.forward(x[row : row + 1])
            single.backward(dy[row : row + 1])
            single.apply_updates(optimizers[1].updates(single))
    assert_allclose(adapter.get_parameters(), single.get_parameters(), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- live views


def agrees(adapter):
    """Whether a mixed batch of stacks uses the current arrays and scalings of all tasks."""
    tasks = [name for name in adapter.task_adapters if name in NAMES] * 2
    x, dy = batch(len(tasks), IN), batch(len(tasks), OUT)
    y, _, _ = expected(adapter, x, dy, tasks)
    return np.allclose(adapter.predict(x, tasks=tasks), y, rtol=1e-11, atol=1e-11)


@pytest.fixture(params=[together, one_by_one], ids=["together", "one-by-one"])
def adapter(request):
    adapter = request.param()
    for name in NAMES:
        adapter.replace_task(name, randomised(LoRALayer(IN, OUT, 2)))
    assert stacked(adapter, NAMES) == len(NAMES)
    return adapter


def written_in_place(adapter):
    for array in adapter.named_parameters().values():
        array += 1


def set_as_a_vector(adapter):
    adapter.set_parameters(batch(adapter.parameter_count))


def loaded(adapter):
    weights = {name: batch(*array.shape, seed=3) for name, array in adapter.named_parameters(frozen=True).items()}
    assert adapter.load_weights(weights, strict=True).success


def other_alpha(adapter):
    adapter.get_task_adapter(NAMES[0]).alpha = 9.0


def other_array(adapter):
    adapter.get_task_adapter(NAMES[0]).matrix_b = batch(2, OUT, seed=7)


def other_arrays_and_other_tasks(adapter):
    for name in NAMES[:5]:
        branch = adapter.get_task_adapter(name)
        branch.matrix_a, branch.matrix_b = batch(IN, 2, seed=7), batch(2, OUT, seed=8)
    for number in range(10):
        adapter.add_task(f"new {number}", 2)


def trained(adapter):
    adapter.forward(batch(len(NAMES), IN), tasks=NAMES)
    adapter.backward(batch(len(NAMES), OUT))
    adapter.update_parameters(0.1)


def removed_and_added(adapter):
    for name in NAMES[::2]:
        adapter.remove_task(name)
    for number, name in enumerate(NAMES[::2]):
        adapter.add_task(name, 2)
        adapter.get_task_adapter(name).set_parameters(batch(2 * (IN + OUT), seed=number))


def packed(adapter):
    adapter.pack("max")
    adapter.unpack()


@pytest.mark.parametrize(
    "change",
    [
        written_in_place,
        set_as_a_vector,
        loaded,
        other_alpha,
        other_array,
        other_arrays_and_other_tasks,
        trained,
        removed_and_added,
        packed,
    ],
    ids=lambda change: change.__name__,
)
def test_a_mixed_batch_sees_every_change(adapter, change):
    change(adapter)
    assert agrees(adapter)


def test_an_array_once_obtained_stays_that_of_the_task(adapter):
    arrays = adapter.named_parameters()
    for number in range(500):
        adapter.add_task(f"new {number}", 1 + number % 4)
    now = adapter.named_parameters()
    assert all(now[name] is array for name, array in arrays.items())
    for array in arrays.values():
        array[...] = 1
    assert agrees(adapter)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda adapter: pickle.loads(pickle.dumps(adapter)), MultiLoRAAdapter.clone],
    ids=["deepcopy", "pickle", "clone"],
)
def test_a_copy_has_its_own_memory(adapter, copied):
    before = bits(adapter.named_parameters())
    twin = copied(adapter)
    assert bits(twin.named_parameters()) == before
    assert stacked(twin, NAMES) == len(NAMES)
    written_in_place(twin)
    assert agrees(twin)
    assert bits(adapter.named_parameters()) == before


def test_a_copy_of_a_branch_has_its_own_memory(adapter):
    twin = copy.deepcopy(adapter.get_task_adapter(NAMES[0]))
    assert twin.place is None
    assert not np.shares_memory(twin.matrix_a, adapter.get_task_adapter(NAMES[0]).matrix_a)


def test_a_pickled_task_does_not_contain_the_others(adapter):
    assert len(pickle.dumps(adapter.get_task_adapter(NAMES[0]))) < 2000


def test_a_copy_with_other_children_shares_the_branches_where_they_are(adapter):
    arrays = adapter.named_parameters()
    twin = adapter.with_children({f"tasks.{NAMES[0]}": randomised(LoRALayer(IN, OUT, 2), 5)})
    assert all(array is arrays[name] for name, array in adapter.named_parameters().items())
    assert [name for name, array in twin.named_parameters().items() if array is not arrays[name]] == [
        f"tasks.{NAMES[0]}.matrix_a",
        f"tasks.{NAMES[0]}.matrix_b",
    ]
    for each in (adapter, twin):
        assert stacked(each, NAMES) == len(NAMES)
        assert agrees(each)
    twin.remove_task(NAMES[1])
    assert agrees(adapter)


def test_a_branch_may_belong_to_two_adapters(adapter):
    other = MultiLoRAAdapter.around_tasks(adapter.base_layer, dict(adapter.task_adapters))
    written_in_place(other)
    assert agrees(adapter)
    assert agrees(other)


def test_read_only_factors_stay_where_they_are():
    made = branches()
    arrays = {}
    for name, branch in made.items():
        branch.matrix_a.flags.writeable = False
        arrays[name] = branch.matrix_a
    adapter = MultiLoRAAdapter.around_tasks(randomised(DenseLayer(IN, OUT)), made)
    assert all(adapter.get_task_adapter(name).matrix_a is array for name, array in arrays.items())
    assert agrees(adapter)


# ---------------------------------------------------------------- places


def test_a_removed_branch_keeps_its_values(adapter):
    branch = adapter.get_task_adapter(NAMES[3])
    before = bits(branch.named_parameters())
    adapter.remove_task(NAMES[3])
    removed_and_added(adapter)
    assert bits(branch.named_parameters()) == before


def test_a_view_keeps_a_place():
    memory = FactorMemory(IN, OUT, np.dtype(np.float64))
    place, A, B = memory.place(2, 1.0)
    column = A[:, :1]
    del A, B
    others = [memory.place(2, 1.0) for _ in range(3)]
    assert all(other.number != place.number for other, *_ in others)
    del column
    gc.collect()
    assert memory.place(2, 1.0)[0].number == place.number


def test_a_block_holds_as_many_rows_as_are_reserved():
    memory = FactorMemory(IN, OUT, np.dtype(np.float64))
    memory.reserve(6)
    memory.reserve(6)
    kept = [memory.place(rank, 1.0) for rank in (1, 2, 3)]
    assert [len(block()) for block in memory._arrays] == [6]
    kept.append(memory.place(1, 1.0))
    assert len(memory._arrays) == 2


@pytest.mark.parametrize("chosen", [[0], [3], [1, 0, 1], [0, 3, 2, 3]], ids=str)
def test_factors_are_gathered_from_one_block_or_several(chosen):
    memory = FactorMemory(IN, OUT, np.dtype(np.float64))
    memory.reserve(5)  # the third place does not fit
    kept = [memory.place(2, 1.0) for _ in range(4)]
    for number, (_, A, B) in enumerate(kept):
        A[...], B[...] = batch(IN, 2, seed=number), batch(2, OUT, seed=number + 9)
    assert len(memory._arrays) == 2
    As, Bs = memory.gather(np.array([kept[index][0].number for index in chosen]), 2)
    assert_array_equal(As, [kept[index][1] for index in chosen])
    assert_array_equal(Bs, [kept[index][2] for index in chosen])
    As += 1
    assert_array_equal(kept[0][1], batch(IN, 2, seed=0))


def test_a_place_is_used_again_by_its_rank_only():
    memory = FactorMemory(IN, OUT, np.dtype(np.float64))
    number = memory.place(2, 1.0)[0].number
    assert memory.place(3, 1.0)[0].number != number
    assert memory.place(2, 1.0)[0].number == number


def test_replacing_tasks_again_and_again_takes_no_more_memory():
    adapter = together()

    def size():
        return sum(block().nbytes for block in adapter._memory._arrays if block() is not None)

    before = size()
    for turn in range(20):
        for name, branch in branches(turn).items():
            adapter.replace_task(name, branch)
    assert size() <= 2 * before + FIRST_BYTES


def test_memory_grows_in_few_blocks():
    adapter = MultiLoRAAdapter(DenseLayer(IN, OUT), "first", 1, rng=0)
    for number in range(5000):
        adapter.add_task(str(number), 1 + number % 3)
    blocks = [block() for block in adapter._memory._arrays]
    assert len(blocks) < 12
    assert sum(map(len, blocks)) < 2 * 5000 * 2


def test_the_memory_of_a_block_is_freed_with_its_last_task():
    adapter = together()
    block = adapter._memory._arrays[0]
    adapter.add_task("another block", 1)
    for name in NAMES[1:]:
        adapter.remove_task(name)
    assert block() is not None
    adapter.current_task = "another block"
    adapter.remove_task(NAMES[0])
    gc.collect()
    assert block() is None
    adapter.add_task(NAMES[0], 2)  # not where it was
    adapter.get_task_adapter(NAMES[0]).set_parameters(batch(2 * (IN + OUT)))


def test_stacks_without_the_gradient_of_the_input():
    adapter = together()
    x, dy = batch(len(NAMES), IN), batch(len(NAMES), OUT)
    _, cache = adapter.apply(x, Run(tasks=Tasks.of(NAMES, len(NAMES))))
    assert stacked(adapter, NAMES) == len(NAMES)
    _, gradients = adapter.vjp(dy, cache)
    none, alone = adapter.vjp(dy, cache, inputs=False)
    assert none is None
    assert bits(alone) == bits(gradients)


def test_many_tasks_with_many_rows_each_are_not_gathered():
    assert stacked(together(), NAMES) == len(NAMES)
    assert stacked(together(), NAMES * 3) == 0
