"""Combining adapters: PEFT's numbers for every method, and the definitions on small examples."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ArgumentError, LoRALayer, NotSupportedError
from lora_np.factors.combining import METHODS, uses_density
from lora_np.factors.mixing import MIXTURES
from lora_np.factors.weights import AdapterWeights, Rows
from lora_np.io.peft import load_peft, save_peft
from lora_np.io.safetensors import load_safetensors
from lora_np.surgery import combine
from tests.kinds import batch

DATA = Path(__file__).parent / "io" / "combined"
PATHS = {"up": "body.up", "head": "head"}
WEIGHTS = {"positive": [0.7, 1.2, 0.4], "negative": [0.7, -1.2, 0.4]}
DENSITY = 0.6
EXPECTED = load_safetensors(DATA / "expected.safetensors")
EXACT = sorted(name for name in EXPECTED if name.startswith(tuple(WEIGHTS)))
RANDOM = sorted(method for method in METHODS if method.startswith("dare"))


def sources():
    """The adapters that PEFT wrote, in float64."""
    return [widened(load_peft(DATA / name)) for name in ("one", "two", "part")]


def widened(weights):
    return AdapterWeights({path: double(layer) for path, layer in weights.layers.items()})


def double(layer):
    return LoRALayer.from_factors(layer.matrix_a.astype(float), layer.matrix_b.astype(float), layer.alpha)


def layer(rank=2, seed=0, shape=(5, 4), alpha=3.0):
    return LoRALayer.from_factors(batch(shape[0], rank, seed=seed), batch(rank, shape[1], seed=seed + 50), alpha)


def options(method, **more):
    return {"method": method, **({"density": DENSITY} if uses_density(method) else {}), **more}


# ---------------------------------------------------------------- PEFT


@pytest.mark.parametrize("name", EXACT)
def test_every_method_gives_the_numbers_of_peft(name):
    weights, method, signs, path = name.split(".")
    found = combine(sources(), WEIGHTS[weights], **options(method, majority_sign=signs))
    np.testing.assert_allclose(found.result.delta(PATHS[path]).T, EXPECTED[name], atol=2e-6)


def test_every_method_without_random_numbers_is_compared():
    assert {name.split(".")[1] for name in EXACT} | set(RANDOM) == set(METHODS)
    assert len(EXACT) == 2 * (5 + 4) * 2


@pytest.mark.parametrize("method", RANDOM)
def test_the_methods_with_random_numbers_agree_with_peft_in_mean_and_deviation(method):
    random, runs = np.random.default_rng(0), 600
    rank = {"rank": 4} if method.endswith("svd") else {}
    found = [combine(sources(), WEIGHTS["negative"], **options(method, rng=random, **rank)).result for _ in range(runs)]
    for label, path in PATHS.items():
        values = np.stack([one.delta(path).T for one in found])
        mean, deviation = EXPECTED[f"{method}.{label}.mean"], EXPECTED[f"{method}.{label}.deviation"]
        error = deviation * np.sqrt(1 / runs + 1 / 3000)
        assert (np.abs(values.mean(axis=0) - mean) < 5 * error + 1e-6).all()
        np.testing.assert_allclose(values.std(axis=0), deviation, rtol=0.35)


# ---------------------------------------------------------------- definitions


@given(st.sampled_from([name for name in METHODS if uses_density(name)]), st.integers(0, 99))
def test_a_density_of_1_keeps_every_element(method, seed):
    layers = [layer(seed=seed), layer(seed=seed + 1)]
    found = combine(layers, [0.5, -2], method=method, density=1.0, rank=4 if method.endswith("svd") else None, rng=0)
    if "ties" in method:
        elected = method.replace("dare_ties", "ties")
        expected = combine(layers, [0.5, -2], method=elected, density=1.0, rank=4 if method.endswith("svd") else None)
    else:
        expected = combine(layers, [0.5, -2], method="svd" if method.endswith("svd") else "linear", **svd_rank(method))
    np.testing.assert_allclose(found.result.merge_weights(), expected.result.merge_weights(), atol=1e-12)


def svd_rank(method):
    return {"rank": 4} if method.endswith("svd") else {}


@pytest.mark.parametrize(
    ("density", "signs", "expected"),
    [
        (1.0, "total", [(3 + 1) / 2, -3, (0.5 + 4) / 2]),
        (1.0, "frequency", [(3 + 1) / 2, (1 + 1.5) / 2, (0.5 + 4) / 2]),
        (0.67, "total", [(3 + 1) / 2, -3, 4]),
        (0.34, "total", [3, -3, 4]),
    ],
)
def test_ties_on_numbers_worked_out_by_hand(density, signs, expected):
    """Three rows: the middle column has the sum -0.5, but two of three values are positive; 0.67 keeps two of three."""
    rows = np.array([[3, 1, 0.5], [-1, 1.5, 4], [1, -3, -0.5]])
    layers = [LoRALayer.from_factors(np.array([[1.0]]), row[None]) for row in rows]
    found = combine(layers, method="ties_svd", density=density, majority_sign=signs).result.merge_weights()
    np.testing.assert_allclose(found, [expected], atol=1e-12)


def test_a_tie_of_signs_is_positive():
    layers = [LoRALayer.from_factors(np.array([[1.0]]), np.array([[value]])) for value in (-2.0, 2.0)]
    assert combine(layers, method="ties_svd", density=1.0).result.merge_weights() == pytest.approx(2.0)


def test_ties_without_any_element_is_0():
    zero = LoRALayer.from_factors(np.zeros((3, 1)), np.zeros((1, 2)))
    assert not combine([zero, zero], method="ties", density=0.1).result.merge_weights().any()
    assert (
        not combine([layer(1, shape=(2, 1))] * 2, method="ties", density=0.3).result.merge_weights().any()
    )  # keeps 0 of 2


def test_magnitude_prune_keeps_the_largest():
    one = LoRALayer.from_factors(np.array([[1.0], [-5], [2], [-3]]), np.array([[1.0, 0.5]]))
    found = combine([one], method="magnitude_prune", density=0.5).result
    np.testing.assert_array_equal(found.matrix_a, [[0], [-5], [0], [-3]])
    np.testing.assert_array_equal(found.matrix_b, [[1, 0]])


def test_dare_rescales_what_it_keeps():
    one = LoRALayer.from_factors(np.ones((40, 1)), np.ones((1, 50)))
    A = combine([one], method="dare_linear", density=0.25, rng=0).result.matrix_a
    assert set(np.unique(A)) == {0, 4}
    assert 3 <= (A != 0).sum() <= 20


def test_equal_seeds_give_equal_results():
    results = [
        combine([layer()] * 2, method="dare_ties", density=0.5, rng=seed).result.matrix_a.tobytes() for seed in (3, 3, 4)
    ]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_the_distance_from_the_weighted_sum(method):
    layers = [layer(seed=seed) for seed in (0, 1)]
    found = combine(layers, [0.7, -0.2], **options(method, rng=0))
    exact = 0.7 * layers[0].merge_weights() - 0.2 * layers[1].merge_weights()
    assert found.error[""] == pytest.approx(np.linalg.norm(found.result.merge_weights() - exact), abs=1e-12)
    assert (found.error[""] == 0) == (method == "cat")


@pytest.mark.parametrize("method", [name for name in METHODS if name not in MIXTURES])
def test_the_rank_of_the_result(method):
    layers = [layer(1), layer(3)]
    assert combine(layers, **options(method)).result.rank == (4 if method == "cat" else 3)
    assert combine(layers, **options(method, rank=2)).result.rank == 2
    assert combine(layers, **options(method, rank=9)).result.rank == 4


# ---------------------------------------------------------------- weights by pattern, and what is not low-rank


def test_weights_by_pattern():
    one, two = (AdapterWeights({path: layer(seed=seed) for path in ("a.attn.q", "a.mlp.up", "b")}) for seed in (0, 1))
    found = combine([one, two], {"*.attn.*": [1, 0], "*.mlp.*": [0, 2], "*": [1, -1]}).result
    np.testing.assert_allclose(found.delta("a.attn.q"), one.delta("a.attn.q"))
    np.testing.assert_allclose(found.delta("a.mlp.up"), 2 * two.delta("a.mlp.up"))
    np.testing.assert_allclose(found.delta("b"), one.delta("b") - two.delta("b"))
    with pytest.raises(
        ArgumentError, match=re.escape("weights must have a pattern that matches 'b', got '*.attn.*', 'a*'")
    ):
        combine([one, two], {"*.attn.*": [1, 0], "a*": [1, 1]})
    with pytest.raises(ArgumentError, match="weights must have one element for each of 2 subjects, got 1"):
        combine([one, two], {"*": [1]})


def test_whole_tensors_and_rows_are_kept_if_they_agree():
    head, table = {"head.weight": np.ones((2, 3))}, {"embed.weight": Rows(np.array([1]), np.ones((1, 3)))}
    one, two = AdapterWeights({"a": layer()}, whole=head), AdapterWeights({"a": layer()}, whole=head, rows=table)
    found = combine([one, two]).result
    np.testing.assert_array_equal(found.whole["head.weight"], head["head.weight"])
    np.testing.assert_array_equal(found.rows["embed.weight"].values, np.ones((1, 3)))
    three = AdapterWeights({"a": layer()}, whole={"head.weight": np.zeros((2, 3))})
    with pytest.raises(NotSupportedError, match=r"head\.weight is replaced by different tensors"):
        combine([one, three])
    four = AdapterWeights({"a": layer()}, rows={"embed.weight": Rows(np.array([2]), np.ones((1, 3)))})
    with pytest.raises(NotSupportedError, match=r"embed\.weight is replaced by different tensors"):
        combine([two, four])


def test_biases_are_added_with_their_scaling():
    one = AdapterWeights({"a": layer(alpha=6.0)}, biases={"a": np.ones(4)})
    two = AdapterWeights({"a": layer(alpha=1.0), "b": layer()})
    for method in ("cat", "svd"):
        found = combine([one, two], [2, 5], method=method).result
        np.testing.assert_allclose(found.biases["a"] * found.layers["a"].scaling, np.full(4, 2 * 3.0))
        assert set(found.biases) == {"a"}
    with pytest.raises(NotSupportedError, match="'a' has a bias, which only the methods 'cat' and 'svd' combine"):
        combine([one, two], method="linear")


def test_biases_follow_weights_by_pattern():
    one = AdapterWeights({"a": layer(), "b": layer()}, biases={"a": np.ones(4), "b": np.ones(4)})
    found = combine([one, one], {"a": [1, 2], "*": [0, 5]}).result
    for path, total in (("a", 3), ("b", 5)):
        np.testing.assert_allclose(found.biases[path] * found.layers[path].scaling, total * one.layers[path].scaling)


def test_embeddings_stay_embeddings():
    one, two = AdapterWeights({"a": layer()}, embeddings=frozenset({"a"})), AdapterWeights({"a": layer()})
    assert combine([one, one]).result.embeddings == {"a"}
    with pytest.raises(NotSupportedError, match="'a' is an embedding for only some of the adapters"):
        combine([one, two])


def test_convolutions_stay_convolutions():
    one, two = (AdapterWeights({"a": layer()}, kernels={"a": kernel}) for kernel in ((3,), (1, 3)))
    assert combine([one, one]).result.kernels == {"a": (3,)}
    for other in (two, AdapterWeights({"a": layer()})):
        with pytest.raises(NotSupportedError, match="'a' is a convolution of different kernels: "):
            combine([one, other])
    assert combine([one, AdapterWeights({"b": layer()})]).result.kernels == {"a": (3,)}


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"method": "mean"}, "method must be one of 'cat', 'svd', 'linear', "),
        ({"method": "ties"}, "the method 'ties' requires a density"),
        ({"density": 0.5}, "the method 'cat' keeps all elements, so density must be None, got 0.5"),
        ({"method": "ties", "density": 0}, "density must lie in (0, 1], got 0.0"),
        ({"method": "ties", "density": 1.1}, "density must lie in (0, 1], got 1.1"),
        ({"method": "ties", "density": 0.5, "majority_sign": "most"}, "majority_sign must be one of 'total', 'frequency'"),
        ({"method": "linear", "rank": 2}, "rank must be None for the method 'linear', which keeps the rank, got 2"),
        ({"method": "svd", "rank": 0}, "rank must be at least 1, got 0"),
        ({"method": "linear"}, "the method 'linear' requires equal ranks, got [2, 3]"),
    ],
)
def test_invalid_arguments(more, reason):
    with pytest.raises(ArgumentError, match=re.escape(reason)):
        combine([layer(), layer(3)], **more)


def test_updates_that_are_not_finite_are_rejected():
    with np.errstate(all="ignore"), pytest.raises(ArgumentError, match="factors must be finite"):
        combine([LoRALayer.from_factors(np.full((3, 1), 1e300), np.full((1, 3), 1e300))], method="ties_svd", density=0.5)


# ---------------------------------------------------------------- dropout


def with_dropout(dropout, *paths):
    return AdapterWeights({path: LoRALayer(4, 3, 2, dropout=dropout, rng=0) for path in paths})


@pytest.mark.parametrize("method", METHODS)
def test_the_dropout_is_that_of_the_first_adapter_as_in_peft(tmp_path, method):
    first, second = with_dropout(0.25, "a", "b"), with_dropout(0.5, "b", "c")
    density = DENSITY if uses_density(method) else None
    result = combine([first, second], method=method, density=density, rng=0).result
    assert {path: layer.dropout for path, layer in result.layers.items()} == dict.fromkeys("abc", 0.25)
    assert len({layer.dropout_state for layer in result.layers.values()}) == 3
    save_peft(tmp_path / "folder", result)  # which has one dropout for all layers


def test_a_first_adapter_without_layers_has_no_dropout_to_give():
    assert combine([AdapterWeights({}), with_dropout(0.5, "a")]).result.layers["a"].dropout == 0


def test_the_dropout_of_single_layers_is_that_of_the_first():
    first, second = LoRALayer(4, 3, 2, dropout=0.25, rng=0), LoRALayer(4, 3, 2, dropout=0.5, rng=1)
    result = combine([first, second], [1, 2]).result
    assert result.dropout == 0.25
    assert combine([LoRALayer(4, 3, 2), second]).result.dropout == 0
