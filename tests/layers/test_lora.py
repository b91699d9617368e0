"""The low-rank layers by themselves, at every rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import ArgumentError, ArgumentOutOfRangeError, LoRALayer, VeRALayer
from lora_np.run import Run
from lora_np.testing import numerical_gradient
from tests.kinds import batch, randomised
from tests.strategies import seeds, sizes


@pytest.fixture
def worked():
    layer = LoRALayer(3, 2, 2, alpha=4)
    layer.set_parameter("matrix_a", [[1, 0], [0, 1], [1, 1]])
    layer.set_parameter("matrix_b", [[1, 2], [3, 4]])
    return layer


def test_an_example_worked_by_hand(worked):
    # x A = (3, 2), h = 2 x A = (6, 4)
    assert_array_equal(worked.forward([1, 0, 2]), [18, 28])
    # dh = 2 G Bᵀ = (-2, -2)
    assert_array_equal(worked.backward([1, -1]), [-2, -2, -4])
    assert_array_equal(worked.gradients["matrix_a"], [[-2, -2], [0, 0], [-4, -4]])
    assert_array_equal(worked.gradients["matrix_b"], [[6, -6], [4, -4]])
    assert_array_equal(worked.merge_weights(), [[2, 4], [6, 8], [8, 12]])


def test_a_step_of_the_example(worked):
    worked.forward([1, 0, 2])
    worked.backward([1, -1])
    worked.update_parameters(0.5)
    assert_array_equal(worked.get_parameters(), [2, 1, 0, 1, 3, 3, -2, 5, 1, 6])


def test_the_matrices_are_returned_as_copies(worked):
    worked.get_matrix_a()[...] = 0
    worked.get_matrix_b()[...] = 0
    assert_array_equal(worked.matrix_a, [[1, 0], [0, 1], [1, 1]])
    assert_array_equal(worked.matrix_b, [[1, 2], [3, 4]])


def test_there_is_neither_weight_nor_bias(worked):
    assert worked.get_weights() is None
    assert worked.get_biases() is None


@pytest.mark.parametrize("scaling", ["max", "paper", "rslora"])
def test_the_layer_at_a_rank_is_that_rank_of_the_layer(scaling):
    layer = randomised(LoRALayer(4, 3, 3, 2.0, scaling=scaling, dropout=0.5, rng=0))
    for rank in (1, 2, 3):
        part = layer.at_rank(rank)
        assert (part.rank, part.dropout) == (rank, 0.5)
        assert_allclose(part.merge_weights(), layer.merge_weights(rank=rank), rtol=1e-13)


def test_given_factors_have_their_rank_as_alpha():
    layer = LoRALayer.from_factors(batch(4, 2), batch(2, 3))
    assert (layer.alpha, layer.scaling, layer.scaling_rule, layer.dropout) == (2, 1, "max", 0)


@pytest.mark.parametrize(("input_size", "output_size"), [(2**62, 3), (3, 2**62)])
def test_either_factor_may_be_too_large(input_size, output_size):
    with pytest.raises(ArgumentOutOfRangeError, match="too large"):
        LoRALayer(input_size, output_size, 1)


def test_keys_of_masks_fill_their_range_and_no_seed_has_been_drawn():
    keys, counts = zip(*(LoRALayer(1, 1, 1, dropout=0.5, rng=seed).dropout_state for seed in range(32)), strict=True)
    assert 2**61 <= max(keys) < 2**62
    assert set(counts) == {0}


# ---------------------------------------------------------------- any rank, both kinds


@pytest.mark.parametrize("middle", [(), (2,), (2, 1)], ids=str)
@pytest.mark.parametrize("scaling", ["max", "paper", "rslora", "vera"])
def test_each_row_may_have_its_own_rank(scaling, middle):
    if scaling == "vera":
        layer = randomised(VeRALayer(4, 3, 3, 2.0))
    else:
        layer = randomised(LoRALayer(4, 3, 3, 2.0, scaling=scaling))
    ranks, x = [2, 1, 3, 1], batch(4, *middle, 4)
    for rows in ([0, 1, 2, 3], [1, 3], [0]):
        y, _ = layer.apply(x[rows], Run(), rank=np.array(ranks)[rows])
        for i, row in enumerate(rows):
            assert_allclose(y[i], x[row] @ layer.merge_weights(rank=ranks[row]), rtol=1e-11, atol=1e-12)


@st.composite
def ranked_layers(draw):
    """A low-rank layer, one of its ranks, and the first component that trains."""
    input_size, output_size = draw(sizes(smallest=2))
    rank = draw(st.integers(2, min(input_size, output_size)))
    kind = draw(st.sampled_from(["max", "paper", "rslora", "vera"]))
    if kind == "vera":
        layer = VeRALayer(input_size, output_size, rank, 3.0)
    else:
        layer = LoRALayer(input_size, output_size, rank, 3.0, scaling=kind)
    used = draw(st.one_of(st.integers(1, rank - 1), st.integers(1, rank)))
    return randomised(layer, draw(seeds)), used, draw(st.integers(0, used - 1))


@given(ranked_layers())
def test_the_output_at_a_rank_matches_the_merged_weight(case):
    layer, rank, _ = case
    x = batch(4, layer.input_size)
    y, _ = layer.apply(x, Run(), rank=rank)
    assert_allclose(y, x @ layer.merge_weights(rank=rank), rtol=1e-11, atol=1e-12)


@given(ranked_layers())
def test_the_full_rank_is_the_default(case):
    layer, _, _ = case
    x = batch(4, layer.input_size)
    assert_array_equal(layer.apply(x, Run())[0], layer.apply(x, Run(), rank=layer.rank)[0])
    assert_array_equal(layer.merge_weights(), layer.merge_weights(rank=layer.rank))


def trained_parts(layer, first, rank):
    """Where the components from `first` up to `rank` are in the arrays of a layer."""
    components = slice(first, rank)
    if isinstance(layer, LoRALayer):
        return {"matrix_a": (slice(None), components), "matrix_b": (components, slice(None))}
    return {"vector_d": (components,)}


@given(ranked_layers())
def test_gradients_at_a_rank_by_complex_step(case):
    layer, rank, first = case
    x, dy = batch(4, layer.input_size), batch(4, layer.output_size, seed=2)
    _, cache = layer.apply(x, Run(), rank=rank, trained_from=first)
    dx, gradients = layer.vjp(dy, cache)
    parts = trained_parts(layer, first, rank)

    def objective(x):
        return (dy * layer.apply(x, Run(), rank=rank)[0]).sum()

    assert_allclose(dx, numerical_gradient(objective, x), rtol=1e-10, atol=1e-12)
    for name in layer.named_parameters():
        array, part = getattr(layer, name), parts.get(name, ...)

        def objective_of_array(value, name=name):
            setattr(layer, name, value)
            return objective(x)

        true = numerical_gradient(objective_of_array, array)
        setattr(layer, name, array)
        expected = np.zeros_like(true)
        expected[part] = true[part]
        assert_allclose(gradients[name], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer", [LoRALayer(4, 3, 2), VeRALayer(4, 3, 2)], ids=["lora", "vera"])
@pytest.mark.parametrize("rank", [0, 3, -1, 1.0, True], ids=repr)
def test_there_is_no_merged_weight_beyond_the_rank(layer, rank):
    with pytest.raises(ArgumentError, match=rf"rank must .*{rank}"):
        layer.merge_weights(rank=rank)


def test_the_gradient_of_the_merged_weight():
    layer = randomised(LoRALayer(5, 4, 3, 2.0))
    dW = batch(5, 4)
    found = layer.merge_weights_vjp(dW)
    for name in ("matrix_a", "matrix_b"):
        array = getattr(layer, name)

        def objective(value, name=name):
            setattr(layer, name, value)
            return (dW * layer.merge_weights()).sum()

        expected = numerical_gradient(objective, array)
        setattr(layer, name, array)
        assert_allclose(found[name], expected, rtol=1e-11)


# ---------------------------------------------------------------- scaling and alpha


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("max", [1.5, 1.5, 1.5, 1.5]), ("paper", [6, 3, 2, 1.5]), ("rslora", [6, 6 / 2**0.5, 6 / 3**0.5, 3])],
)
def test_scaling_at_every_rank(scaling, expected):
    layer = LoRALayer(5, 4, 4, 6.0, scaling=scaling)
    assert [layer.scaling_at(rank) for rank in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-15)
    assert layer.scaling == layer.scaling_at(4)


@pytest.mark.parametrize(("alpha", "resolved"), [(-1, 2), (-0.001, 2), (0, 0), (3, 3), (np.float32(0.5), 0.5)])
def test_alpha(alpha, resolved):
    layer = LoRALayer(4, 3, 2, alpha)
    assert layer.alpha == resolved
    assert type(layer.alpha) is float
    assert layer.scaling == resolved / 2


def test_alpha_zero_gives_zeros():
    layer = randomised(LoRALayer(4, 3, 2, 0))
    assert not layer.forward(batch(5, 4)).any()
    assert not layer.backward(batch(5, 3)).any()
    assert not layer.get_parameter_gradients().any()
    assert not layer.merge_weights().any()


# ---------------------------------------------------------------- construction


def test_the_initial_matrices():
    layer = LoRALayer(500, 300, 16, rng=0)
    assert layer.matrix_a.mean() == pytest.approx(0, abs=0.01)
    assert layer.matrix_a.std() == pytest.approx(1 / 4, rel=0.03)
    assert not layer.matrix_b.any()
    assert layer.parameter_count == 500 * 16 + 16 * 300


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_rank_may_be_as_large_as_the_smaller_size(rank):
    assert LoRALayer(5, 3, rank).rank == LoRALayer(3, 5, rank).rank == rank


BAD = {
    "rank-too-large": ({"rank": 4}, ArgumentOutOfRangeError, r"^rank must be at most min\(.*\) = 3, got 4"),
    "rank-zero": ({"rank": 0}, ArgumentOutOfRangeError, "rank must be at least 1, got 0"),
    "rank-fraction": ({"rank": 1.5}, ArgumentError, r"rank must be an integer, got 1\.5"),
    "no-inputs": ({"input_size": 0}, ArgumentOutOfRangeError, "input_size must be at least 1, got 0"),
    "no-outputs": ({"output_size": -2}, ArgumentOutOfRangeError, "output_size must be at least 1, got -2"),
    "huge": ({"input_size": 2**62, "output_size": 2**62}, ArgumentOutOfRangeError, f"{2**62}.* too large"),
    "wide": ({"output_size": 2**62}, ArgumentOutOfRangeError, f"output_size.*{2**62}.* too large"),
    "alpha-nan": ({"alpha": np.nan}, ArgumentOutOfRangeError, "alpha must be finite, got nan"),
    "scaling": ({"scaling": "most"}, ArgumentError, "scaling must be one of .*'most'"),
    "dtype": ({"dtype": np.float16}, ArgumentError, "dtype must be float32 or float64, got .*float16"),
    "rng": ({"rng": "x"}, ArgumentError, "rng must be a seed.*'x'"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        LoRALayer(**({"input_size": 5, "output_size": 3, "rank": 2} | changes))


def test_a_layer_from_given_factors():
    A, B = batch(3, 4), batch(4, 2)
    layer = LoRALayer.from_factors(A, B, 2.0)
    assert (layer.input_size, layer.output_size, layer.rank, layer.scaling) == (3, 2, 4, 0.5)
    assert_allclose(layer.predict(batch(5, 3)), 0.5 * batch(5, 3) @ A @ B, rtol=1e-12)
    A[...] = 0
    assert layer.matrix_a.all()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(np.float32, np.float32, np.float32), (np.float32, np.float64, np.float64), (np.int8, np.int8, np.float64)],
)
def test_the_dtype_of_given_factors(a, b, expected):
    layer = LoRALayer.from_factors(np.ones((3, 2), a), np.ones((2, 4), b))
    assert layer.dtype == layer.matrix_a.dtype == layer.matrix_b.dtype == expected


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((3, 2)), np.ones((3, 2))),
        (np.ones(3), np.ones((3, 2))),
        (np.ones((3, 2)), np.ones(2)),
        (np.ones((3, 2), complex), np.ones((2, 2))),
        (np.ones((3, 2)), None),
        (np.ones((3, 0)), np.ones((0, 2))),
    ],
)
def test_factors_that_do_not_fit_are_refused(a, b):
    with pytest.raises(ArgumentError):
        LoRALayer.from_factors(a, b)


# ---------------------------------------------------------------- description


def test_flops_by_hand():
    # x A: 2·3·2, scaling: 2, h B: 2·2·4
    assert LoRALayer(3, 4, 2).estimate_flops() == 12 + 2 + 16


def test_memory_by_hand():
    # x 3, h 2, y 4
    assert LoRALayer(3, 4, 2).estimate_activation_memory() == 8 * 9
    assert LoRALayer(3, 4, 2, dtype=np.float32).estimate_activation_memory() == 4 * 9


def test_repr():
    assert repr(LoRALayer(3, 4, 2, 3.0)) == "LoRALayer(3 -> 4, rank=2, alpha=3, scaling=1.5, 14 parameters)"
