"""Truncation by a ratio, by a budget of parameters, and for given inputs, against brute force and dense decompositions."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ArgumentError, DenseLayer, DoRAAdapter, LoRALayer, MultiLoRAAdapter, NotSupportedError
from lora_np.factors.budget import best_ranks
from lora_np.factors.weights import AdapterWeights
from lora_np.functions.product_svd import product_svd
from lora_np.surgery import grow, spectrum, truncate
from tests.kinds import batch, randomised
from tests.test_surgery import IN, OUT, close, layer, layers


def energy(spectra, ranks):
    return sum(float((sigma[:rank] ** 2).sum()) for sigma, rank in zip(spectra, ranks, strict=True))


# ---------------------------------------------------------------- a budget for all layers


def problem(seed):
    """Spectra and costs of a few layers, every third with ties and zeros, and a budget that suffices for rank 1 of each."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 5))
    spectra = [np.sort(random.exponential(size=random.integers(1, 7)))[::-1] * random.exponential() for _ in range(count)]
    if seed % 3 == 0:
        spectra = [np.round(2 * sigma) for sigma in spectra]
    costs = random.integers(2, 12, size=count).tolist()
    return spectra, costs, sum(costs) + int(random.integers(0, 80))


@pytest.mark.parametrize("seeds", [range(0, 100), range(100, 200), range(200, 300)], ids=str)
def test_the_ranks_for_a_budget_are_as_good_as_the_best_of_all(seeds):
    for seed in seeds:
        spectra, costs, budget = problem(seed)
        ranks = best_ranks(spectra, costs, budget)
        assert all(1 <= rank <= len(sigma) for rank, sigma in zip(ranks, spectra, strict=True))
        assert np.dot(ranks, costs) <= budget
        every = np.array(list(itertools.product(*(range(1, len(sigma) + 1) for sigma in spectra))))
        worth = sum(np.cumsum(sigma**2)[every[:, number] - 1] for number, sigma in enumerate(spectra))
        best = worth[every @ costs <= budget].max()
        assert energy(spectra, ranks) == pytest.approx(best, rel=1e-12), (spectra, costs, budget)


def test_components_without_effect_are_not_kept():
    assert best_ranks([np.array([2.0, 0.0, 0.0]), np.zeros(2)], [2, 3], 99) == [1, 1]


def test_taking_components_by_their_ratio_would_not_be_optimal():
    spectra = [np.sqrt([9.0, 6.0]), np.sqrt([9.0, 5.0, 5.0])]
    assert best_ranks(spectra, [6, 5], 11 + 10) == [1, 3]  # 10 for 10 instead of 6 for 6


def test_a_large_model_takes_no_time():
    random = np.random.default_rng(0)
    costs = [8192] * 128 + [15104] * 96 + [4098]
    spectra = [np.sort(random.exponential(size=64))[::-1] * random.lognormal() for _ in costs]
    budget = sum(costs) * 20
    ranks = best_ranks(spectra, costs, budget)
    assert 0 <= budget - np.dot(ranks, costs) < 4098
    assert energy(spectra, ranks) > energy(spectra, [20] * len(costs))


def test_a_budget_for_weights_and_an_upper_bound():
    strong, weak = layer(5, 5, 4, seed=1), layer(5, 5, 4, seed=2)
    strong.matrix_b *= 100
    weights = AdapterWeights({"strong": strong, "weak": weak})
    cut = truncate(weights, parameters=50)
    assert {path: one.rank for path, one in cut.layers.items()} == {"strong": 4, "weak": 1}
    assert cut.parameter_count == 50
    bounded = truncate(weights, parameters=50, max_rank=2)
    assert {path: one.rank for path, one in bounded.layers.items()} == {"strong": 2, "weak": 2}


def test_the_branches_of_an_adapter_share_a_budget():
    multi = MultiLoRAAdapter(DenseLayer(IN, OUT), "a", 3, rng=0)
    multi.add_task("b", 3)
    multi = randomised(multi)
    multi.task_adapters["b"].matrix_b[...] *= 1e-3
    cut = truncate(multi, parameters=4 * (IN + OUT))
    assert [cut.task_adapters[task].rank for task in "ab"] == [3, 1]
    for task in "ab":
        before, after = multi.task_adapters[task].merge_weights(), cut.task_adapters[task].merge_weights()
        rank = cut.task_adapters[task].rank
        assert np.linalg.norm(before - after) == pytest.approx(np.linalg.norm(spectrum(multi.task_adapters[task])[rank:]))


# ---------------------------------------------------------------- a ratio


@pytest.mark.parametrize(("ratio", "rank"), [(1, 1), (1.9, 1), (2, 2), (39, 2), (40, 3), (1e9, 3)])
def test_a_ratio_of_known_components(ratio, rank):
    one = LoRALayer.from_factors(np.eye(5, 4), np.diag([4.0, 2.0, 0.1, 0.0]))
    assert truncate(one, ratio=ratio).rank == rank
    assert truncate(one, ratio=ratio, max_rank=2).rank == min(rank, 2)


def test_a_ratio_of_zeros():
    assert truncate(LoRALayer(4, 3, 2), ratio=5).rank == 1


# ---------------------------------------------------------------- for given inputs


@given(layers(), st.integers(1, 8), st.integers(1, 9), st.integers(0, 99))
def test_the_outputs_on_the_inputs_are_approximated_best(one, rank, rows, seed):
    X = batch(rows, one.input_size, seed=seed) * 3.0 ** -np.arange(one.input_size)
    outputs = X @ one.merge_weights()
    cut = truncate(one, rank=rank, inputs=X)
    assert cut.rank <= min(rank, one.rank)
    sigma = np.linalg.svd(outputs, compute_uv=False)
    scale = abs(one.scaling) * np.linalg.norm(X) * np.linalg.norm(one.matrix_a) * np.linalg.norm(one.matrix_b)
    error = np.linalg.norm(outputs - X @ cut.merge_weights())
    assert error == pytest.approx(np.linalg.norm(sigma[rank:]), abs=1e-12 * scale)


def test_inputs_may_have_any_leading_axes_and_their_own_energy():
    one = LoRALayer.from_factors(np.eye(4, 3), np.diag([4.0, 2.0, 0.1]))
    X = np.zeros((2, 3, 4))
    X[..., 2] = 1
    cut = truncate(one, energy=0.999, inputs=X)
    assert cut.rank == 1
    assert close(X @ cut.merge_weights(), X @ one.merge_weights())
    assert truncate(one, rank=2, inputs=X.reshape(6, 4)).rank == 2


def test_components_are_shared_equally():
    cut = truncate(layer(), rank=3, inputs=batch(9, IN))
    np.testing.assert_allclose(
        cut.scaling * np.linalg.norm(cut.matrix_a, axis=0), cut.scaling * np.linalg.norm(cut.matrix_b, axis=1)
    )


def test_inputs_by_path():
    weights = AdapterWeights({"a": layer(seed=1), "b": layer(6, 3, 3, seed=2)})
    inputs = {"a": batch(9, IN), "b": batch(8, 6), "other": batch(2, 2)}
    cut = truncate(weights, rank=2, inputs=inputs)
    for path, one in weights.layers.items():
        assert close(cut.delta(path), truncate(one, rank=2, inputs=inputs[path]).merge_weights())


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (batch(4, IN + 1), f"inputs must have shape (..., {IN}), got (4, {IN + 1})"),
        (np.full((2, IN), np.inf), "inputs must have at least one row, and be finite"),
        (np.empty((0, IN)), "inputs must have at least one row, and be finite"),
        ({"a": batch(4, IN)}, "inputs must be a mapping from paths to arrays if, and only if, subject is AdapterWeights"),
    ],
)
def test_inputs_that_do_not_fit(inputs, reason):
    with pytest.raises(ArgumentError, match=re.escape(reason)):
        truncate(layer(), rank=1, inputs=inputs)


def test_inputs_that_do_not_fit_weights():
    weights = AdapterWeights({"a": layer()})
    with pytest.raises(ArgumentError, match="inputs must be a mapping"):
        truncate(weights, rank=1, inputs=batch(4, IN))
    with pytest.raises(ArgumentError, match="inputs must have an array for each layer, but 'a' is missing"):
        truncate(weights, rank=1, inputs={})
    with pytest.raises(NotSupportedError, match="inputs must be None for DoRA"):
        truncate(AdapterWeights({"a": layer()}, {"a": np.ones(OUT)}), rank=1, inputs={"a": batch(4, IN)})
    with pytest.raises(NotSupportedError, match="inputs must be None for DoRA"):
        truncate(randomised(DoRAAdapter(DenseLayer(IN, OUT), 3)), rank=1, inputs=batch(4, IN))


# ---------------------------------------------------------------- all goals


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "exactly one of rank, energy, ratio, parameters must be given, got rank=None, energy=None, "),
        ({"ratio": 2, "parameters": 9}, "exactly one of rank, energy, ratio, parameters must be given"),
        ({"ratio": 0.9}, "ratio must be at least 1, got 0.9"),
        ({"parameters": 11}, "parameters must be at least 12, for rank 1 of every layer, got 11"),
        ({"parameters": 1.5}, "parameters must be an integer, got 1.5"),
        ({"energy": 0.5, "max_rank": 0}, "max_rank must be at least 1, got 0"),
        ({"rank": 1, "max_rank": 2}, "max_rank must be None if a rank is given, got 2"),
    ],
)
def test_invalid_goals(options, reason):
    with pytest.raises(ArgumentError, match=re.escape(reason)):
        truncate(layer(), **options)


def test_the_decomposition_of_a_product_of_factors():
    A, B = batch(6, 2, seed=0), batch(2, 5, seed=1)
    for scaling, (U, sigma, Vt) in ((1, product_svd(A, B)), (-3, product_svd(A, B, -3))):
        np.testing.assert_allclose(U * sigma @ Vt, scaling * A @ B, atol=1e-13)
        np.testing.assert_allclose(sigma, np.linalg.svd(scaling * A @ B)[1][:2])


@pytest.mark.parametrize("change", [lambda weights: truncate(weights, rank=1), lambda weights: grow(weights, 5, rng=0)])
def test_biases_keep_their_effect_if_the_scaling_changes(change):
    alphas = np.arange(20) / 7  # 0 changes to 1, and others are rounded
    each = {str(alpha): LoRALayer(IN, OUT, 3, alpha, scaling="rslora", rng=0) for alpha in alphas}
    weights = AdapterWeights(each, biases=dict.fromkeys(each, np.ones(OUT)))
    changed = change(weights)
    for path in weights.layers:
        before = weights.layers[path].scaling * weights.biases[path]
        np.testing.assert_allclose(changed.layers[path].scaling * changed.biases[path], before)
