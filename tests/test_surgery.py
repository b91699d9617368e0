"""Rank surgery: best approximations, equal functions and exact sums, compared with dense matrices."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_np import (
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    LoRALayer,
    NotSupportedError,
    StandardLoRAAdapter,
    VeRAAdapter,
)
from lora_np.factors.weights import AdapterWeights, extract
from lora_np.surgery import canonicalize, combine, effective_rank, grow, retained_energy, spectrum, truncate
from tests.kinds import KINDS, batch, bits, randomised, snapshot

IN, OUT = 7, 5
TOLERANCE = 1e-12
BRANCHES = [kind for kind in KINDS if kind != "vera"]
"""The kinds of adapters whose branches are pairs of trained factors."""


def layer(input_size=IN, output_size=OUT, rank=4, alpha=3.0, *, scaling="max", dtype=np.float64, seed=0):
    """A layer with random factors, of any rank."""
    A = batch(input_size, rank, seed=seed).astype(dtype)
    B = batch(rank, output_size, seed=seed + 1).astype(dtype)
    return LoRALayer.from_factors(A, B, alpha, scaling=scaling)


@st.composite
def layers(draw, **fixed):
    """Layers of every shape, including ranks above the sizes and layers that output zeros."""
    sizes = {name: draw(st.integers(1, 7)) for name in ("input_size", "output_size", "rank")} | fixed
    one = layer(
        **sizes,
        alpha=draw(st.sampled_from([-1.0, 0.0, 0.5, 3.0])),
        scaling=draw(st.sampled_from(["max", "paper", "rslora"])),
        seed=draw(st.integers(0, 1000)),
    )
    if draw(st.booleans()):
        one.matrix_b[: draw(st.integers(0, one.rank))] = 0
    return one


def adapter(kind, rank=4):
    return randomised(KINDS[kind](DenseLayer(IN, OUT), rank, 3.0, rng=0))


def dense_singular_values(one):
    return np.linalg.svd(one.merge_weights(), compute_uv=False)


def dense_best(matrix, rank):
    """The best approximation, computed from the dense matrix."""
    U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * sigma[:rank]) @ Vt[:rank]


def close(actual, wanted, scale=None, tolerance=TOLERANCE):
    """Whether two arrays are equal up to rounding, relative to the largest element of `scale`."""
    scale = np.abs(wanted if scale is None else scale).max(initial=0)
    return actual.shape == wanted.shape and np.abs(actual - wanted).max(initial=0) <= tolerance * max(scale, 1e-300)


def assert_untouched(subject, before):
    """Assert that the subject is unchanged."""
    assert snapshot(subject) == before


# ---------------------------------------------------------------- the spectrum


@given(layers())
def test_the_spectrum_agrees_with_the_dense_matrix(one):
    sigma, dense = spectrum(one), dense_singular_values(one)
    assert len(sigma) == min(one.rank, one.input_size, one.output_size)
    scale = abs(one.scaling) * np.linalg.norm(one.matrix_a) * np.linalg.norm(one.matrix_b)
    assert close(sigma, dense[: len(sigma)], scale)
    assert close(dense[len(sigma) :], np.zeros(len(dense) - len(sigma)), scale)


@pytest.mark.parametrize(
    ("values", "rank"), [([1, 1, 1, 1], 4), ([2, 0, 0], 1), ([0, 0], 0), ([3, 3, 0], 2), ([0.75, 0.25], 1.7547653506033454)]
)
def test_the_effective_rank(values, rank):
    assert effective_rank(np.array(values, float)) == pytest.approx(rank, rel=1e-14)


@pytest.mark.parametrize(
    ("values", "rank", "share"), [([4, 3], 1, 16 / 25), ([4, 3], 2, 1), ([4, 3], 9, 1), ([4, 3], 0, 0), ([0, 0], 1, 1)]
)
def test_the_retained_energy(values, rank, share):
    assert retained_energy(np.array(values, float), rank) == pytest.approx(share, rel=1e-15)


# ---------------------------------------------------------------- truncate


@given(layers(), st.integers(1, 8))
def test_truncation_is_the_best_approximation(one, rank):
    dense = one.merge_weights()
    cut = truncate(one, rank=rank)
    sigma = dense_singular_values(one)
    assert cut.rank == min(rank, one.rank, one.input_size, one.output_size)
    scale = one.scaling * np.linalg.norm(one.matrix_a) * np.linalg.norm(one.matrix_b)
    error = np.linalg.norm(dense - cut.merge_weights())
    assert error == pytest.approx(np.linalg.norm(sigma[rank:]), abs=TOLERANCE * scale)  # Eckart and Young
    kept = sigma[:rank]
    assume(rank >= len(sigma) or kept[-1] - sigma[rank] > 1e-3 * scale)  # otherwise the best approximation is not unique
    assert close(cut.merge_weights(), dense_best(dense, rank), scale, 1e-9)


@given(layers())
def test_a_sufficient_rank_keeps_the_function(one):
    scale = one.scaling * np.linalg.norm(one.matrix_a) * np.linalg.norm(one.matrix_b)
    for cut in (truncate(one, rank=one.rank), truncate(one, rank=one.rank + 5)):
        assert close(cut.merge_weights(), one.merge_weights(), scale)


@pytest.mark.parametrize("act", [lambda one: truncate(one, rank=2), lambda one: truncate(one, energy=0.9), canonicalize])
def test_the_dense_matrix_is_never_formed(monkeypatch, act):
    sizes, svd, qr = [], np.linalg.svd, np.linalg.qr

    def recorded(function):
        def call(matrix, *arguments, **options):
            sizes.append(matrix.shape)
            return function(matrix, *arguments, **options)

        return call

    monkeypatch.setattr(np.linalg, "svd", recorded(svd))
    monkeypatch.setattr(np.linalg, "qr", recorded(qr))
    monkeypatch.setattr(LoRALayer, "merge_weights", None)
    act(layer(50, 40, 3))
    assert set(sizes) == {(50, 3), (40, 3), (3, 3)}


@given(layers(), st.floats(0.01, 1))
def test_energy_selects_the_smallest_rank_that_keeps_it(one, energy):
    sigma = spectrum(one)
    rank = truncate(one, energy=energy).rank
    assert retained_energy(sigma, rank) >= energy - 1e-12
    assert rank == 1 or retained_energy(sigma, rank - 1) < energy + 1e-12


@pytest.mark.parametrize(("energy", "rank"), [(0.63, 1), (0.65, 2), (1.0, 2), (1e-9, 1)])
def test_energy_of_known_components(energy, rank):
    one = LoRALayer.from_factors(np.eye(5, 3), np.diag([4.0, 3.0, 0.0]))
    assert truncate(one, energy=energy).rank == rank


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 1, "energy": 0.5},
        {"rank": 0},
        {"rank": 1.5},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": -0.5},
        {"energy": float("nan")},
    ],
)
def test_an_invalid_target_is_rejected(options):
    with pytest.raises(ArgumentError, match=r"rank|energy"):
        truncate(layer(), **options)


def test_a_component_without_effect_keeps_its_direction():
    one = layer(rank=2)
    one.matrix_b[...] = 0
    np.testing.assert_allclose(np.linalg.norm(truncate(one, rank=2).matrix_a, axis=0), 1)


def test_alpha_0_and_zero_factors_stay_zero():
    for one in (layer(alpha=0.0), LoRALayer(IN, OUT, 4, 3.0, rng=0)):
        cut = truncate(one, rank=2)
        assert not cut.merge_weights().any()
        assert cut.matrix_a.any()  # it can still be trained


def test_an_energy_selects_a_rank_for_each_layer():
    strong = LoRALayer.from_factors(np.eye(5, 3), np.diag([4.0, 0.1, 0.1]))
    even = LoRALayer.from_factors(np.eye(5, 3), np.eye(3))
    cut = truncate(AdapterWeights({"strong": strong, "even": even}), energy=0.9)
    assert {path: one.rank for path, one in cut.layers.items()} == {"strong": 1, "even": 3}


@pytest.mark.parametrize("kind", BRANCHES)
def test_adapters_are_truncated_branch_by_branch(kind):
    whole = adapter(kind)
    cut = truncate(whole, rank=2)
    assert type(cut) is type(whole)
    assert cut.base_layer is whole.base_layer
    for name, branch in whole.children().items():
        if name != "base":
            scale = branch.merge_weights()
            assert close(cut.children()[name].merge_weights(), dense_best(scale, 2), scale)


def test_active_ranks_above_the_new_rank_are_replaced_by_it():
    whole = randomised(DyLoRAAdapter(DenseLayer(IN, OUT), 5, [1, 2, 4, 5], rank_distribution=[0.1, 0.2, 0.3, 0.4]))
    cut = truncate(whole, rank=3)
    assert cut.active_ranks == (1, 2, 3)
    assert cut.rank_distribution == pytest.approx((0.1, 0.2, 0.7))
    assert cut.current_deployment_rank == 3


def test_active_ranks_of_a_truncated_dylora_are_best_approximations():
    whole = adapter("dylora-rslora")
    cut = truncate(whole, rank=3)
    dense = whole.lora_layer.merge_weights()
    for rank in cut.active_ranks:
        assert close(cut.lora_layer.merge_weights(rank=rank), dense_best(dense, rank), dense)


# ---------------------------------------------------------------- grow


@given(layers(), st.integers(1, 7), st.integers(0, 100))
def test_growing_keeps_the_function(one, rank, seed):
    assume(rank <= max(one.rank, min(one.input_size, one.output_size)))
    grown = grow(one, rank, rng=seed)
    assert grown.rank == max(rank, one.rank)
    assert grown.scaling == pytest.approx(one.scaling, rel=1e-15)
    assert grown.scaling_rule == one.scaling_rule
    assert np.array_equal(grown.matrix_a[:, : one.rank], one.matrix_a)
    assert np.array_equal(grown.matrix_b[: one.rank], one.matrix_b)
    assert not grown.matrix_b[one.rank :].any()
    assert close(grown.merge_weights(), one.merge_weights(), tolerance=1e-15 * (1 + one.rank))


GROWING = ["standard", "standard-rslora", "dora", "dylora", "dylora-frozen-mode", "multilora"]


@pytest.mark.parametrize("kind", GROWING)
def test_growing_keeps_the_output_of_adapters(kind):
    one, x = adapter(kind, 2), batch(6, IN)
    grown = grow(one, 4, rng=1)
    assert grown.rank == 4
    assert grown.base_layer is one.base_layer
    assert close(grown.predict(x), one.predict(x), tolerance=1e-15)


@pytest.mark.parametrize("kind", GROWING)
def test_grown_adapters_train_their_new_components(kind):
    grown = grow(adapter(kind, 2), 4, rng=1)
    if isinstance(grown, DyLoRAAdapter):  # its active ranks are kept, so the new components need another one
        branch = grown.lora_layer
        grown = DyLoRAAdapter(grown.base_layer, 4, [4]).with_branches(lambda _: branch)
    lora = grown.lora_layer
    before = bits({"A": lora.matrix_a[:, 2:], "B": lora.matrix_b[2:]})
    for _ in range(2):  # B is trained first: while B is zero, A has no gradient
        grown.forward(batch(6, IN))
        grown.backward(batch(6, OUT, seed=2))
        grown.update_parameters(0.01)
    after = bits({"A": lora.matrix_a[:, 2:], "B": lora.matrix_b[2:]})
    assert before["A"] != after["A"]
    assert before["B"] != after["B"]


@pytest.mark.parametrize("kind", ["dylora", "dylora-frozen-mode"])
def test_a_grown_dylora_is_unchanged_at_every_active_rank(kind):
    one, x = adapter(kind, 3), batch(6, IN)
    grown = grow(one, 5, rng=1)
    assert grown.max_rank == 5
    assert grown.active_ranks == one.active_ranks
    after = grown.outputs_at_ranks(x)
    for rank, output in one.outputs_at_ranks(x).items():
        assert close(after[rank], output, tolerance=1e-15)


@pytest.mark.parametrize("kind", ["dylora-paper", "dylora-rslora"])
def test_a_dylora_whose_scaling_depends_on_the_rank_does_not_grow(kind):
    with pytest.raises(NotSupportedError, match="can only grow with scaling='max'"):
        grow(adapter(kind, 2), 4)


def test_every_task_grows_to_the_rank():
    grown = grow(adapter("multilora", 3), 4, rng=0)
    assert [branch.rank for branch in grown.task_adapters.values()] == [4, 4, 4]


def test_growing_to_the_rank_or_below_returns_a_copy():
    one = layer(rank=3)
    for rank in (3, 2):
        grown = grow(one, rank)
        assert bits(grown.named_parameters()) == bits(one.named_parameters())
        assert grown is not one
    assert grow(layer(3, 4, rank=5), 5).rank == 5  # more than the sizes allow for a new rank


def test_equal_seeds_give_equal_results():
    one = layer(rank=2)
    assert bits(grow(one, 4, rng=3).named_parameters()) == bits(grow(one, 4, rng=3).named_parameters())


def test_new_columns_have_the_variance_of_a_new_layer():
    grown = grow(layer(400, 300, 1), 100, rng=0)
    assert grown.matrix_a[:, 1:].std() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("rank", [0, -1, 6, 2.5])
def test_a_rank_out_of_range_is_rejected(rank):
    with pytest.raises(ArgumentError, match="rank must be"):
        grow(layer(rank=2), rank)


# ---------------------------------------------------------------- canonicalize


@given(layers())
def test_the_canonical_form_has_the_same_function(one):
    scale = one.scaling * np.linalg.norm(one.matrix_a) * np.linalg.norm(one.matrix_b)
    assert close(canonicalize(one).merge_weights(), one.merge_weights(), scale)


@given(layers())
def test_components_are_orthogonal_and_shared_equally(one):
    tidy = canonicalize(one)
    sigma, count = spectrum(one), tidy.rank
    A, B = tidy.matrix_a * np.sqrt(tidy.scaling), tidy.matrix_b * np.sqrt(tidy.scaling)
    zero = sigma == 0
    assert close(B @ B.T, np.diag(sigma), sigma)
    assert close((A.T @ A)[np.ix_(~zero, ~zero)], np.diag(sigma[~zero]), sigma)
    assert count == len(sigma)
    assert all(first >= second for first, second in pairwise(sigma))


@given(layers(rank=3, input_size=6, output_size=4))
def test_factors_are_balanced_if_the_scaling_is_1(one):
    one = LoRALayer.from_factors(one.matrix_a, one.matrix_b)
    tidy = canonicalize(one)
    strong = spectrum(one) > 1e-9
    columns, rows = np.linalg.norm(tidy.matrix_a, axis=0), np.linalg.norm(tidy.matrix_b, axis=1)
    assert close(columns[strong], rows[strong])


@given(layers())
def test_the_largest_element_of_each_column_is_positive(one):
    tidy, strong = canonicalize(one), spectrum(one) > 0
    largest = np.abs(tidy.matrix_a).argmax(axis=0)
    assert (tidy.matrix_a[largest, np.arange(tidy.rank)][strong] > 0).all()


@pytest.mark.parametrize("scaling", ["max", "rslora"])
def test_canonicalizing_twice_changes_nothing(scaling):
    once = canonicalize(layer(scaling=scaling))
    twice = canonicalize(once)
    for name, array in once.named_parameters().items():
        assert close(twice.named_parameters()[name], array)


def test_equal_functions_get_equal_factors():
    one = layer()
    mix = batch(4, 4, seed=9)
    other = LoRALayer.from_factors(one.matrix_a @ mix, np.linalg.solve(mix, one.matrix_b), one.alpha)
    for name, array in canonicalize(one).named_parameters().items():
        assert close(canonicalize(other).named_parameters()[name], array, tolerance=1e-10)


def test_slices_are_best_approximations():
    tidy = canonicalize(layer(scaling="rslora"))
    for rank in range(1, 5):
        assert close(tidy.merge_weights(rank=rank), dense_best(tidy.merge_weights(), rank))


@pytest.mark.parametrize("kind", BRANCHES)
def test_adapters_keep_their_output(kind):
    one, x = adapter(kind), batch(6, IN)
    if isinstance(one, DyLoRAAdapter):
        one.current_deployment_rank = 4
    assert close(canonicalize(one).predict(x), one.predict(x))


# ---------------------------------------------------------------- combine


@given(layers(input_size=6, output_size=4), layers(input_size=6, output_size=4), st.floats(-2, 2), st.floats(-2, 2))
def test_the_sum_is_exact(one, two, first, second):
    combined = combine([one, two], [first, second])
    dense = first * one.merge_weights() + second * two.merge_weights()
    assert combined.result.rank == min(one.rank + two.rank, 4)
    scale = sum(abs(part.scaling) * np.linalg.norm(part.matrix_a) * np.linalg.norm(part.matrix_b) for part in (one, two))
    assert close(combined.result.merge_weights(), dense, 4 * scale)
    assert combined.error == {"": 0.0}


def test_a_sum_within_the_sizes_is_a_concatenation():
    one, two = layer(rank=2, alpha=3.0), layer(rank=3, alpha=2.0, seed=5)
    result = combine([one, two], [2.0, -1.0]).result
    assert result.scaling == 1
    assert np.array_equal(result.matrix_a, np.hstack([3.0 * one.matrix_a, -1.0 * (2 / 3) * two.matrix_a]))
    assert np.array_equal(result.matrix_b, np.vstack([one.matrix_b, two.matrix_b]))


def test_weights_default_to_1():
    subjects = [layer(rank=1), layer(rank=2, seed=4)]
    assert np.array_equal(combine(subjects).result.merge_weights(), combine(subjects, [1, 1]).result.merge_weights())


def test_one_layer_with_weight_1_keeps_its_function():
    one = layer()
    assert close(combine([one], [1.0]).result.merge_weights(), one.merge_weights(), tolerance=1e-15)


def test_a_layer_minus_itself_is_zero():
    one = layer(rank=2)
    result = combine([one, one], [1.0, -1.0]).result
    assert close(result.merge_weights(), np.zeros((IN, OUT)), one.merge_weights())


@given(layers(input_size=6, output_size=4), layers(input_size=6, output_size=4), st.integers(1, 9))
def test_the_error_agrees_with_the_dense_sum(one, two, rank):
    combined = combine([one, two], rank=rank)
    dense = one.merge_weights() + two.merge_weights()
    scale = sum(part.scaling * np.linalg.norm(part.matrix_a) * np.linalg.norm(part.matrix_b) for part in (one, two))
    assert combined.result.rank == min(rank, one.rank + two.rank, 4)
    error = np.linalg.norm(dense - combined.result.merge_weights())
    assert combined.error[""] == pytest.approx(error, abs=TOLERANCE * scale)
    best = np.linalg.norm(np.linalg.svd(dense, compute_uv=False)[rank:])
    assert combined.error[""] == pytest.approx(best, abs=TOLERANCE * scale)


def test_sets_are_combined_path_by_path():
    both, one = layer(rank=1), layer(rank=1, seed=2)
    result, error = combine([AdapterWeights({"a": both}), AdapterWeights({"b": one, "a": one})], [2.0, 3.0])
    assert list(result.layers) == ["a", "b"]
    assert close(result.delta("a"), 2 * both.merge_weights() + 3 * one.merge_weights())
    assert close(result.delta("b"), 3 * one.merge_weights())
    assert error == {"a": 0.0, "b": 0.0}


def test_each_path_has_a_separate_error():
    sets = [AdapterWeights({"a": layer(rank=3, seed=seed)} | ({"b": layer(rank=1)} if seed else {})) for seed in (0, 5)]
    error = combine(sets, rank=1).error
    assert error["a"] > 1
    assert error["b"] == 0


def sets_of(*layers):
    return [AdapterWeights({"a": one}) for one in layers]


DORA = AdapterWeights({"a": LoRALayer(IN, OUT, 1)}, {"a": np.ones(OUT)})
BAD_SUMS = {
    "none": ([], {}, "at least one layer"),
    "too few weights": ([layer(), layer()], {"weights": [1.0]}, "one element for each of 2 subjects, got 1"),
    "an infinite weight": ([layer()], {"weights": [np.inf]}, "each of weights must be finite"),
    "a weight as text": ([layer()], {"weights": ["1"]}, "each of weights must be a real number"),
    "a rank of 0": ([layer()], {"rank": 0}, "rank must be at least 1"),
    "different input sizes": (
        [layer(), layer(input_size=6)],
        {},
        "all layers must have the same sizes, got 7 -> 5 and 6 -> 5",
    ),
    "different output sizes": (
        [layer(), layer(output_size=6)],
        {},
        "all layers must have the same sizes, got 7 -> 5 and 7 -> 6",
    ),
    "different sizes at a path": (
        sets_of(layer(), layer(6)),
        {},
        "a: all layers must have the same sizes, got 7 -> 5 and 6 -> 5",
    ),
    "a mixture": ([layer(), *sets_of(layer())], {}, "must be all LoRALayer or all AdapterWeights"),
    "unsupported objects": ([adapter("standard")], {}, "must be all LoRALayer or all AdapterWeights"),
}


@pytest.mark.parametrize("case", BAD_SUMS)
def test_an_invalid_sum_is_rejected(case):
    subjects, options, message = BAD_SUMS[case]
    with pytest.raises(ArgumentError, match=message):
        combine(subjects, **options)


@pytest.mark.parametrize("sets", [[DORA], [*sets_of(layer()), DORA], [DORA, *sets_of(layer())]])
def test_dora_cannot_be_summed(sets):
    with pytest.raises(NotSupportedError, match="'a' is adapted by DoRA"):
        combine(sets)


# ---------------------------------------------------------------- all operations

SURGERIES = {
    "truncate": lambda subject: truncate(subject, rank=2),
    "energy": lambda subject: truncate(subject, energy=0.5),
    "grow": lambda subject: grow(subject, 5, rng=0),
    "canonicalize": canonicalize,
}


@pytest.mark.parametrize("surgery", SURGERIES)
class TestEverySurgery:
    @pytest.mark.parametrize("kind", ["standard", "dora", "dylora", "multilora"])
    def test_leaves_adapters_unchanged(self, surgery, kind):
        one = adapter(kind)
        one.forward(batch(3, IN))
        one.backward(batch(3, OUT))
        before = snapshot(one)
        SURGERIES[surgery](one)
        assert_untouched(one, before)

    def test_leaves_layers_unchanged(self, surgery):
        one = layer(rank=3)
        before = snapshot(one)
        SURGERIES[surgery](one)
        assert_untouched(one, before)

    def test_shares_no_memory(self, surgery):
        one = layer(rank=3)
        new = SURGERIES[surgery](one)
        for array in new.named_parameters().values():
            assert not any(np.shares_memory(array, old) for old in one.named_parameters().values())

    @pytest.mark.parametrize("build", [lambda: layer(rank=3, dtype=np.float32), lambda: layer(alpha=0.0, dtype=np.float32)])
    def test_float32_stays_float32(self, surgery, build):
        arrays = SURGERIES[surgery](build()).named_parameters()
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}

    def test_changes_weights_in_the_same_way_as_layers(self, surgery):
        weights = extract(adapter("dylora"))
        changed = SURGERIES[surgery](weights)
        wanted = SURGERIES[surgery](weights.layers[""])
        assert bits(changed.layers[""].named_parameters()) == bits(wanted.named_parameters())
        assert not changed.nested  # its active ranks referred to the old components

    def test_keeps_magnitudes(self, surgery):
        weights = extract(adapter("dora"))
        assert SURGERIES[surgery](weights).magnitudes is weights.magnitudes

    def test_rejects_vera(self, surgery):
        with pytest.raises(NotSupportedError, match="not a pair of trained factors"):
            SURGERIES[surgery](VeRAAdapter(DenseLayer(IN, OUT), 2))

    def test_rejects_other_objects(self, surgery):
        with pytest.raises(ArgumentError, match="subject must be a LoRALayer, an adapter or AdapterWeights"):
            SURGERIES[surgery](DenseLayer(IN, OUT))


def test_combining_leaves_the_layers_unchanged():
    one = layer()
    before = snapshot(one)
    combine([one, one], [2.0, 3.0], rank=2)
    assert_untouched(one, before)


def test_a_sum_of_float32_is_float32():
    one = layer(rank=1, dtype=np.float32)
    assert combine([one, one], [0.5, 2.0]).result.dtype == np.float32
    assert combine([one, layer(rank=1)]).result.dtype == np.float64


@pytest.mark.parametrize("build", [StandardLoRAAdapter, DoRAAdapter])
def test_surgery_keeps_a_trained_base(build):
    assert not truncate(build(DenseLayer(IN, OUT), 3, freeze_base_layer=False), rank=1).is_base_layer_frozen


def test_a_product_that_overflows_is_rejected_before_it_reaches_lapack():
    layer = LoRALayer.from_factors(np.full((3, 2), 1e300), np.full((2, 4), 1e200))
    with pytest.raises(ArgumentError, match="finite"):
        spectrum(layer)
