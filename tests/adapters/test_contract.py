"""What every adapter promises, on both layouts of the base's weight, frozen and not."""

import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    ActivationLayer,
    ArgumentError,
    ArgumentNullError,
    ArgumentOutOfRangeError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    InvalidOperationError,
    LoRAAdapterBase,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Regularization,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    VeRALayer,
    relu,
    tanh,
)
from lora_np.adapters.rank_choice import rank_choices
from lora_np.run import Run
from lora_np.testing import check_gradients, gradient_errors
from tests.kinds import ALPHA, BASES, IN, KINDS, OUT, RANK, batch, bits, randomised, snapshot
from tests.strategies import adapters, passes

SHAPES = [(5, 3), (3, 5), (2, 4), (6, 1), (1, 6)]
RANKED_SHAPES = [(shape, rank) for shape in SHAPES for rank in range(1, min(shape) + 1)]
ANY_BASE = [kind for kind in KINDS if kind != "dora"]
CANNOT_MERGE = (InvalidOperationError, NotSupportedError)


def all_ranks(adapter):
    """Set each deployment rank in turn where there are several; otherwise once."""
    for rank in getattr(adapter, "active_ranks", [None]):
        if rank is not None:
            adapter.set_deployment_rank(rank)
        yield rank


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(("shape", "rank"), RANKED_SHAPES, ids=str)
def test_trap_1_and_10_gradients_of_every_array_at_every_rank(kind, base_class, frozen, shape, rank):
    adapter = randomised(KINDS[kind](base_class(*shape), rank, ALPHA, frozen, rng=0))
    for _ in all_ranks(adapter):
        errors = check_gradients(
            adapter, batch(4, shape[0]), method="complex", active_only=kind.endswith("frozen-mode"), rtol=1e-10
        )
        assert set(errors) == {"input", *adapter.named_parameters()}


@given(passes(adapters(smallest=2)))
def test_passes_on_awkward_arrays_are_those_on_plain_ones(case):
    adapter, x, dy = case
    plain_x, plain_dy = np.array(x, float), np.array(dy, float)
    adapter.eval()
    y = adapter.forward(x)
    dx = adapter.backward(dy)
    pure_y, cache = adapter.apply(plain_x, Run())
    pure_dx, gradients = adapter.vjp(plain_dy, cache)
    assert y.shape == dy.shape
    assert dx.shape == x.shape
    assert_allclose(y, pure_y, rtol=1e-12, atol=1e-12)
    assert_allclose(dx, pure_dx, rtol=1e-12, atol=1e-12)
    for name, gradient in adapter.gradients.items():
        assert_allclose(gradient, gradients[name], rtol=1e-12, atol=1e-12)


@given(passes(adapters(smallest=2)))
def test_gradients_on_awkward_arrays(case):
    adapter, x, dy = case
    frozen_mode = any(ranks.mode == "frozen" for ranks in rank_choices(adapter).values())
    options = {"method": "complex", "directions": True, "active_only": frozen_mode, "rtol": 1e-8}
    check_gradients(adapter, x, output_gradient=dy, allow_vacuous=True, **options)  # integers may be zero, or cancel


@pytest.mark.parametrize("kind", ANY_BASE)
def test_gradients_flow_through_a_base_with_an_activation(kind, base_class, frozen):
    adapter = randomised(KINDS[kind](base_class(IN, OUT, tanh), RANK, ALPHA, frozen, rng=0))
    check_gradients(adapter, batch(4, IN), method="complex", active_only=kind.endswith("frozen-mode"), rtol=1e-10)


def test_the_penalty_of_a_base_counts_only_where_it_trains(kind, base_class, frozen):
    base = base_class(IN, OUT, regularization=Regularization(l1=0.5, l2=0.25))
    adapter = randomised(KINDS[kind](base, RANK, ALPHA, frozen, rng=0))
    assert adapter.compute_auxiliary_loss() == (0 if frozen else base.compute_auxiliary_loss())
    check_gradients(adapter, batch(4, IN), method="complex", active_only=kind.endswith("frozen-mode"), rtol=1e-10)


def test_the_input_gradient_is_always_the_true_one(adapter, x):
    for _ in all_ranks(adapter):
        assert gradient_errors(adapter, x, method="complex", active_only=True)["input"] < 1e-10


# ---------------------------------------------------------------- base and branch


def test_it_begins_as_its_base(kind, base, frozen, x):
    adapter = KINDS[kind](base, RANK, ALPHA, frozen, rng=0)
    if kind == "dora":
        assert_allclose(adapter.predict(x), base.predict(x), rtol=1e-13)
    else:
        assert_array_equal(adapter.predict(x), base.predict(x))


def test_an_adapter_with_other_parameters_differs_from_its_base(adapter, base, x):
    assert np.abs(adapter.predict(x) - base.predict(x)).min() > 1e-3


def test_alpha_zero_switches_the_branch_off(kind, base, x):
    adapter = randomised(KINDS[kind](base, RANK, 0.0, rng=0), seed=3)
    if kind == "dora":
        adapter.magnitude[...] = np.linalg.norm(base.matrix, axis=0)
    assert adapter.alpha == 0
    assert_allclose(adapter.predict(x), base.predict(x), rtol=1e-13)


def test_with_alpha_zero_the_branch_gets_no_gradient(kind, base, x, dy):
    adapter = randomised(KINDS[kind](base, RANK, 0.0, rng=0))
    adapter.forward(x)
    adapter.backward(dy)
    branch = {name: gradient for name, gradient in adapter.gradients.items() if name.startswith(("lora", "tasks"))}
    assert branch
    assert not any(gradient.any() for gradient in branch.values())


@pytest.mark.parametrize("alpha", [-1, -1.0, -7.5, np.float32(-2)])
def test_a_negative_alpha_means_the_rank(kind, base, alpha):
    assert KINDS[kind](base, RANK, alpha, rng=0).alpha == RANK


def test_alpha_and_rank_are_those_of_the_branch(adapter):
    assert (adapter.alpha, adapter.rank) == (ALPHA, RANK)
    assert (adapter.lora_layer.alpha, adapter.lora_layer.rank) == (ALPHA, RANK)


def test_the_base_is_not_copied(adapter, base, frozen):
    assert isinstance(adapter, LoRAAdapterBase)
    assert adapter.base_layer is base
    assert adapter.is_base_layer_frozen is frozen


def test_the_pass_stored_in_the_base_is_not_changed(adapter, base, x, dy):
    base.forward(2 * x)
    expected = base.backward(dy), bits(base.gradients)
    adapter.forward(x)
    adapter.backward(2 * dy)
    adapter.update_parameters(0.0)
    assert bits(base.gradients) == expected[1]
    assert_array_equal(base.backward(dy), expected[0])


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_the_mode_of_a_pass_reaches_base_and_branch(adapter, x, monkeypatch, mode):
    seen = []
    for layer in (adapter.base_layer, adapter.lora_layer):

        def recording(x, run, *, original=layer.apply, **options):
            seen.append(run.training)
            return original(x, run, **options)

        monkeypatch.setattr(layer, "apply", recording)
    adapter.train(mode).forward(x)
    assert seen == [mode, mode]


# ---------------------------------------------------------------- freezing


def test_a_frozen_base_does_not_move(kind, base, x, dy):
    adapter = randomised(KINDS[kind](base, RANK, ALPHA, True, rng=0))
    before = bits(base.named_parameters())
    adapter.forward(x)
    adapter.backward(dy)
    adapter.update_parameters(0.5)
    adapter.set_parameters(np.ones(adapter.parameter_count))
    assert bits(base.named_parameters()) == before


def test_a_trained_base_changes(kind, base, x, dy):
    adapter = randomised(KINDS[kind](base, RANK, ALPHA, False, rng=0))
    before = base.weight.copy(), base.bias.copy()
    adapter.forward(x)
    adapter.backward(dy)
    adapter.update_parameters(0.5)
    assert (base.weight != before[0]).all()
    assert (base.bias != before[1]).all()


def test_the_base_is_among_the_parameters_only_if_it_trains(adapter, frozen, x, dy):
    adapter.forward(x)
    adapter.backward(dy)
    for names in (adapter.named_parameters(), adapter.gradients):
        assert {name for name in names if name.startswith("base.")} == (set() if frozen else {"base.weight", "base.bias"})
    assert {"base.weight", "base.bias"} <= set(adapter.named_parameters(frozen=True))


def test_the_weight_gradient_of_a_frozen_base_is_never_computed(adapter, base, frozen, x, dy, monkeypatch):
    wanted = []
    original = base.vjp

    def recording(*arguments, parameters=True, **options):
        wanted.append(parameters)
        return original(*arguments, parameters=parameters, **options)

    monkeypatch.setattr(base, "vjp", recording)
    adapter.forward(x)
    adapter.backward(dy)
    assert wanted == [not frozen]


def test_freezing_changes_neither_the_output_nor_the_input_gradient(kind, base, x, dy):
    results = []
    for frozen in (True, False):
        adapter = randomised(KINDS[kind](base, RANK, ALPHA, frozen, rng=0)).eval()
        results.append((adapter.forward(x).tobytes(), adapter.backward(dy).tobytes()))
    assert results[0] == results[1]


# ---------------------------------------------------------------- the flat vector


def expected_arrays(adapter):
    """The trainable arrays in the documented order, found without `named_parameters`."""
    base = [] if adapter.is_base_layer_frozen else [adapter.base_layer.weight, adapter.base_layer.bias]
    branches = adapter.task_adapters.values() if hasattr(adapter, "task_adapters") else [adapter.lora_layer]
    own = [adapter.magnitude] if hasattr(adapter, "magnitude") else []
    factors = ("vector_d", "vector_b") if hasattr(adapter.lora_layer, "vector_d") else ("matrix_a", "matrix_b")
    return own + base + [getattr(branch, name) for branch in branches for name in factors]


def test_the_flat_vector_is_base_then_branches_row_by_row(adapter):
    rows = [row for array in expected_arrays(adapter) for row in np.atleast_2d(array)]
    assert_array_equal(adapter.get_parameters(), np.concatenate(rows))


def test_a_flat_vector_is_split_in_the_same_order(adapter):
    adapter.set_parameters(np.arange(adapter.parameter_count))
    start = 0
    for array in expected_arrays(adapter):
        assert_array_equal(array, np.arange(start, start + array.size).reshape(array.shape))
        start += array.size
    assert start == adapter.parameter_count


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize(("shape", "rank"), RANKED_SHAPES, ids=str)
def test_trap_2_merged_equals_unmerged(kind, base_class, shape, rank):
    adapter = randomised(KINDS[kind](base_class(*shape), rank, ALPHA, rng=0))
    x = batch(4, shape[0])
    for _ in all_ranks(adapter):
        merged = adapter.merge_to_original_layer()
        assert type(merged) is base_class
        assert_allclose(merged.predict(x), adapter.predict(x), rtol=1e-11, atol=1e-11)


@given(passes(adapters()))
def test_merged_equals_unmerged_on_awkward_arrays(case):
    adapter, x, _ = case
    assert_allclose(adapter.merge_to_original_layer().predict(x), adapter.predict(x), rtol=1e-9, atol=1e-9)


def test_merging_does_not_change_the_adapter(adapter, base, x, dy):
    adapter.forward(x)
    adapter.backward(dy)
    before, arrays = snapshot(adapter), adapter.named_parameters(frozen=True)
    merged = adapter.merge_to_original_layer()
    assert snapshot(adapter) == before
    assert all(array is arrays[name] for name, array in adapter.named_parameters(frozen=True).items())
    assert merged is not base
    for array in merged.named_parameters().values():
        assert not any(np.shares_memory(array, other) for other in arrays.values())


def test_a_merged_layer_keeps_bias_penalty_and_dtype(kind, base_class):
    base = randomised(base_class(IN, OUT, regularization=Regularization(l2=0.5), dtype=np.float32))
    merged = randomised(KINDS[kind](base, RANK, ALPHA, rng=0), seed=4).merge_to_original_layer()
    assert_array_equal(merged.bias, base.bias)
    assert merged.regularization == base.regularization
    assert merged.weight.dtype == np.float32
    assert merged.weight.shape == base.weight.shape
    assert merged.layer_name != base.layer_name


@pytest.mark.parametrize("kind", ANY_BASE)
@pytest.mark.parametrize(
    "other_base",
    [lambda: DenseLayer(IN, OUT, relu), lambda: Sequential([DenseLayer(IN, OUT)]), lambda: ActivationLayer(IN, tanh)],
    ids=["activation", "stack", "no-weight"],
)
def test_what_cannot_be_merged_is_refused(kind, other_base):
    adapter = KINDS[kind](other_base(), RANK, ALPHA, rng=0)
    before = snapshot(adapter)
    expected = NotSupportedError if kind.startswith("multilora") else InvalidOperationError
    with pytest.raises(expected, match=re.escape(adapter.layer_name)):
        adapter.merge_to_original_layer()
    assert snapshot(adapter) == before


@pytest.mark.parametrize("kind", ANY_BASE)
def test_the_error_of_merging_an_activation_says_what_to_do(kind):
    with pytest.raises(CANNOT_MERGE, match=r"activation relu.*split_activation\(\)"):
        KINDS[kind](DenseLayer(IN, OUT, relu), RANK, rng=0).merge_to_original_layer()


def test_an_adapter_of_the_linear_half_can_be_merged(kind, base_class, x):
    whole = randomised(base_class(IN, OUT, tanh))
    linear, activation = whole.split_activation()
    adapter = KINDS[kind](linear, RANK, ALPHA, rng=0)
    model = Sequential([adapter, activation])
    assert_allclose(model.predict(x), whole.predict(x), rtol=1e-12)
    randomised(adapter.lora_layer)
    assert_allclose(activation.predict(adapter.merge_to_original_layer().predict(x)), model.predict(x), rtol=1e-11)


# ---------------------------------------------------------------- constructors


def refused(kind, *arguments, match):
    """The error of a constructor call whose base is left alone."""
    base = DenseLayer(IN, OUT, rng=0)
    before = snapshot(base)
    with pytest.raises(ArgumentError, match=match) as caught:
        KINDS[kind](base, *arguments, rng=0)
    assert snapshot(base) == before
    return caught.type


# Through its own constructor, because the builder of the table computes the active ranks from the rank.
@pytest.mark.parametrize("kind", ["standard", "dora", "vera"])
@pytest.mark.parametrize("rank", [0, -1, True, 1.5, "2", None, np.float64(2), [2]], ids=repr)
def test_a_rank_that_is_not_a_positive_integer_is_refused(kind, rank):
    refused(kind, rank, match=rf"^rank must be .*{re.escape(repr(rank))}")


@pytest.mark.parametrize("kind", ["standard", "dora"])
@pytest.mark.parametrize("rank", [OUT + 1, 2**62, 2**70, 10**400], ids=["4", "2**62", "2**70", "10**400"])
def test_a_rank_beyond_the_smaller_size_is_refused(kind, rank):
    assert refused(kind, rank, match=rf"rank.*{rank}") is ArgumentOutOfRangeError


@pytest.mark.parametrize("rank", [1, np.int8(2), np.uint64(3), OUT])
def test_a_rank_may_have_any_integer_type(kind, rank):
    assert KINDS[kind](DenseLayer(IN, OUT), rank, rng=0).rank == rank


@pytest.mark.parametrize("alpha", [np.nan, np.inf, -np.inf], ids=repr)
def test_an_alpha_that_is_not_finite_is_refused(kind, alpha):
    assert refused(kind, RANK, alpha, match=rf"^alpha must be finite, got {alpha}") is ArgumentOutOfRangeError


@pytest.mark.parametrize("alpha", ["3", None, 1j, [3.0], object], ids=repr)
def test_an_alpha_that_is_not_a_number_is_refused(kind, alpha):
    refused(kind, RANK, alpha, match=rf"^alpha must be a real number, got {re.escape(repr(alpha))}")


def test_a_missing_base_is_refused(kind):
    with pytest.raises(ArgumentNullError, match="base_layer"):
        KINDS[kind](None, RANK, rng=0)


@pytest.mark.parametrize("base", [np.ones((IN, OUT)), "dense", DenseLayer], ids=["array", "string", "class"])
def test_a_base_that_is_not_a_layer_is_refused(kind, base):
    with pytest.raises(ArgumentError, match="base_layer"):
        KINDS[kind](base, RANK, rng=0)


@pytest.mark.parametrize("rng", ["seed", 1.5, -1], ids=repr)
def test_a_bad_seed_is_refused(kind, rng):
    with pytest.raises(ArgumentError, match=re.escape(repr(rng))):
        KINDS[kind](DenseLayer(IN, OUT), RANK, rng=rng)


def test_the_seed_determines_the_initial_values(kind):
    def initial(rng):
        return bits(KINDS[kind](DenseLayer(IN, OUT, rng=0), RANK, rng=rng).lora_layer.named_parameters(frozen=True))

    assert initial(3) == initial(3) == initial(np.random.default_rng(3))
    assert initial(3) != initial(4)


DEFAULTS = {
    "alpha": -1.0,
    "freeze_base_layer": True,
    "dropout": 0.0,
    "scaling": "max",
    "mode": "full",
    "norm_gradient": True,
    "initial_d": 0.1,
    "active_ranks": None,
    "rank_distribution": None,
    "rng": None,
    "ranks": None,
    "dtype": np.float64,
}


@pytest.mark.parametrize(
    "function",
    [
        *(StandardLoRAAdapter, DyLoRAAdapter, DoRAAdapter, VeRAAdapter, MultiLoRAAdapter, LoRALayer, VeRALayer),
        *(StandardLoRAAdapter.around, DyLoRAAdapter.around, DoRAAdapter.around, MultiLoRAAdapter.around_tasks),
        *(MultiLoRAAdapter.add_task, MultiLoRAAdapter.check_task, DyLoRAAdapter._choose, LoRALayer.from_factors),
    ],
    ids=lambda function: function.__qualname__,
)
def test_each_choice_has_one_default_wherever_it_may_be_left_out(function):
    parameters = inspect.signature(function).parameters.values()
    found = {each.name: each.default for each in parameters if each.default is not each.empty}
    assert found
    assert found == {name: DEFAULTS[name] for name in found}


def test_the_dtype_is_that_of_the_base(kind, base_class):
    for dtype in (np.float32, np.float64):
        adapter = KINDS[kind](base_class(IN, OUT, dtype=dtype), RANK, rng=0)
        assert adapter.dtype == dtype
        assert {array.dtype for array in adapter.named_parameters().values()} == {np.dtype(dtype)}


# ---------------------------------------------------------------- description


def test_repr_shows_rank_alpha_and_freezing(adapter, frozen):
    text = repr(adapter)
    for word in (f"{IN} -> {OUT}", f"rank={RANK}", f"alpha={ALPHA:g}", f"base_frozen={frozen}"):
        assert word in text


def test_diagnostics_show_rank_alpha_scaling_and_freezing(adapter, frozen):
    found = adapter.get_diagnostics()
    assert found["lora.rank"] == str(RANK)
    assert found["lora.alpha"] == f"{ALPHA:g}"
    assert float(found["lora.scaling"]) == pytest.approx(adapter.lora_layer.scaling, rel=1e-5)
    assert found["lora.base_frozen"] == str(frozen)


def test_flops_are_those_of_base_branch_and_sum(adapter):
    assert adapter.estimate_flops() == (
        adapter.base_layer.estimate_flops() + adapter.lora_layer.estimate_flops() + adapter.output_size
    )


def test_every_kind_and_both_layouts_are_covered():
    subclasses = {type(KINDS[kind](DenseLayer(IN, OUT), RANK, rng=0)) for kind in KINDS}
    shipped, waiting = set(), [LoRAAdapterBase]
    while waiting:
        for subclass in waiting.pop().__subclasses__():
            waiting.append(subclass)
            if subclass.__module__.startswith("lora_np.") and not subclass.__abstractmethods__:
                shipped.add(subclass)
    assert subclasses == shipped
    assert {base.__name__ for base in BASES.values()} == {"DenseLayer", "FullyConnectedLayer"}
