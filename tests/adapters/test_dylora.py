"""DyLoRA: ranks, their draws, both modes, and what each pass may move."""

import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    SGD,
    Adam,
    AdamW,
    ArgumentError,
    ArgumentNullError,
    ArgumentOutOfRangeError,
    BinaryCrossEntropy,
    DenseLayer,
    DyLoRAAdapter,
    FunctionLoss,
    Huber,
    InvalidOperationError,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    NonFiniteError,
    Sequential,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    geometric,
    load_layer,
)
from lora_np.run import Draw, Run
from lora_np.testing import check_gradients, gradient_errors, numerical_gradient
from tests.kinds import BASES, batch, bits, randomised, snapshot
from tests.strategies import dylora_adapters, passes


def built(active_ranks=(1, 2, 3), max_rank=None, base=None, seed=0, **options):
    """A randomised adapter 5 -> 4, or on another base."""
    base = randomised(DenseLayer(5, 4), seed=7) if base is None else base
    return randomised(DyLoRAAdapter(base, max_rank or max(active_ranks), active_ranks, rng=seed, **options))


def used_rank(adapter, x):
    """The rank that one training pass takes, seen in which gradients are not zero."""
    adapter.forward(x)
    adapter.backward(batch(len(x), adapter.output_size))
    trained = adapter.gradients["lora.matrix_b"].any(axis=1)
    return int(np.flatnonzero(trained)[-1]) + 1


# ---------------------------------------------------------------- the worked example

X = np.array([[1, 2, 3], [4, 5, 6]])
G = np.array([[1, 1], [2, 0]])
WORKED = {
    1: {
        "y": [[9.5, 17.5], [24.5, 44.5]],
        "dA": [[22, 0], [32, 0], [42, 0]],
        "dB": [[48, 8], [0, 0]],
        "dx": [[7, 1, 6], [6, 0, 4]],
        "merged": [[3, 4], [0, 1], [2, 4]],
        "A": [[-1.2, 0], [-3.2, 1], [-3.2, 1]],
        "B": [[-3.8, 1.2], [3, 4]],
    },
    2: {
        "y": [[39.5, 57.5], [90.5, 132.5]],
        "dA": [[22, 62], [32, 88], [42, 114]],
        "dB": [[48, 8], [54, 10]],
        "dx": [[7, 15, 20], [6, 12, 16]],
        "merged": [[3, 4], [6, 9], [8, 12]],
        "A": [[-1.2, -6.2], [-3.2, -7.8], [-3.2, -10.4]],
        "B": [[-3.8, 1.2], [-2.4, 3]],
    },
}


@pytest.fixture
def worked(base_class):
    base = base_class(3, 2)
    base.set_parameter("weight", base.in_layout(np.array([[1, 0], [0, 1], [0, 0]])))
    base.set_parameter("bias", [0.5, -0.5])
    adapter = DyLoRAAdapter(base, 2, [1, 2], alpha=4)
    adapter.set_parameter("lora.matrix_a", [[1, 0], [0, 1], [1, 1]])
    adapter.set_parameter("lora.matrix_b", [[1, 2], [3, 4]])
    return adapter


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("rank", WORKED)
def test_the_worked_example(worked, rank, training):
    expected = WORKED[rank]
    worked.train(training)
    worked.current_deployment_rank = rank
    assert_array_equal(worked.forward(X, rank=rank), expected["y"])
    assert_array_equal(worked.backward(G), expected["dx"])
    assert_array_equal(worked.gradients["lora.matrix_a"], expected["dA"])
    assert_array_equal(worked.gradients["lora.matrix_b"], expected["dB"])
    assert_array_equal(worked.merge_to_original_layer().matrix, expected["merged"])
    worked.update_parameters(0.1)
    assert_allclose(worked.lora_layer.matrix_a, expected["A"], rtol=1e-15)
    assert_allclose(worked.lora_layer.matrix_b, expected["B"], rtol=1e-15)


def test_the_worked_example_in_frozen_mode(worked):
    worked.mode = "frozen"
    assert_array_equal(worked.forward(X, rank=2), WORKED[2]["y"])
    assert_array_equal(worked.backward(G), WORKED[2]["dx"])
    assert_array_equal(worked.gradients["lora.matrix_a"], [[0, 62], [0, 88], [0, 114]])
    assert_array_equal(worked.gradients["lora.matrix_b"], [[0, 0], [54, 10]])


# ---------------------------------------------------------------- forward and gradients at every rank


def test_trap_10_most_drawn_adapters_train_below_the_maximum():
    below = []

    @settings(max_examples=200, database=None, derandomize=True, phases=[Phase.generate])
    @given(dylora_adapters())
    def draw(adapter):
        below.append(adapter.current_deployment_rank < adapter.max_rank)

    draw()
    assert len(below) >= 200
    assert sum(below) >= len(below) / 2


SCALINGS = {
    "max": lambda alpha, rank, max_rank: alpha / max_rank,
    "paper": lambda alpha, rank, max_rank: alpha / rank,
    "rslora": lambda alpha, rank, max_rank: alpha / rank**0.5,
}


@given(passes(dylora_adapters()))
def test_the_output_is_base_plus_scaled_product_of_the_first_components(case):
    adapter, x, _ = case
    r, layer = adapter.current_deployment_rank, adapter.lora_layer
    s = SCALINGS[layer.scaling_rule](adapter.alpha, r, adapter.max_rank)
    x = np.array(x, float)
    expected = adapter.base_layer.predict(x) + s * x @ layer.matrix_a[:, :r] @ layer.matrix_b[:r, :]
    for output in (adapter.forward(x, rank=r), adapter.eval().forward(x, rank=r), adapter.predict(x, rank=r)):
        assert_allclose(output, expected, rtol=1e-12, atol=1e-12)


@given(passes(dylora_adapters()))
def test_gradients_at_any_rank_in_both_modes(case):
    adapter, x, dy = case
    for training in (True, False):
        check_gradients(
            adapter,
            x,
            output_gradient=dy,
            training=training,
            rank=adapter.current_deployment_rank,
            method="complex",
            directions=True,
            active_only=adapter.mode == "frozen",
            allow_vacuous=True,  # integers may be zero, or cancel
            rtol=1e-9,
        )


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_gradients_of_every_element(base_class, shape, scaling, rank):
    adapter = built((1, 2, 4), base=randomised(base_class(*shape)), scaling=scaling, freeze_base_layer=False)
    errors = check_gradients(adapter, batch(3, shape[0]), training=True, rank=rank, method="complex", rtol=1e-10)
    assert set(errors) == {"input", "base.weight", "base.bias", "lora.matrix_a", "lora.matrix_b"}


@given(passes(dylora_adapters(mode="full")))
def test_gradients_beyond_the_rank_are_exactly_zero(case):
    adapter, x, dy = case
    adapter.forward(x, rank=adapter.current_deployment_rank)
    adapter.backward(dy)
    assert not adapter.gradients["lora.matrix_a"][:, adapter.current_deployment_rank :].any()
    assert not adapter.gradients["lora.matrix_b"][adapter.current_deployment_rank :].any()


@given(passes(dylora_adapters(mode="frozen")))
def test_frozen_mode_keeps_the_block_of_the_full_gradient_and_nothing_else(case):
    adapter, x, dy = case
    rank = adapter.current_deployment_rank
    first = max([0, *(active for active in adapter.active_ranks if active < rank)])
    full = adapter.clone()
    full.mode = "full"
    results = [(each.forward(x, rank=rank).tobytes(), each.backward(dy).tobytes()) for each in (adapter, full)]
    assert results[0] == results[1]
    for name, columns in {"lora.matrix_a": (slice(None), slice(first, rank)), "lora.matrix_b": slice(first, rank)}.items():
        expected = np.zeros_like(full.gradients[name])
        expected[columns] = full.gradients[name][columns]
        assert_allclose(adapter.gradients[name], expected, rtol=1e-12, atol=1e-13)
        outside = adapter.gradients[name].copy()
        outside[columns] = 0
        assert not outside.any()


@given(passes(dylora_adapters(mode="frozen")))
def test_the_input_gradient_of_frozen_mode_is_the_true_one(case):
    adapter, x, dy = case
    for training in (True, False):
        errors = gradient_errors(
            adapter,
            x,
            output_gradient=dy,
            training=training,
            rank=adapter.current_deployment_rank,
            method="complex",
            directions=True,
            active_only=True,
        )
        assert errors["input"] < 1e-9 or not np.any(dy)


def test_frozen_mode_trains_every_component_over_the_sparse_ranks(base):
    adapter = built((1, 3), base=base, mode="frozen")
    trained = np.zeros(3, bool)
    for rank in adapter.active_ranks:
        adapter.forward(batch(4, 5), rank=rank)
        adapter.backward(batch(4, 3))
        block = adapter.gradients["lora.matrix_b"].any(axis=1)
        assert not (trained & block).any()
        trained |= block
    assert trained.all()


def test_an_update_moves_no_component_beyond_the_rank():
    adapter = built((2, 3), max_rank=4)
    before = {name: array.copy() for name, array in adapter.named_parameters().items()}
    adapter.forward(batch(3, 5), rank=2)
    adapter.backward(batch(3, 4))
    adapter.update_parameters(0.5)
    assert_array_equal(adapter.lora_layer.matrix_a[:, 2:], before["lora.matrix_a"][:, 2:])
    assert_array_equal(adapter.lora_layer.matrix_b[2:], before["lora.matrix_b"][2:])
    assert (adapter.lora_layer.matrix_a[:, :2] != before["lora.matrix_a"][:, :2]).all()
    assert (adapter.lora_layer.matrix_b[:2] != before["lora.matrix_b"][:2]).all()


# ---------------------------------------------------------------- draws


def test_every_active_rank_is_drawn_as_often():
    adapter, x = built((1, 2, 4)), batch(2, 5)
    counts = Counter(used_rank(adapter, x) for _ in range(1500))
    assert set(counts) == {1, 2, 4}
    assert all(abs(count - 500) < 4 * np.sqrt(1500 * (1 / 3) * (2 / 3)) for count in counts.values())


def test_ranks_are_drawn_as_the_distribution_says():
    adapter, x = built((1, 2, 4), rank_distribution=[1, 0, 3]), batch(2, 5)
    counts = Counter(used_rank(adapter, x) for _ in range(1000))
    assert set(counts) == {1, 4}
    assert abs(counts[1] - 250) < 4 * np.sqrt(1000 * 0.25 * 0.75)


def test_every_forward_pass_draws_a_rank_and_the_seed_determines_it():
    def drawn(seed):
        adapter, x = built((1, 2, 3), seed=seed), batch(2, 5)
        return [used_rank(adapter, x) for _ in range(30)]

    assert drawn(0) == drawn(0) != drawn(1)
    assert set(drawn(0)) == {1, 2, 3}


def test_backward_uses_the_rank_of_its_forward():
    adapter = built((1, 3))
    adapter.forward(batch(2, 5), rank=1)
    adapter.current_deployment_rank = 3
    adapter.backward(batch(2, 4))
    assert not adapter.gradients["lora.matrix_b"][1:].any()


def test_trap_4_evaluation_mode_takes_the_deployment_rank_in_a_whole_model():
    adapter = built((1, 2, 3))
    model = Sequential([Sequential([adapter]), DenseLayer(4, 2, rng=0)])
    x = batch(3, 5)
    model.eval()
    for rank in adapter.active_ranks:
        adapter.set_deployment_rank(rank)
        y = model.forward(x)
        assert all((model.forward(x) == y).all() for _ in range(10))
        assert_array_equal(adapter.forward(x), adapter.predict(x))
    model.train()
    assert len({model.forward(x).tobytes() for _ in range(30)}) == 3


def test_predict_takes_the_deployment_rank_whatever_the_mode():
    adapter = built((1, 3))
    adapter.current_deployment_rank = 1
    expected = adapter.outputs_at_ranks(batch(2, 5))[1]
    for mode in (True, False):
        assert_allclose(adapter.train(mode).predict(batch(2, 5)), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("quantile", "rank"), [(0, 1), (0.2499, 1), (0.25, 2), (0.7499, 2), (0.75, 8), (np.nextafter(1, 0), 8)]
)
def test_rank_at_a_quantile(quantile, rank):
    adapter = built((1, 2, 8), base=DenseLayer(9, 8), rank_distribution=[0.25, 0.5, 0.25])
    assert adapter.rank_at(quantile) == rank


@pytest.mark.parametrize("quantile", [-0.1, 1.0, 2, np.nan, "half", None])
def test_a_quantile_outside_its_range_is_refused(quantile):
    with pytest.raises(ArgumentError, match="quantile"):
        built().rank_at(quantile)


def test_a_rank_without_probability_is_at_no_quantile():
    adapter = built((1, 2, 3), rank_distribution=[0, 1, 0])
    assert {adapter.rank_at(q) for q in (0.0, 0.5, np.nextafter(1, 0))} == {2}


def test_the_distribution_is_uniform_by_default():
    assert built((1, 2, 3)).rank_distribution == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_the_distribution_is_normalised():
    assert built((1, 2, 3), rank_distribution=[1, 2, 5]).rank_distribution == (0.125, 0.25, 0.625)


AWKWARD_DISTRIBUTIONS = {
    "rounds-above-one": [0.2, 0.7, 0.1, 0.0],
    "rounds-at-every-division": [
        0.6916350201486487,
        0.15236989354955444,
        0.6484873085428019,
        0.5279964513576444,
        0.3803421144587521,
        0.36980379118082596,
        0.8587308549943392,
        0.7304242500463972,
    ],
}


@pytest.mark.parametrize("weights", AWKWARD_DISTRIBUTIONS.values(), ids=AWKWARD_DISTRIBUTIONS)
def test_an_awkward_distribution_is_one_and_survives_a_file(weights):
    adapter = built(range(1, len(weights) + 1), base=DenseLayer(9, 8), rank_distribution=weights)
    assert min(adapter.rank_distribution) >= 0
    assert adapter.rank_distribution == pytest.approx(np.array(weights) / sum(weights))
    file = io.BytesIO()
    adapter.serialize(file)
    loaded = load_layer(file)
    assert loaded.rank_distribution == adapter.rank_distribution
    loaded.deserialize(file)


@pytest.mark.parametrize(
    "distribution",
    [[1], [1, 1], [1, 1, 1, 1], [1, -1, 1], [0, 0, 0], [1, np.nan, 1], [1, np.inf, 1], ["a", "b", "c"], [[1, 1, 1]], "abc"],
    ids=repr,
)
def test_a_bad_distribution_is_refused(distribution):
    with pytest.raises(ArgumentError, match="rank_distribution"):
        built((1, 2, 3), rank_distribution=distribution)


def test_geometric_probabilities():
    assert geometric([1, 2, 3], 0.5) == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert geometric([2, 4]) == pytest.approx((1 / (1 + 0.85**2), 0.85**2 / (1 + 0.85**2)))


def test_geometric_probabilities_of_high_ranks_do_not_vanish():
    assert geometric([1000, 1001], 0.9) == pytest.approx((10 / 11, 1 / 11))


@pytest.mark.parametrize("p", [0, 1, -0.5, 1.5, np.nan, "a", None], ids=repr)
def test_geometric_refuses_a_bad_p(p):
    with pytest.raises(ArgumentError, match=r"^p must"):
        geometric([1, 2], p)


@pytest.mark.parametrize("ranks", [[], [2, 1], [0, 1], [1, 1], [1.5], None, 3, "12"], ids=repr)
def test_geometric_refuses_bad_ranks(ranks):
    with pytest.raises(ArgumentError, match="ranks"):
        geometric(ranks)


def test_geometric_takes_the_ranks_of_an_adapter():
    adapter = built((1, 2, 4), rank_distribution=geometric((1, 2, 4)))
    assert adapter.rank_distribution == pytest.approx(geometric((1, 2, 4)))


# ---------------------------------------------------------------- a rank for each row


def per_row(active_ranks=(1, 2, 4), **options):
    """A randomised adapter 6 -> 5."""
    return built(active_ranks, **({"base": DenseLayer(6, 5)} | options))


def ranks_of_rows(adapter, quantile, rows):
    return adapter.rank_at(Draw.of_rows(quantile, rows).quantile)


def of_rows(x, quantile=0.4):
    return Draw.of_rows(quantile, len(x) if x.ndim > 1 else 1)


quantiles = st.floats(0, 1, exclude_max=True)


@given(passes(dylora_adapters(mode="full")), quantiles)
@example((per_row(), batch(7, 6), batch(7, 5)), 0.4)
@example((per_row(scaling="paper"), batch(7, 3, 6), batch(7, 3, 5)), 0.4)
@example((per_row(scaling="rslora"), batch(7, 6), batch(7, 5)), 0.4)
def test_each_row_has_the_output_and_the_gradients_of_its_own_rank(case, quantile):
    adapter, x, dy = case
    x, dy = np.array(x, float), np.array(dy, float)
    single = adapter.clone()
    y, dx = adapter.forward(x, rank=of_rows(x, quantile)), adapter.backward(dy)
    rows = [...] if x.ndim == 1 else range(len(x))
    sums = {name: np.zeros_like(array) for name, array in single.named_parameters().items()}
    for row, rank in zip(rows, ranks_of_rows(adapter, quantile, len(rows)), strict=True):
        assert_allclose(y[row], single.forward(x[row], rank=int(rank)), rtol=1e-12, atol=1e-12)
        assert_allclose(dx[row], single.backward(dy[row]), rtol=1e-11, atol=1e-11)
        for name, gradient in single.gradients.items():
            sums[name] += gradient
    for name, expected in sums.items():
        assert_allclose(adapter.gradients[name], expected, rtol=1e-10, atol=1e-10)


@given(passes(dylora_adapters(mode="full")), quantiles)
def test_gradients_with_a_rank_for_each_row(case, quantile):
    adapter, x, dy = case
    rank = of_rows(np.array(x), quantile)
    options = {"training": True, "rank": rank, "method": "complex", "directions": True, "rtol": 1e-9}
    check_gradients(adapter, x, output_gradient=dy, allow_vacuous=True, **options)  # integers may be zero, or cancel


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 3), (3, 1, 2)])
def test_gradients_of_every_element_with_a_rank_for_each_row(shape, scaling):
    adapter = per_row(scaling=scaling, freeze_base_layer=False)
    x = batch(*shape, 6)
    errors = check_gradients(adapter, x, training=True, rank=of_rows(x), method="complex", rtol=1e-10)
    assert set(errors) == {"input", "base.weight", "base.bias", "lora.matrix_a", "lora.matrix_b"}


def test_a_batch_without_rows_has_no_ranks():
    adapter = per_row()
    assert adapter.forward(np.zeros((0, 6)), rank=of_rows(np.zeros((0, 6)))).shape == (0, 5)
    assert adapter.backward(np.zeros((0, 5))).shape == (0, 6)
    assert not adapter.get_parameter_gradients().any()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 40), quantiles)
def test_each_rank_has_its_share_of_the_rows_to_within_one(weights, rows, quantile):
    adapter = built(range(1, len(weights) + 1), base=DenseLayer(9, 8), rank_distribution=weights)
    counts = Counter(ranks_of_rows(adapter, quantile, rows).tolist())
    for rank, probability in zip(adapter.active_ranks, adapter.rank_distribution, strict=True):
        assert abs(counts[rank] - probability * rows) < 1 + 1e-9


def test_every_single_row_sees_each_rank_as_often_as_the_distribution_says():
    adapter = built((1, 2, 4), base=DenseLayer(6, 5), rank_distribution=[2, 1, 1])
    ranks = np.array([ranks_of_rows(adapter, (i + 0.5) / 400, 7) for i in range(400)])
    for rank, share in ((1, 0.5), (2, 0.25), (4, 0.25)):
        assert_allclose((ranks == rank).mean(axis=0), share, atol=1 / 400)


@pytest.mark.parametrize("quantile", [-0.1, 1.0, np.nan, "half"])
def test_a_bad_quantile_of_rows_is_refused(quantile):
    with pytest.raises(ArgumentError, match="quantile"):
        Draw.of_rows(quantile, 3)


def test_ranks_of_rows_draw_nothing_and_do_not_change_inference():
    adapter, x = per_row(), batch(5, 6)
    before, expected = snapshot(adapter), adapter.outputs_at_ranks(x)[4]
    adapter.forward(x, rank=of_rows(x))
    assert snapshot(adapter) == before
    for output in (adapter.predict(x), adapter.eval().forward(x)):
        assert_allclose(output, expected, rtol=1e-13)


def test_frozen_mode_refuses_ranks_of_rows():
    adapter = per_row(mode="frozen")
    before = snapshot(adapter)
    with pytest.raises(InvalidOperationError, match=r"mode must be 'full'.*got 'frozen'"):
        adapter.forward(batch(2, 6), rank=of_rows(batch(2, 6)))
    with pytest.raises(InvalidOperationError, match="mode must be 'full'"):
        adapter.train_with_nested_dropout([batch(2, 6)], [batch(2, 5)], 1, 0.1, MeanSquaredError(), rank_per="row")
    assert snapshot(adapter) == before
    adapter.train_with_nested_dropout([batch(2, 6)], [batch(2, 5)], 1, 0.1, MeanSquaredError(), rank_per="pass")
    assert snapshot(adapter) != before


def test_components_beyond_every_rows_rank_stand_still():
    # Two of the three rows train component 2 or more at first; then one row trains component 1 alone.
    adapter, optimizer = per_row(), AdamW(0.1)
    for quantile, rows, moved in ((0.0, 3, [0, 1, 2, 3]), (0.0, 1, [0]), (0.5, 1, [0, 1])):
        layer = adapter.lora_layer
        A, B = layer.get_matrix_a(), layer.get_matrix_b()
        adapter.forward(batch(rows, 6), rank=of_rows(batch(rows, 6), quantile))
        adapter.backward(batch(rows, 5))
        adapter.apply_updates(optimizer.updates(adapter))
        assert np.flatnonzero((layer.matrix_a != A).any(axis=0)).tolist() == moved
        assert np.flatnonzero((layer.matrix_b != B).any(axis=1)).tolist() == moved


def test_ranks_of_rows_keep_float32():
    adapter = built((1, 2), base=randomised(DenseLayer(6, 5, dtype=np.float32)))
    assert adapter.forward(batch(3, 6), rank=[1, 2, 2]).dtype == np.float32
    assert adapter.backward(batch(3, 5)).dtype == np.float32
    assert {gradient.dtype for gradient in adapter.gradients.values()} == {np.dtype(np.float32)}


def test_ranks_of_rows_work_in_a_mixed_batch():
    tasks = MultiLoRAAdapter(DenseLayer(6, 6, rng=0), "a", 2, rng=1)
    model = Sequential([tasks, per_row()])
    ranks = [1, 2, 4, 1, 4]
    expected = model.forward(batch(5, 6), rank=ranks)
    assert_array_equal(model.forward(batch(5, 6), tasks=["a"] * 5, rank=ranks), expected)


def test_the_branch_of_a_pass_with_ranks_of_rows_is_that_of_the_adapter():
    adapter = per_row()
    branch = adapter.select(Run(rank=np.array([1, 2]))).branch
    assert_array_equal(branch.merge_weights(rank=2), adapter.lora_layer.merge_weights(rank=2))
    assert branch.estimate_flops() == adapter.lora_layer.estimate_flops()


def test_a_pass_with_ranks_of_rows_computes_only_the_requested_gradients():
    adapter, dy = per_row(), batch(3, 5)
    _, cache = adapter.apply(batch(3, 6), adapter.new_run(batch(3, 6), rank=[1, 4, 2], training=True))
    dx, gradients = adapter.vjp(dy, cache)
    only_dx, nothing = adapter.vjp(dy, cache, parameters=False)
    no_dx, only_gradients = adapter.vjp(dy, cache, inputs=False)
    assert_array_equal(only_dx, dx)
    assert nothing == {}
    assert no_dx is None
    assert bits(only_gradients) == bits(gradients)


# ---------------------------------------------------------------- ranks and their errors


def test_the_arguments_can_be_read_back():
    adapter = built([1, np.int64(3)], max_rank=4)
    assert adapter.active_ranks == (1, 3)
    assert adapter.max_rank == adapter.rank == 4
    assert adapter.current_deployment_rank == 3
    assert adapter.mode == "full"


def test_training_passes_draw_every_active_rank():
    adapter, x = built((1, 2, 3)), batch(2, 5)
    assert {used_rank(adapter, x) for _ in range(40)} == {1, 2, 3}


def test_a_given_rank_draws_nothing():
    adapter = built((1, 2))
    before = snapshot(adapter)
    adapter.forward(batch(2, 5), rank=1)
    assert snapshot(adapter) == before


NOT_ACTIVE = [0, 2, 4, -1, True, 1.0, "1", 2**62]


@pytest.mark.parametrize("rank", [*NOT_ACTIVE, None], ids=repr)
@pytest.mark.parametrize(
    "deploy",
    [DyLoRAAdapter.set_deployment_rank, DyLoRAAdapter.current_deployment_rank.fset],
    ids=["method", "property"],
)
def test_a_deployment_rank_that_is_not_active_is_refused(rank, deploy):
    adapter = built((1, 3))
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=rf"^rank must .*{rank}"):
        deploy(adapter, rank)
    assert snapshot(adapter) == before


@pytest.mark.parametrize("rank", NOT_ACTIVE, ids=repr)
def test_a_training_rank_that_is_not_active_is_refused(rank):
    adapter = built((1, 3))
    for call in (adapter.forward, adapter.predict):
        with pytest.raises(ArgumentError, match=rf"^rank must .*{rank}"):
            call(batch(2, 5), rank=rank)


BAD_ACTIVE_RANKS = [[], [2, 1], [1, 1], [1, 2, 2], [0, 1], [-1], [1, 4], [2**62], [True], [1.5], ["1"], [None], [[1, 2]]]


@pytest.mark.parametrize("active_ranks", [*BAD_ACTIVE_RANKS, 2, "123", 1.5], ids=repr)
def test_bad_active_ranks_are_refused(active_ranks):
    with pytest.raises(ArgumentError, match="active_ranks"):
        DyLoRAAdapter(DenseLayer(5, 4), 3, active_ranks)


def test_missing_active_ranks_are_refused():
    with pytest.raises(ArgumentNullError, match="active_ranks"):
        DyLoRAAdapter(DenseLayer(5, 4), 3, None)


def test_the_message_shows_the_bad_ranks_and_the_limit():
    with pytest.raises(ArgumentOutOfRangeError, match=r"at most max_rank = 3, got \(1, 4\)"):
        DyLoRAAdapter(DenseLayer(5, 4), 3, [1, 4])


@pytest.mark.parametrize("max_rank", [0, 5, -1, 2**62, 10**400, True, 1.0, None], ids=lambda rank: str(rank)[:9])
def test_a_bad_max_rank_is_refused(max_rank):
    with pytest.raises(ArgumentError, match=rf"^max_rank must .*{max_rank}"):
        DyLoRAAdapter(DenseLayer(5, 4), max_rank, [1])


@pytest.mark.parametrize("option", ["mode", "scaling"])
@pytest.mark.parametrize("value", ["other", None, 1, ["full"]], ids=repr)
def test_an_unknown_mode_or_scaling_is_refused(option, value):
    with pytest.raises(ArgumentError, match=rf"^{option} must be one of"):
        built(**{option: value})


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaling_at_a_rank(scaling):
    adapter = built((1, 2), max_rank=4, alpha=6.0, scaling=scaling)
    for rank in (1, 2, 3, 4):
        assert adapter.scaling_at(rank) == pytest.approx(SCALINGS[scaling](6.0, rank, 4), rel=1e-15)


@pytest.mark.parametrize("rank", [0, 5, -1, 1.5, None], ids=repr)
def test_there_is_no_scaling_beyond_the_maximum(rank):
    with pytest.raises(ArgumentError, match="rank must"):
        built((1, 2), max_rank=4).scaling_at(rank)


# ---------------------------------------------------------------- inference at the ranks


@given(passes(dylora_adapters()))
def test_outputs_at_ranks_are_the_predictions_of_each_rank(case):
    adapter, x, _ = case
    outputs = adapter.outputs_at_ranks(x)
    assert tuple(outputs) == adapter.active_ranks
    for rank, output in outputs.items():
        adapter.set_deployment_rank(rank)
        assert_allclose(output, adapter.predict(x), rtol=1e-11, atol=1e-11)


def test_outputs_at_ranks_do_not_change_the_adapter(base):
    adapter = built((1, 3), base=base)
    before = snapshot(adapter)
    outputs = list(adapter.outputs_at_ranks(batch(2, 5)).values())
    assert snapshot(adapter) == before
    assert not np.shares_memory(*outputs)


def test_outputs_at_ranks_keep_float32_and_refuse_bad_input():
    adapter = built((1, 2), base=DenseLayer(5, 4, dtype=np.float32))
    assert {y.dtype for y in adapter.outputs_at_ranks(batch(2, 5)).values()} == {np.dtype(np.float32)}
    with pytest.raises(ArgumentError, match=r"\(2, 6\)"):
        adapter.outputs_at_ranks(np.ones((2, 6)))


def test_predictions_are_independent_of_training_passes_in_other_threads():
    adapter, inputs = built((1, 2, 3)), [batch(3, 5, seed=seed) for seed in range(40)]
    expected = [adapter.predict(x).tobytes() for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        training = [pool.submit(adapter.forward, x) for x in inputs]
        found = [y.tobytes() for y in pool.map(adapter.predict, inputs)]
    assert all(future.result().shape == (3, 4) for future in training)
    assert found == expected


def test_merging_takes_the_deployment_rank_whatever_the_mode(base):
    adapter = built((1, 3), base=base, rank_distribution=[0, 1])  # a drawn rank would be 3
    adapter.current_deployment_rank = 1
    A, B = adapter.lora_layer.matrix_a, adapter.lora_layer.matrix_b
    expected = base.matrix + A[:, :1] @ B[:1]
    for mode in (True, False):
        assert_allclose(adapter.train(mode).merge_to_original_layer().matrix, expected, rtol=1e-13)


def test_the_deployment_rank_survives_copies_and_files():
    adapter = built((1, 2, 3), mode="frozen", scaling="paper")
    adapter.set_deployment_rank(2)
    file = io.BytesIO()
    adapter.serialize(file)
    blank = built((1, 2, 3), mode="frozen", scaling="paper")
    blank.deserialize(file)
    for twin in (adapter.clone(), load_layer(file), blank):
        assert twin.current_deployment_rank == 2
        assert (twin.mode, twin.active_ranks) == ("frozen", (1, 2, 3))
        assert_array_equal(twin.predict(batch(2, 5)), adapter.predict(batch(2, 5)))


def test_flops_follow_the_deployment_rank():
    adapter = built((1, 3))
    adapter.set_deployment_rank(1)
    # base (2·5 + 1)·4, branch 2·5 + 2·4 + 1, sum 4
    assert adapter.estimate_flops() == 44 + 19 + 4
    adapter.set_deployment_rank(3)
    assert adapter.estimate_flops() == 44 + 3 * 19 + 4


def test_diagnostics_show_the_ranks():
    adapter = built((1, 2), max_rank=3)
    adapter.set_deployment_rank(1)
    found = adapter.get_diagnostics()
    assert found["dylora.max_rank"] == "3"
    assert found["dylora.active_ranks"] == "[1, 2]"
    assert found["dylora.current_deployment_rank"] == "1"
    assert found["dylora.mode"] == "full"


# ---------------------------------------------------------------- frozen mode under optimizers


class OneComponent:
    """An optimizer for the values of one component, which steps only when they get a gradient: slow and plain."""

    def __init__(self, values, rule):
        self.values, self.rule = values.copy(), rule
        self.first = self.second = np.zeros_like(values)
        self.steps = 0

    def step(self, g):
        self.steps += 1
        self.values = self.values + self.rule(self, g)


def sgd(component, g):
    return -0.1 * g


def momentum(component, g):
    component.first = 0.9 * component.first + g
    return -0.1 * component.first


def nesterov(component, g):
    component.first = 0.9 * component.first + g
    return -0.1 * (g + 0.9 * component.first)


def adam(component, g):
    component.first = 0.9 * component.first + 0.1 * g
    component.second = 0.999 * component.second + 0.001 * g**2
    first = component.first / (1 - 0.9**component.steps)
    second = component.second / (1 - 0.999**component.steps)
    return -0.1 * first / (np.sqrt(second) + 1e-8)


def adamw(component, g):
    return adam(component, g) - 0.1 * 0.05 * component.values


OPTIMIZERS = {
    "sgd": (lambda: SGD(0.1), sgd),
    "momentum": (lambda: Momentum(0.1, 0.9), momentum),
    "nesterov": (lambda: Momentum(0.1, 0.9, nesterov=True), nesterov),
    "adam": (lambda: Adam(0.1), adam),
    "adamw": (lambda: AdamW(0.1, weight_decay=0.05), adamw),
}
RANKS = [3, 1, 3, 3, 1, 5, 1, 5, 3]


def trained_components(mode, active_ranks, rank):
    """Indices of the components that a pass at this rank trains."""
    first = max([0, *(active for active in active_ranks if active < rank)]) if mode == "frozen" else 0
    return range(first, rank)


@pytest.mark.parametrize("mode", ["frozen", "full"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_component_is_stepped_only_by_its_own_gradients(name, mode):
    optimizer, rule = OPTIMIZERS[name][0](), OPTIMIZERS[name][1]
    adapter = built((1, 3, 5), max_rank=6, base=randomised(DenseLayer(8, 7)), mode=mode, alpha=3.0)
    A, B, s = adapter.lora_layer.matrix_a, adapter.lora_layer.matrix_b, 3.0 / 6
    columns = [OneComponent(A[:, j], rule) for j in range(6)]
    rows = [OneComponent(B[j], rule) for j in range(6)]
    for step, rank in enumerate(RANKS):
        x, dy = batch(4, 8, seed=step), batch(4, 7, seed=100 + step)
        trained = trained_components(mode, adapter.active_ranks, rank)
        gradients = {j: (s * x.T @ (dy @ rows[j].values), s * (x @ columns[j].values) @ dy) for j in trained}
        for j, (column_gradient, row_gradient) in gradients.items():
            columns[j].step(column_gradient)
            rows[j].step(row_gradient)
        before_A, before_B = A.copy(), B.copy()

        adapter.forward(x, rank=rank)
        adapter.backward(dy)
        adapter.apply_updates(optimizer.updates(adapter))

        assert_allclose(A, np.stack([column.values for column in columns], axis=1), rtol=1e-10)
        assert_allclose(B, np.stack([row.values for row in rows]), rtol=1e-10)
        still = [j for j in range(6) if j not in trained]
        assert A[:, still].tobytes() == before_A[:, still].tobytes()
        assert B[still].tobytes() == before_B[still].tobytes()


IN_MODELS = {
    "model": lambda adapter: Sequential([DenseLayer(6, 5, rng=0), adapter]),
    "adapter": lambda adapter: StandardLoRAAdapter(adapter, 2, freeze_base_layer=False, rng=0),
    "adapter in a model": lambda adapter: Sequential([DenseLayer(6, 5, rng=0), IN_MODELS["adapter"](adapter)]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("wrap", IN_MODELS)
def test_components_stand_still_inside_a_model_too(name, wrap):
    adapter = built((1, 3), max_rank=4, mode="frozen", freeze_base_layer=False)
    model = IN_MODELS[wrap](adapter)
    optimizer = OPTIMIZERS[name][0]()
    for step, rank in enumerate([3, 1, 3]):
        before = adapter.lora_layer.get_matrix_b()
        model.forward(batch(3, model.input_size, seed=step), rank=rank)
        model.backward(batch(3, 4))
        model.apply_updates(optimizer.updates(model))
        moved = (adapter.lora_layer.matrix_b != before).any(axis=1)
        assert np.flatnonzero(moved).tolist() == list(trained_components("frozen", (1, 3), rank))


# ---------------------------------------------------------------- train_with_nested_dropout

LOSSES = {
    "mean-squared": (MeanSquaredError(), lambda x: x[:, :4]),
    "mean-absolute": (MeanAbsoluteError(), lambda x: x[:, :4]),
    "huber": (Huber(0.5), lambda x: x[:, :4]),
    "softmax-labels": (SoftmaxCrossEntropy(), lambda x: x[:, :4].argmax(axis=1)),
    "softmax-one-hot": (SoftmaxCrossEntropy(), lambda x: np.eye(4)[x[:, :4].argmax(axis=1)]),
    "binary": (BinaryCrossEntropy(), lambda x: (x[:, :4] > 0).astype(float)),
    "fourth-power": (lambda p, t: float(((p - t) ** 4).mean()), lambda x: x[:, :4] / 2),
}


def pairs(target):
    inputs = [batch(6, 5, seed=seed) for seed in range(4)]
    return inputs, [target(x) for x in inputs]


@pytest.mark.parametrize("name", LOSSES)
def test_trap_3_training_lowers_the_loss_that_it_is_given_at_every_rank(name):
    loss, target = LOSSES[name]
    inputs, targets = pairs(target)
    adapter = DyLoRAAdapter(DenseLayer(5, 4, rng=0), 3, [1, 2, 3], alpha=3.0, rng=0)
    evaluate = loss if isinstance(loss, Loss) else FunctionLoss(loss)

    def at_every_rank():
        outputs = [adapter.outputs_at_ranks(x) for x in inputs]
        return [np.mean([evaluate(y[r], t) for y, t in zip(outputs, targets, strict=True)]) for r in (1, 2, 3)]

    before = at_every_rank()
    history = adapter.train_with_nested_dropout(inputs, targets, 30, 0.05, loss)
    assert len(history) == 30
    assert history[-1] < history[0]
    assert all(after < earlier for after, earlier in zip(at_every_rank(), before, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_trap_9_the_gradient_of_training_is_that_of_the_loss(name):
    loss, target = LOSSES[name]
    loss = loss if isinstance(loss, Loss) else FunctionLoss(loss)
    x = batch(6, 5)
    adapter = built().eval()
    _, dy = loss.value_and_gradient(adapter.forward(x), target(x))
    adapter.backward(dy)
    twin = adapter.clone()

    def value(vector):
        twin.set_parameters(vector)
        return loss(twin.predict(x), target(x))

    expected = numerical_gradient(value, adapter.get_parameters(), method="central")
    assert_allclose(adapter.get_parameter_gradients(), expected, rtol=1e-5, atol=1e-6)


def test_a_plain_function_trains_like_the_loss_that_it_computes():
    inputs, targets = pairs(lambda x: x[:, :4])
    adapters = built(), built()
    histories = [
        adapter.train_with_nested_dropout(inputs, targets, 3, 0.02, loss)
        for adapter, loss in zip(adapters, [MeanSquaredError(), lambda p, t: ((p - t) ** 2).mean()], strict=True)
    ]
    assert_allclose(histories[1], histories[0], rtol=1e-6)
    assert_allclose(adapters[1].get_parameters(), adapters[0].get_parameters(), rtol=1e-6)


def test_training_is_one_step_of_gradient_descent_for_each_pair_in_order():
    inputs, targets = pairs(lambda x: x[:, :4])
    trained, by_hand = built(), built()
    history = trained.train_with_nested_dropout(inputs, targets, 2, 0.02, MeanSquaredError())
    expected = []
    for x, t in [*zip(inputs, targets, strict=True)] * 2:
        value, dy = MeanSquaredError().value_and_gradient(by_hand.forward(x), t)
        by_hand.backward(dy)
        by_hand.update_parameters(0.02)
        expected.append(value)
    assert bits(trained.named_parameters()) == bits(by_hand.named_parameters())
    assert_allclose(history, [np.mean(expected[:4]), np.mean(expected[4:])], rtol=1e-14)


def test_training_with_a_rank_for_each_row_draws_a_quantile_for_each_step():
    inputs, targets = pairs(lambda x: x[:, :4])
    trained, by_hand = built(), built()
    draws = np.random.default_rng(0)
    draws.standard_normal(trained.lora_layer.matrix_a.shape)
    expected = []
    for x, t in [*zip(inputs, targets, strict=True)] * 2:
        value, dy = MeanSquaredError().value_and_gradient(by_hand.forward(x, rank=of_rows(x, draws.random())), t)
        by_hand.backward(dy)
        by_hand.update_parameters(0.02)
        expected.append(value)
    history = trained.train_with_nested_dropout(inputs, targets, 2, 0.02, MeanSquaredError(), rank_per="row")
    assert bits(trained.named_parameters()) == bits(by_hand.named_parameters())
    assert_allclose(history, [np.mean(expected[:4]), np.mean(expected[4:])], rtol=1e-14)


def test_a_vector_trains_at_one_rank_like_a_single_row():
    inputs, targets, runs = batch(3, 6), batch(3, 5), []
    for xs, ts in ((inputs, targets), (inputs[:, np.newaxis], targets[:, np.newaxis])):
        adapter = per_row()
        history = adapter.train_with_nested_dropout(list(xs), list(ts), 2, 0.02, MeanSquaredError(), rank_per="row")
        runs.append([*history, *adapter.get_parameters()])
    assert_allclose(runs[0], runs[1], rtol=1e-12)


@pytest.mark.parametrize("mode", [True, False])
def test_training_runs_in_training_mode_and_gives_the_mode_back(mode):
    inputs, targets = pairs(lambda x: x[:, :4])
    adapter = built().train(mode)
    adapter.base_layer.train(not mode)
    seen = set()

    def loss(p, t):
        seen.add(adapter.is_training)
        return ((p - t) ** 2).mean()

    adapter.train_with_nested_dropout(inputs, targets, 1, 0.02, loss)
    assert seen - {mode} <= {True}
    assert True in seen
    assert adapter.is_training is mode
    assert adapter.base_layer.is_training is not mode


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_restored_after_a_failure(mode):
    inputs, targets = pairs(lambda x: x[:, :4])
    adapter = built().train(mode)
    calls = []

    def loss(p, t):
        calls.append(1)
        if len(calls) > 250:
            raise KeyError("a bug of the caller")
        return ((p - t) ** 2).mean()

    with pytest.raises(KeyError):
        adapter.train_with_nested_dropout(inputs, targets, 5, 0.02, loss)
    assert adapter.is_training is mode


GOOD = {
    "inputs": [np.ones((2, 5)), np.ones((3, 5))],
    "targets": [np.ones((2, 4)), np.ones((3, 4))],
    "epochs": 1,
    "learning_rate": 0.1,
    "loss_function": MeanSquaredError(),
}
BAD = {
    "no-inputs": ({"inputs": None}, "inputs"),
    "no-targets": ({"targets": None}, "targets"),
    "empty": ({"inputs": [], "targets": []}, "inputs and targets"),
    "fewer-targets": ({"targets": [np.ones((2, 4))]}, "2 and 1"),
    "input-size": ({"inputs": [np.ones((2, 5)), np.ones((3, 6))]}, r"inputs\[1\].*\(3, 6\)"),
    "input-of-strings": ({"inputs": [np.ones((2, 5)), [["a"] * 5] * 3]}, r"inputs\[1\]"),
    "target-shape": ({"targets": [np.ones((2, 4)), np.ones((4, 3))]}, r"targets\[1\].*\(3, 4\).*\(4, 3\)"),
    "target-missing": ({"targets": [np.ones((2, 4)), None]}, r"targets\[1\]"),
    "labels-too-large": (
        {"targets": [np.array([0, 1]), np.array([0, 1, 4])], "loss_function": SoftmaxCrossEntropy()},
        r"targets\[1\].*0\.\.3",
    ),
    "epochs-zero": ({"epochs": 0}, "epochs must be at least 1, got 0"),
    "epochs-fraction": ({"epochs": 1.5}, r"epochs.*1\.5"),
    "rate-nan": ({"learning_rate": np.nan}, "learning_rate.*nan"),
    "rate-string": ({"learning_rate": "fast"}, "learning_rate.*fast"),
    "loss-missing": ({"loss_function": None}, "function must be callable, got None"),
    "loss-not-scalar": ({"loss_function": lambda p, t: p - t}, "function's result"),
    "inputs-not-a-sequence": ({"inputs": 5}, "inputs"),
    "rank-per-what": ({"rank_per": "column"}, "rank_per.*column"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_training_input_is_refused_before_the_first_step(changes, message):
    adapter = built().eval()
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=message):
        adapter.train_with_nested_dropout(**(GOOD | changes))
    assert snapshot(adapter) == before


def test_good_training_input_is_not_modified():
    kept = [array.copy() for array in GOOD["inputs"] + GOOD["targets"]]
    built().train_with_nested_dropout(**GOOD)
    for array, before in zip(GOOD["inputs"] + GOOD["targets"], kept, strict=True):
        assert_array_equal(array, before)


def test_checking_a_loss_before_the_first_step_emits_no_warning():
    inputs, targets = pairs(lambda x: np.abs(x[:, :4]))
    adapter = built()
    adapter.train_with_nested_dropout(inputs, targets, 1, 0.001, lambda p, t: np.mean(t / p**2))


def test_a_target_that_is_not_finite_stops_training_with_the_parameters_as_they_were():
    adapter = built()
    before = bits(adapter.named_parameters())
    with pytest.raises(NonFiniteError, match="epoch 1"):
        adapter.train_with_nested_dropout([np.ones((2, 5))], [np.full((2, 4), np.nan)], 2, 0.1, MeanSquaredError())
    assert bits(adapter.named_parameters()) == before


def test_divergence_leaves_the_last_parameters_with_a_finite_loss():
    inputs, targets = pairs(lambda x: x[:, :4])
    adapter = built().eval()
    with pytest.raises(NonFiniteError, match="learning_rate"):
        adapter.train_with_nested_dropout(inputs, targets, 500, 1e6, MeanSquaredError())
    assert np.isfinite(adapter.get_parameters()).all()
    assert not adapter.is_training
    assert not adapter.gradients
    assert any(np.isfinite(y).all() for x in inputs for y in adapter.outputs_at_ranks(x).values())


def test_both_layouts_are_trained_alike():
    inputs, targets = pairs(lambda x: x[:, :4])
    results = []
    for base_class in BASES.values():
        base = base_class(5, 4)
        base.set_parameter("weight", base.in_layout(batch(5, 4)))
        adapter = DyLoRAAdapter(base, 3, [1, 3], freeze_base_layer=False, rng=0)
        adapter.train_with_nested_dropout(inputs, targets, 5, 0.05, MeanSquaredError())
        results.append((adapter.base_layer.matrix, adapter.lora_layer.merge_weights()))
    assert_allclose(results[0][0], results[1][0], rtol=1e-9)
    assert_allclose(results[0][1], results[1][1], rtol=1e-9)
