"""`Run`: what a pass knows reaches every layer of any container; one draw for one pass; ranks of whole models."""

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    Layer,
    MultiLoRAAdapter,
    NotSupportedError,
    Run,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    merge_in_place,
    relu,
    tanh,
    without_adapters,
)
from lora_np.base import prefixed
from lora_np.run import EVALUATION, INFERENCE, LAST_QUANTILE, TRAINING, Draw, Tasks, checked_rank
from lora_np.sequences import Spans
from lora_np.testing import check_gradients
from tests.kinds import batch, randomised

RANKS = (1, 2, 4)


class Residual(Layer):
    """``y = x + f(x)``: a container of a user's own."""

    def __init__(self, inner):
        super().__init__(inner.input_size, inner.output_size, inner.dtype)
        self.inner = inner

    def apply(self, x, run):
        y, cache = self.inner.apply(x, run)
        return x + y, cache

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        dx, gradients = self.inner.vjp(dy, cache, parameters=parameters and "inner" not in self.frozen)
        return dy + dx, prefixed("inner", gradients)

    def children(self):
        return {"inner": self.inner}

    def with_children(self, changed):
        return Residual(changed.get("inner", self.inner))

    def estimate_flops(self):
        return self.inner.estimate_flops() + self.output_size


def dylora(size=6, seed=0, **options):
    return DyLoRAAdapter(DenseLayer(size, size, rng=seed), 4, RANKS, rng=seed, **options)


def model():
    return randomised(Sequential([dylora(seed=0), Residual(Sequential([DenseLayer(6, 6, tanh, rng=1), dylora(seed=2)]))]))


def adapters(layer):
    return [inner for inner in layer.walk().values() if isinstance(inner, DyLoRAAdapter)]


def test_a_custom_training_loop_makes_one_draw_per_pass():
    layer, seen = model(), set()
    for _ in range(40):
        layer.forward(batch(3, 6))
        ranks = {adapter.rank_in(layer._pass.run) for adapter in adapters(layer)}
        assert len(ranks) == 1
        layer.backward(batch(3, 6))
        rank = ranks.pop()
        for name in ("0.lora.matrix_b", "1.inner.1.lora.matrix_b"):
            assert layer.gradients[name][:rank].any(axis=1).all()
            assert not layer.gradients[name][rank:].any()
        layer.update_parameters(0.01)
        seen.add(rank)
    assert seen == set(RANKS)


def test_a_pass_takes_one_random_number_from_the_first_layer_with_ranks():
    layer = model()
    first, second = (adapter._rng for adapter in adapters(layer))
    numbers, untouched = copy.deepcopy(first), second.bit_generator.state
    for _ in range(3):
        layer.forward(batch(3, 6))
        assert layer._pass.run.rank.quantile == numbers.random()
    assert first.bit_generator.state == numbers.bit_generator.state
    assert second.bit_generator.state == untouched


@pytest.mark.parametrize(
    "choices", [{}, {"rank": 2}, {"tasks": [None] * 3}, {"tasks": [None] * 3, "rank": [1, 4, 2]}], ids=str
)
def test_a_training_pass_draws_what_is_not_given(choices):
    layer, x = dylora(dropout=0.5), batch(3, 6)
    layer.forward(x, **choices)
    run = layer._pass.run
    assert run.training
    assert run.seed is not None
    assert run.rank is not None
    layer.eval().forward(x, **choices)
    assert layer._pass.run.seed is None


def test_a_pass_is_a_function_of_its_run():
    layer, x = model(), batch(3, 6)
    run = layer.new_run(x, training=True)
    y, _ = layer.apply(x, run)
    assert_array_equal(layer.apply(x, run)[0], y)
    assert_array_equal(layer.apply(x, pickle.loads(pickle.dumps(run)))[0], y)


@pytest.mark.parametrize("training", [True, False])
def test_a_rank_for_each_row_of_a_whole_model(training):
    layer, x = model().train(training), batch(6, 6)
    ranks = [1, 4, 2, 1, 4, 2]
    y = layer.forward(x, rank=ranks)
    assert_array_equal(layer.predict(x, rank=ranks), y)
    for row, rank in enumerate(ranks):
        assert_allclose(y[row], layer.predict(x[row], rank=rank), rtol=1e-12, atol=1e-13)
        assert_allclose(y[row], layer.forward(x[row : row + 1], rank=rank)[0], rtol=1e-12, atol=1e-13)
    check_gradients(layer, x, training=training, rank=ranks)


def test_rules_give_each_layer_its_own_rank():
    layer, x = model(), batch(2, 6)
    first, second = adapters(layer)
    layer.forward(x, rank={first: 1, second: 4}.__getitem__)
    layer.backward(batch(2, 6))
    assert not layer.gradients["0.lora.matrix_b"][1:].any()
    assert layer.gradients["1.inner.1.lora.matrix_b"].any(axis=1).all()


@pytest.mark.parametrize("rank", [3, 0, [1, 2, 3], [1, 2], [[1], [2], [4]], 1.0, "1", [1.0, 2.0, 4.0]], ids=repr)
@pytest.mark.parametrize("method", ["forward", "predict"])
def test_a_rank_that_does_not_fit_is_refused(method, rank):
    with pytest.raises(ArgumentError, match=r"^rank must"):
        getattr(model(), method)(batch(3, 6), rank=rank)


@pytest.mark.parametrize("method", ["forward", "predict"])
def test_a_single_vector_has_a_single_rank(method):
    with pytest.raises(ArgumentError, match=r"^rank must be an integer"):
        getattr(model(), method)(batch(6), rank=[1] * 6)


@pytest.mark.parametrize("rank", [1, 2, 4, [4, 1, 2]], ids=str)
def test_an_adapter_passes_the_rank_on_to_its_base(rank):
    inner, x = dylora(), batch(3, 6)
    outer = randomised(StandardLoRAAdapter(inner, 2))
    expected = inner.predict(x, rank=rank) + outer.lora_layer.predict(x)
    for output in (outer.predict(x, rank=rank), outer.forward(x, rank=rank), outer.eval().forward(x, rank=rank)):
        assert_allclose(output, expected, rtol=1e-13)


def test_a_rank_needs_a_layer_that_has_ranks():
    with pytest.raises(ArgumentError, match=r"^rank must be None"):
        StandardLoRAAdapter(DenseLayer(6, 6), 2).forward(batch(3, 6), rank=1)


@pytest.mark.parametrize("is_training", [True, False])
def test_frozen_mode_refuses_ranks_by_row_if_a_backward_pass_may_follow(is_training):
    adapter = randomised(dylora(mode="frozen")).train(is_training)
    with pytest.raises(InvalidOperationError, match="mode must be 'full'"):
        adapter.forward(batch(3, 6), rank=[1, 2, 4])
    expected = [adapter.predict(row, rank=rank) for row, rank in zip(batch(3, 6), [1, 2, 4], strict=True)]
    assert_allclose(adapter.predict(batch(3, 6), rank=[1, 2, 4]), expected, rtol=1e-13)


def test_a_training_pass_without_a_draw_is_not_an_evaluation():
    with pytest.raises(InvalidOperationError, match="needs a rank"):
        dylora().apply(batch(3, 6), Run(training=True))


def test_tasks_and_ranks_together():
    tasks = MultiLoRAAdapter(DenseLayer(6, 6, rng=3), "a", 2, rng=3)
    tasks.add_task("b", 1)
    layer, x = randomised(Residual(Sequential([tasks, dylora()]))), batch(4, 6)
    names, ranks = ["b", None, "a", "b"], [4, 1, 2, 2]
    y = layer.forward(x, tasks=names, rank=ranks)
    for row, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        assert_allclose(y[row], layer.predict(x[row : row + 1], tasks=[name], rank=rank)[0], rtol=1e-12)
    check_gradients(layer, x, tasks=names, rank=ranks, training=True)


def test_any_container_is_adapted_merged_and_stripped():
    base = randomised(Sequential({"in": DenseLayer(6, 6, relu), "body": Residual(Residual(DenseLayer(6, 6)))}))
    x = batch(3, 6)
    before = base.predict(x)
    adapted = randomised(apply_lora(base, lambda layer: StandardLoRAAdapter(layer, 2)), 1)
    assert list(adapted.children()) == ["in", "in_activation", "body"]
    assert {name.rsplit(".", 2)[-2] for name in adapted.named_parameters()} == {"lora"}
    assert isinstance(adapted.walk()["body.inner.inner"], StandardLoRAAdapter)
    assert not any(isinstance(layer, StandardLoRAAdapter) for layer in without_adapters(adapted).walk().values())
    check_gradients(adapted, x)
    expected, body = adapted.predict(x), adapted.walk()["body"]
    assert merge_in_place(adapted) == 2
    assert adapted.walk()["body"] is body  # in place
    assert_allclose(adapted.predict(x), expected, rtol=1e-12)
    assert not any(isinstance(layer, StandardLoRAAdapter) for layer in adapted.walk().values())
    assert base.predict(x).shape == before.shape


def test_a_container_with_an_activation_inside_gets_a_pair():
    adapted = apply_lora(Residual(DenseLayer(6, 6, relu)), lambda layer: StandardLoRAAdapter(layer, 2))
    assert list(adapted.walk()) == [
        "", "inner", "inner.linear", "inner.linear.base", "inner.linear.lora", "inner.linear_activation"
    ]  # fmt: skip


def test_a_container_that_cannot_change_says_so():
    class Closed(Residual):
        with_children = Layer.with_children

    with pytest.raises(NotSupportedError, match="Closed does not implement with_children"):
        apply_lora(Closed(DenseLayer(6, 6)), lambda layer: StandardLoRAAdapter(layer, 2))


def test_merging_is_all_or_nothing():
    class Closed(Residual):
        with_children = Layer.with_children

    first, second = (StandardLoRAAdapter(DenseLayer(6, 6), 2) for _ in range(2))
    layer = Sequential([first, Closed(second)])
    with pytest.raises(NotSupportedError):
        merge_in_place(layer)
    assert layer[0] is first


def test_a_layer_may_take_other_inputs_than_rows_of_numbers():
    class Tokens(Layer):
        def __init__(self):
            super().__init__(1, 3)
            self.table = np.arange(12.0).reshape(4, 3)

        def check_input(self, input, *, copy=False, name="input"):
            return np.array(input)[..., None]

        def apply(self, x, run):
            return self.table[x[..., 0]], (x,)

        def vjp(self, dy, cache, *, parameters=True, inputs=True):
            return None, {}

        def estimate_flops(self):
            return 1

    assert_array_equal(Tokens().forward([1, 0]), [[3, 4, 5], [0, 1, 2]])


def test_an_input_without_rows_has_a_single_rank():
    model = DyLoRAAdapter(DenseLayer(4, 3, rng=0), 2, [1, 2], rng=0)
    with pytest.raises(ArgumentError, match=r"rank must be an integer if the input has no rows, got \[1\]"):
        model.predict(np.ones(4), rank=[1])


def test_tasks_are_grouped_in_the_order_of_first_occurrence():
    tasks = Tasks.of(["b", None, "b"], 3)
    assert tasks.names == ("b", None)
    assert_array_equal(tasks.codes, [0, 1, 0])
    assert_array_equal(tasks.counts, [2, 1])
    assert_array_equal(tasks.order, [0, 2, 1])
    assert_array_equal(tasks.inverse, [0, 2, 1])
    assert Tasks.of(["a", "a", None], 3)[3:] == (None, None)  # sorted already


@pytest.mark.parametrize("tasks", ["ab", 3, ["a"], ["a", "b", "c"], ["a", 1], ["a", ["b"]]], ids=repr)
def test_tasks_that_do_not_fit_are_refused(tasks):
    with pytest.raises(ArgumentError, match=r"^tasks must"):
        Tasks.of(tasks, 2)


def test_the_rows_of_a_sequence_have_its_task_and_its_rank():
    run = Run(tasks=Tasks.of(["a", "b"], 2), rank=np.array([4, 1])).over(Spans.of(np.array([1, 2])))
    assert_array_equal(run.tasks.codes, [0, 1, 1])
    assert_array_equal(run.rank(None), [4, 1, 1])
    assert Run(rank=lambda layer: 3).over(run.spans).rank(None) == 3
    assert Run(rank=2).over(run.spans)[1:3] == (None, 2)
    assert Run().over(run.spans)[1:3] == (None, None)


def test_quantiles_of_rows_are_spread_over_the_unit_interval():
    assert_allclose(Draw.of_rows(0.5, 4).quantile, [0.5, 0.75, 0, 0.25], rtol=1e-15)
    assert_array_equal(Draw.of_rows(0.5, 1).quantile, [0.5])
    assert_array_equal(Draw.of_rows(0.5, 0).quantile, [])
    assert LAST_QUANTILE < 1 == np.nextafter(LAST_QUANTILE, 2)


def test_each_mode_has_its_run():
    assert [run.training for run in (TRAINING, EVALUATION, INFERENCE)] == [True, False, False]
    assert [run.keep for run in (TRAINING, EVALUATION, INFERENCE)] == [True, True, False]


def test_a_rank_of_any_integer_type():
    assert checked_rank(np.int64(2), None) == 2
    assert checked_rank(None, 3) is None
    assert_array_equal(checked_rank((1, 2), 2), [1, 2])
