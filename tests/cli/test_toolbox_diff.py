"""``diff``: the norms equal those of the dense difference, and the exit code."""

from dataclasses import replace

import numpy as np
import pytest

from lora_np import LoRALayer, save_layer
from lora_np.cli import main
from lora_np.factors.surgery import canonicalize
from lora_np.factors.weights import AdapterWeights
from lora_np.io.peft import load_peft
from tests.cli.toolbox import dora, dylora, multilora, weights, write_kohya, write_peft


def test_the_same(tmp_path, run, run_json):
    one, other = write_peft(tmp_path / "a"), write_kohya(tmp_path / "b.safetensors")
    out = run("diff", one, other, "--tolerance", 0)
    assert out.splitlines()[0].split() == ["layer", "|dW|", "of", "A", "|dW|", "of", "B", "|difference|", "relative"]
    assert out.splitlines()[2].split()[:2] == ["first", "same"]
    assert out.endswith("the adapters are the same (relative tolerance 0)\n")
    report = run_json("diff", one, other)
    assert report["same"] is True
    assert report["tolerance"] == 1e-6
    assert {layer["difference"] for layer in report["layers"]} == {0}


def test_different_factors_of_the_same_update_are_the_same(tmp_path, run, run_json):
    one = write_peft(tmp_path / "a")
    other = write_peft(tmp_path / "b", canonicalize(weights()))
    assert "the adapters are the same (relative tolerance 1e-06)\n" in run("diff", one, other)
    assert 0 < run_json("diff", one, other)["layers"][0]["relative"] < 1e-14
    narrow = write_peft(tmp_path / "c", weights(dtype=np.float32))
    assert 1e-9 < run_json("diff", one, narrow)["layers"][0]["relative"] < 1e-6


def test_the_numbers_equal_those_of_the_dense_difference(tmp_path, run, run_json):
    sources = weights(1, 2), weights(2, 4)
    paths = [write_peft(tmp_path / str(number), source) for number, source in enumerate(sources)]
    report = run_json("diff", *paths, code=1)
    assert report["same"] is False
    for layer in report["layers"]:
        one, other = (source.delta(layer["path"]) for source in sources)
        norms = [np.linalg.norm(one), np.linalg.norm(other)]
        assert layer["norms"] == pytest.approx(norms)
        assert layer["difference"] == pytest.approx(np.linalg.norm(one - other))
        assert layer["largest"] == pytest.approx(np.linalg.norm(one - other, 2))
        assert layer["relative"] == pytest.approx(np.linalg.norm(one - other) / max(norms))
        assert layer["problem"] is None
        assert layer["same"] is False
    out = run("diff", *paths, code=1)
    rows = [
        [layer["path"], "differs", *(f"{value:.4g}" for value in (*layer["norms"], layer["difference"]))]
        for layer in report["layers"]
    ]
    lines = out.splitlines()
    assert [line.split() for line in lines[2:4]] == [
        [*row, f"{layer['relative']:.1e}"] for row, layer in zip(rows, report["layers"], strict=True)
    ]
    assert len({len(line) for line in lines[2:4]}) == 1  # numbers are flush right
    assert out.endswith("2 of 2 layers differ (relative tolerance 1e-06)\n")


def test_the_tolerance_decides(tmp_path, run):
    source = weights()
    near = AdapterWeights(
        {name: LoRALayer.from_factors(layer.matrix_a, 1.01 * layer.matrix_b, 6) for name, layer in source.layers.items()}
    )
    one, other = write_peft(tmp_path / "a"), write_peft(tmp_path / "b", near)
    run("diff", one, other, code=1)
    run("diff", one, other, "--tolerance", "0.0098", code=1)
    run("diff", one, other, "--tolerance", "0.01")


def test_layers_that_only_one_adapter_has(tmp_path, run, run_json):
    one = write_peft(tmp_path / "a", weights(paths=("first",)))
    other = write_peft(tmp_path / "b", weights(paths=("second",)))
    out = run("diff", one, other, code=1)
    assert "first   only in A\n" in out
    assert "second  only in B\n" in out
    first, _ = run_json("diff", one, other, code=1)["layers"]
    assert (first["problem"], first["relative"], first["same"]) == ("only in A", None, False)


def test_layers_of_different_sizes(tmp_path, run):
    one = write_peft(tmp_path / "a", AdapterWeights({"first": LoRALayer(6, 5, 1)}))
    other = write_peft(tmp_path / "b", AdapterWeights({"first": LoRALayer(6, 4, 1)}))
    assert "6 -> 5 vs. 6 -> 4" in run("diff", one, other, code=1)


def test_two_adapters_that_do_nothing_are_the_same(tmp_path, run):
    paths = [write_peft(tmp_path / str(seed), AdapterWeights({"first": LoRALayer(6, 5, 2, rng=seed)})) for seed in (1, 2)]
    run("diff", *paths, "--tolerance", 0)


def test_dora(tmp_path, run, run_json):
    one = write_peft(tmp_path / "a", dora())
    run("diff", one, one)
    source = load_peft(one)
    longer = {name: 1.5 * lengths for name, lengths in source.magnitudes.items()}
    other = write_peft(tmp_path / "b", replace(source, magnitudes=longer))
    (first, _) = run_json("diff", one, other, code=1)["layers"]
    assert first["difference"] == 0
    assert first["relative"] == pytest.approx(1 / 3)
    plain = write_peft(tmp_path / "c", AdapterWeights(source.layers))
    assert "DoRA only in A" in run("diff", one, plain, code=1)
    assert "DoRA only in B" in run("diff", plain, one, code=1)
    broken = {name: np.nan * lengths for name, lengths in source.magnitudes.items()}
    other = write_peft(tmp_path / "d", replace(source, magnitudes=broken))
    assert "magnitudes not finite" in run("diff", one, other, code=1)
    run("diff", other, other, "--tolerance", 0)


def test_dylora_is_compared_at_each_rank(tmp_path, run, run_json):
    save_layer(dylora(), tmp_path / "a.npz")
    one, other = tmp_path / "a.npz", write_peft(tmp_path / "b", dylora())
    out = run("diff", one, other)
    assert out.splitlines()[0].split()[:3] == ["layer", "at", "rank"]
    # Permuting the components leaves the full rank unchanged, but not the lower ranks.
    source = load_peft(other)
    permuted = {}
    for name, layer in source.layers.items():
        swap = np.eye(4)[[1, 0, 2, 3]]
        permuted[name] = LoRALayer.from_factors(layer.matrix_a @ swap, swap.T @ layer.matrix_b, layer.alpha)
    changed = write_peft(tmp_path / "c", replace(source, layers=permuted))
    first, _ = run_json("diff", other, changed, code=1)["layers"]
    assert first["rank"] == 1
    assert first["relative"] > 0.1
    run("diff", other, changed, "--rank", 4)
    run("diff", other, changed, "--rank", 1, code=1)
    at_two = write_peft(tmp_path / "d", dylora(), rank_is_in="metadata")
    run("diff", other, at_two)


def test_dylora_against_plain_layers_and_other_settings(tmp_path, run):
    one = write_peft(tmp_path / "a", dylora())
    run("convert", one, "-o", tmp_path / "b", "--rank", 2)
    assert "active ranks [1, 2, 4] vs. none" in run("diff", one, tmp_path / "b", code=1)
    assert "active ranks none vs. [1, 2, 4]" in run("diff", tmp_path / "b", one, code=1)
    run("diff", one, tmp_path / "b", "--rank", 2)
    other = write_peft(tmp_path / "c", dylora(deployed=4))
    assert "deployment rank 2 vs. 4" in run("diff", one, other, code=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_factors_differ_unless_they_are_identical(tmp_path, run, run_json, value):
    source = weights()
    source.layers["first"].matrix_a[0, 0] = value
    one, other = write_peft(tmp_path / "a", source), write_peft(tmp_path / "b")
    assert "first   factors not finite" in run("diff", one, other, code=1)
    assert "1 of 2 layers differ" in run("diff", one, other, code=1)
    report = run_json("diff", one, one)
    assert report["layers"][0]["norms"] == [None, None]
    assert report["layers"][0]["relative"] == 0


def test_dylora_that_is_not_finite_at_one_rank(tmp_path, run_json):
    model = dylora()
    model["first"].lora_layer.matrix_a[0, 3] = np.nan
    one, other = write_peft(tmp_path / "a", model), write_peft(tmp_path / "b", dylora())
    first, second = run_json("diff", one, other, code=1)["layers"]
    assert (first["rank"], first["problem"]) == (4, "factors not finite")
    assert second["same"] is True


def test_a_task(tmp_path, run, fail):
    save_layer(multilora(), tmp_path / "m.npz")
    run("convert", tmp_path / "m.npz", "-o", tmp_path / "tasks")
    run("diff", tmp_path / "m.npz", tmp_path / "tasks", "--task", "german")
    assert "choose one with --task" in fail("diff", tmp_path / "m.npz", tmp_path / "tasks")


def test_wrong_arguments(misuse):
    assert "argument --tolerance: must be at least 0, got '-1'" in misuse("diff", "a", "b", "--tolerance", "-1")
    assert "the following arguments are required: B" in misuse("diff", "a")


def test_an_error_is_not_a_difference(tmp_path, fail):
    folder = write_peft(tmp_path / "a")
    assert fail("diff", folder, tmp_path / "b") == f"{tmp_path / 'b'}: no such file or folder"


def test_the_exit_code_tells_differences_from_errors(tmp_path, run, capsys):
    one, other = write_peft(tmp_path / "a", weights(1)), write_peft(tmp_path / "b", weights(2))
    run("diff", one, one, code=0)
    run("diff", one, other, code=1)
    assert main(["diff", one, str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.startswith("lora-np: error: ")


def test_whole_tensors_that_are_not_finite(tmp_path, run_json):
    heads = [np.ones(3), np.array([1, np.nan, 2])]
    one, other = (
        write_peft(tmp_path / str(number), AdapterWeights(weights().layers, whole={"head.bias": head}))
        for number, head in enumerate(heads)
    )
    (found,) = [layer for layer in run_json("diff", one, other, code=1)["layers"] if layer["path"] == "head.bias"]
    assert found["problem"] == "values not finite"


def test_convolutions_of_different_kernels(tmp_path, run_json):
    rng = np.random.default_rng(0)
    layer = LoRALayer.from_factors(rng.normal(size=(12, 2)), rng.normal(size=(2, 5)), 4.0)
    one, other = (
        write_peft(tmp_path / str(number), AdapterWeights({"conv": layer}, kernels={"conv": kernel}))
        for number, kernel in enumerate([(2, 2), (4, 1)])
    )
    (found,) = run_json("diff", one, other, code=1)["layers"]
    assert "2 x 2" in found["problem"] or "2x2" in found["problem"] or "(2, 2)" in found["problem"]
    assert " vs. " in found["problem"]


def test_an_embedding_against_a_dense_layer(tmp_path, run_json):
    layer = LoRALayer(6, 5, 2, 4.0, rng=0)
    one = write_peft(tmp_path / "a", AdapterWeights({"table": layer}, embeddings=frozenset({"table"})))
    other = write_peft(tmp_path / "b", AdapterWeights({"table": layer}))
    (found,) = run_json("diff", one, other, code=1)["layers"]
    assert found["problem"] == "an embedding only in A"
