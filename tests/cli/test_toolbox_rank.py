"""``truncate`` and ``combine``: best approximations, exact sums, and exact errors."""

import json
import os

import numpy as np
import pytest

from lora_np import LoRALayer, save_layer, surgery
from lora_np.cli import combine, truncate
from lora_np.factors.combining import METHODS, uses_density
from lora_np.factors.combining import combine as combine_weights
from lora_np.factors.surgery import spectrum
from lora_np.factors.weights import AdapterWeights
from lora_np.io.peft import load_peft
from tests.cli.toolbox import dora, dylora, multilora, tree, weights, write_kohya, write_mlx, write_peft


def test_truncate_to_a_rank(tmp_path, run, run_json):
    source = weights(rank=4)
    adapter = write_kohya(tmp_path / "a.safetensors", source)
    out = run("truncate", adapter, "-o", tmp_path / "small", "--rank", 2)
    small = load_peft(tmp_path / "small")
    for name, layer in small.layers.items():
        assert layer.rank == 2
        u, sigma, vt = np.linalg.svd(source.delta(name), full_matrices=False)
        np.testing.assert_allclose(small.delta(name), (u[:, :2] * sigma[:2]) @ vt[:2], atol=1e-12)
    assert out.splitlines()[0].split() == ["layer", "rank", "before", "rank", "after", "energy", "kept"]
    assert out.splitlines()[2].split()[:3] == ["first", "4", "2"]
    assert out.endswith(f"{tmp_path / 'small'}: 2 layers, 80 -> 40 parameters\n")
    report = run_json("truncate", adapter, "-o", tmp_path / "small", "--rank", 2, "--force")
    sigma = spectrum(source.layers["first"])
    assert report["layers"][0] == {
        "path": "first",
        "rank_before": 4,
        "rank": 2,
        "retained_energy": pytest.approx((sigma[:2] ** 2).sum() / (sigma**2).sum()),
    }
    assert (report["parameters_before"], report["parameters"]) == (80, 40)


def test_truncate_to_an_energy(tmp_path, run_json):
    source = weights(rank=4)
    report = run_json("truncate", write_peft(tmp_path / "a", source), "-o", tmp_path / "small", "--energy", 0.9)
    for layer in report["layers"]:
        sigma = spectrum(source.layers[layer["path"]])
        energies = np.cumsum(sigma**2) / (sigma**2).sum()
        assert layer["rank"] == 1 + np.flatnonzero(energies >= 0.9)[0]
        assert layer["retained_energy"] >= 0.9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ratio", 2], {"ratio": 2}),
        (["--ratio", 2, "--max-rank", 1], {"ratio": 2, "max_rank": 1}),
        (["--energy", 0.99, "--max-rank", 2], {"energy": 0.99, "max_rank": 2}),
        (["--parameters", 50], {"parameters": 50}),
    ],
)
def test_truncate_by_the_other_options(tmp_path, run_json, options, expected):
    source = weights(rank=4)
    report = run_json("truncate", write_peft(tmp_path / "a", source), "-o", tmp_path / "small", *options)
    small = surgery.truncate(source, **expected)
    assert {layer["path"]: layer["rank"] for layer in report["layers"]} == {p: one.rank for p, one in small.layers.items()}
    np.testing.assert_allclose(load_peft(tmp_path / "small").delta("first"), small.delta("first"), atol=1e-12)
    assert report["parameters"] == small.parameter_count


def test_truncate_with_too_few_parameters(tmp_path, fail):
    adapter = write_peft(tmp_path / "a")
    message = fail("truncate", adapter, "-o", tmp_path / "small", "--parameters", 19)
    assert message == f"{adapter}: parameters must be at least 20, for rank 1 of every layer, got 19"


def test_truncate_keeps_the_configuration_the_dtype_and_lower_ranks(tmp_path, run):
    adapter = write_peft(tmp_path / "a", weights(dtype=np.float32), base_model_name_or_path="base", fan_in_fan_out=True)
    run("truncate", adapter, "-o", tmp_path / "small", "--rank", 8)
    small = load_peft(tmp_path / "small")
    assert small.config["base_model_name_or_path"] == "base"
    assert small.config["fan_in_fan_out"] is True
    assert {layer.dtype for layer in small.layers.values()} == {np.dtype(np.float32)}
    for name in small.layers:
        assert small.layers[name].rank == 3
        np.testing.assert_allclose(small.delta(name), weights().delta(name), rtol=1e-4, atol=1e-5)


def test_truncate_makes_dylora_plain(tmp_path, run):
    run("truncate", write_peft(tmp_path / "a", dylora()), "-o", tmp_path / "small", "--rank", 3)
    assert not load_peft(tmp_path / "small").nested


def test_truncate_keeps_the_magnitudes_of_dora(tmp_path, run):
    run("truncate", write_peft(tmp_path / "a", dora()), "-o", tmp_path / "small", "--rank", 1)
    np.testing.assert_array_equal(load_peft(tmp_path / "small").magnitudes["first"], dora()["first"].magnitude)


def test_100_percent_means_all_of_the_energy(tmp_path, run):
    layer = LoRALayer.from_factors(np.diag([1.0, 1e-4])[:, :2], np.eye(2))
    adapter = write_peft(tmp_path / "a", AdapterWeights({"first": layer}))
    assert "> 99.99 %" in run("truncate", adapter, "-o", tmp_path / "small", "--rank", 1)
    assert " 100.00 %" in run("truncate", adapter, "-o", tmp_path / "same", "--rank", 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "one of the arguments --rank --energy --ratio --parameters is required"),
        (["--rank", "2", "--energy", "0.5"], "not allowed with argument"),
        (["--rank", "0"], "argument --rank: must be a positive integer, got '0'"),
        (["--rank", "²"], "argument --rank: must be a positive integer, got '²'"),
        (["--rank", "9" * 5000], "argument --rank: must be a positive integer, got '999"),
        (["--energy", "1.5"], "argument --energy: must lie in (0, 1], got '1.5'"),
        (["--energy", "0"], "argument --energy: must lie in (0, 1], got '0'"),
        (["--energy", "much"], "argument --energy: must be a finite number, got 'much'"),
        (["--ratio", "0.5"], "argument --ratio: must be at least 1, got '0.5'"),
        (["--parameters", "0"], "argument --parameters: must be a positive integer, got '0'"),
        (["--rank", "2", "--max-rank", "3"], "--max-rank is for --energy, --ratio and --parameters, not for --rank"),
        (["--energy", "nan"], "argument --energy: must be a finite number, got 'nan'"),
    ],
)
def test_truncate_with_invalid_arguments(misuse, options, reason):
    assert reason in misuse("truncate", "adapter", "-o", "small", *options)


# ---------------------------------------------------------------- combine


def test_combine_exactly(tmp_path, run, run_json):
    paths = [write_peft(tmp_path / "a", weights(1, 2)), write_mlx(tmp_path / "b", weights(2, 1, ("first",)))]
    out = run("combine", *paths, "-o", tmp_path / "sum", "--weights", 0.5, -2)
    total = load_peft(tmp_path / "sum")
    expected = 0.5 * weights(1, 2).delta("first") - 2 * weights(2, 1).delta("first")
    np.testing.assert_allclose(total.delta("first"), expected, atol=1e-12)
    np.testing.assert_allclose(total.delta("second"), 0.5 * weights(1, 2).delta("second"), atol=1e-12)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["layer", "ranks", "rank", "|sum|", "|difference|", "relative"]
    assert lines[2][:5] == ["first", "2", "+", "1", "3"]
    assert lines[3][:5] == ["second", "2", "+", "0", "2"]
    assert lines[2][-2:] == ["0", "exact"]
    report = run_json("combine", *paths, "-o", tmp_path / "other")
    assert report["weights"] is None
    assert report["layers"][0]["ranks"] == [2, 1]
    dense = weights(1, 2).delta("first") + weights(2, 1).delta("first")
    assert report["layers"][0]["norm"] == pytest.approx(np.linalg.norm(dense))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_combine_reports_the_exact_error_of_a_rank(tmp_path, run, run_json, dtype):
    sources = [weights(seed, dtype=dtype) for seed in (1, 2)]
    paths = [write_peft(tmp_path / str(number), source) for number, source in enumerate(sources)]
    report = run_json("combine", *paths, "-o", tmp_path / "sum", "--rank", 2)
    for layer in report["layers"]:
        dense = sum(source.delta(layer["path"]).astype(np.float64) for source in sources)
        sigma = np.linalg.svd(dense, compute_uv=False)
        assert layer["rank"] == 2
        assert layer["error"] == pytest.approx(np.linalg.norm(sigma[2:]), rel=1e-5)
        assert layer["norm"] == pytest.approx(np.linalg.norm(dense), rel=1e-5)
        assert layer["relative"] == pytest.approx(layer["error"] / layer["norm"], rel=1e-5)
    assert load_peft(tmp_path / "sum").layers["first"].dtype == dtype
    assert "e-01" in run("combine", *paths, "-o", tmp_path / "sum", "--rank", 2, "--force")


def test_combine_to_zero(tmp_path, run_json):
    adapter = write_peft(tmp_path / "a")
    report = run_json("combine", adapter, adapter, "-o", tmp_path / "sum", "--weights", "0", "0", "--rank", "1")
    assert {layer["relative"] for layer in report["layers"]} == {0}


def test_combine_one_task(tmp_path, run, fail):
    save_layer(multilora(), tmp_path / "m.npz")
    assert "choose one with --task" in fail("combine", tmp_path / "m.npz", "-o", tmp_path / "sum")
    run("combine", tmp_path / "m.npz", "-o", tmp_path / "sum", "--task", "german")
    assert load_peft(tmp_path / "sum").layers["first"].rank == 3


def test_combine_rejects_dora_and_different_sizes(tmp_path, fail):
    plain, special = write_peft(tmp_path / "a"), write_peft(tmp_path / "b", dora())
    message = fail("combine", plain, special, "-o", tmp_path / "sum")
    assert message == f"{special}: first is adapted by DoRA, which does not add a matrix to the weight"
    other = write_peft(tmp_path / "c", AdapterWeights({"first": LoRALayer(6, 9, 1)}))
    message = fail("combine", plain, other, "-o", tmp_path / "sum")
    assert message == f"{plain} + {other}: first: all layers must have the same sizes, got 6 -> 5 and 6 -> 9"


def test_combine_with_invalid_arguments(misuse):
    message = misuse("combine", "a", "b", "-o", "sum", "--weights", "1")
    assert message == "lora-np combine: error: --weights must have one value per adapter (2), got 1"
    assert "argument --weights: must be a finite number, got 'a'" in misuse("combine", "-o", "sum", "--weights", "1", "a")


@pytest.mark.parametrize("method", METHODS)
def test_combine_by_every_method(tmp_path, run_json, method):
    paths = [write_peft(tmp_path / str(seed), weights(seed)) for seed in (1, 2)]
    density = ["--density", 0.5] if uses_density(method) else []
    report = run_json("combine", *paths, "-o", tmp_path / "out", "--method", method, "--seed", 5, *density)
    found = combine_weights([weights(1), weights(2)], method=method, density=0.5 if density else None, rng=5)
    exact = weights(1).delta("first") + weights(2).delta("first")
    np.testing.assert_allclose(load_peft(tmp_path / "out").delta("first"), found.result.delta("first"), atol=1e-12)
    assert report["layers"][0]["norm"] == pytest.approx(np.linalg.norm(exact))
    assert report["layers"][0]["error"] == pytest.approx(np.linalg.norm(found.result.delta("first") - exact), abs=1e-12)
    assert (report["method"], report["density"], report["seed"]) == (method, 0.5 if density else None, 5)


def test_combine_with_weights_by_pattern(tmp_path, run):
    paths = [write_peft(tmp_path / str(seed), weights(seed)) for seed in (1, 2)]
    run("combine", *paths, "-o", tmp_path / "out", "--weights-for", "f*", 2, -1, "--weights-for", "first", 9, 9)
    np.testing.assert_allclose(
        load_peft(tmp_path / "out").delta("first"), 2 * weights(1).delta("first") - weights(2).delta("first"), atol=1e-12
    )
    np.testing.assert_allclose(
        load_peft(tmp_path / "out").delta("second"), weights(1).delta("second") + weights(2).delta("second"), atol=1e-12
    )
    run("combine", *paths, "-o", tmp_path / "other", "--weights-for", "x*", 9, 9, "--weights", "0", "1")
    np.testing.assert_allclose(load_peft(tmp_path / "other").delta("first"), weights(2).delta("first"), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--method", "ties"], "--method ties requires --density"),
        (["--density", "0.5"], "--method cat does not use --density"),
        (["--method", "linear", "--rank", "2"], "--method linear keeps the rank: it does not use --rank"),
        (["--method", "mean"], "argument --method: invalid choice: 'mean'"),
        (["--weights-for", "*", "1"], "--weights-for must have a pattern and one value per adapter (2), got 1"),
        (["--weights-for", "*", "1", "x"], "argument --weights-for: must be a finite number, got 'x'"),
    ],
)
def test_combine_with_options_that_do_not_suit_the_method(misuse, options, reason):
    assert reason in misuse("combine", "a", "b", "-o", "out", *options)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_nonfinite_factors_are_rejected(tmp_path, fail, value):
    source = weights()
    source.layers["second"].matrix_a[0, 0] = value
    source.layers["second"].matrix_b[:] *= 1e100
    adapter = write_peft(tmp_path / "a", source)
    for verb in (["combine", adapter], ["truncate", adapter, "--rank", 1]):
        message = fail(*verb, "-o", tmp_path / "out")
        assert message == f"{adapter}: second: the factors must be finite, and so must their product"


def test_sums_that_are_too_large_are_rejected(tmp_path, fail):
    adapter = write_peft(tmp_path / "a")
    message = fail("combine", adapter, "-o", tmp_path / "out", "--weights", "1e308")
    assert message == "the sum: first: the factors must be finite, and so must their product"
    message = fail("combine", adapter, "-o", tmp_path / "out", "--weights", "1e308", "--rank", "1")
    assert message == f"{adapter}: first: the factors must be finite, and so must their product"
    small = write_peft(tmp_path / "b", weights(dtype=np.float32))
    message = fail("combine", small, "-o", tmp_path / "out", "--weights", "1e60", "--rank", "5")
    assert message == "the sum: first: the factors must be finite, and so must their product"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("verb", ["truncate", "combine"])
def test_existing_output_is_overwritten_only_with_force(tmp_path, run, fail, verb):
    adapter = write_peft(tmp_path / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    arguments = [verb, adapter, "-o", tmp_path / "out", "--rank", "1"]
    assert fail(*arguments) == f"{tmp_path / 'out'}: already exists; use --force to overwrite"
    run(*arguments, "--force")
    assert tree(tmp_path / "out").keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    run(verb, tmp_path / "out", "-o", tmp_path / "out", "--rank", "1", "--force")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 1


@pytest.mark.parametrize(("verb", "module"), [("truncate", truncate), ("combine", combine)])
def test_a_failure_leaves_nothing(tmp_path, fail, monkeypatch, verb, module):
    def failing(folder, *rest, **options):
        write_peft(folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_peft", failing)
    adapter = write_peft(tmp_path / "a")
    before = tree(tmp_path)
    message = fail(verb, adapter, "-o", tmp_path / "out", "--rank", "1")
    assert message == f"[Errno 28] No space left on device: {str(tmp_path / 'out')!r}"
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_layer_without_a_path_cannot_be_written_to_a_peft_folder(tmp_path, fail):
    save_layer(dora()["first"], tmp_path / "layer.npz")
    message = fail("truncate", tmp_path / "layer.npz", "-o", tmp_path / "out", "--rank", "1")
    assert message.startswith(f"{tmp_path / 'out'}: PEFT needs a path for each layer")
