"""``extract``: the adapter of two checkpoints, as a PEFT folder."""

import numpy as np
import pytest

from lora_np.io.merge import merge_checkpoint
from lora_np.io.peft import load_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.cli.toolbox import checkpoint, tree, weights, write_base, write_shards


@pytest.fixture
def tuned(tmp_path):
    """A checkpoint into which an adapter of rank 3 is merged."""
    merge_checkpoint(write_base(tmp_path / "start"), weights(), tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.mark.parametrize("write", [write_base, write_shards])
def test_the_merged_adapter_is_found_again(tmp_path, tuned, run, run_json, write):
    base = write(tmp_path / "base")
    out = run("extract", base, tuned, "-o", tmp_path / "found", "--rank", 3)
    found = load_peft(tmp_path / "found")
    assert found.config["base_model_name_or_path"] == base
    assert found.config["fan_in_fan_out"] is False
    for path in weights().layers:
        np.testing.assert_allclose(found.delta(path), weights().delta(path), rtol=1e-4, atol=1e-5)
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["layer", "rank", "|dW|", "energy", "kept"]
    assert lines[2][:2] == ["first", "3"]
    assert out.endswith(f"{tmp_path / 'found'}: 2 layers, 0 whole tensors, 60 parameters\n")
    report = run_json("extract", base, tuned, "-o", tmp_path / "found", "--energy", 0.5, "--max-rank", 2, "--force")
    assert [layer["path"] for layer in report["layers"]] == ["first", "second"]
    assert report["layers"][0]["norm"] == pytest.approx(np.linalg.norm(weights().delta("first")), rel=1e-5)
    assert all(layer["rank"] <= 2 for layer in report["layers"])
    assert (report["seed"], report["whole"], report["missing"], report["dropped"]) == (0, [], [], [])


def test_different_ranks_and_tensors_that_one_checkpoint_lacks(tmp_path, run):
    first = checkpoint()
    second = {key: value for key, value in first.items() if key != "norm.weight"}
    second["first.weight"] = first["first.weight"] + np.eye(5, 6, dtype=np.float32)
    second["second.weight"] = first["second.weight"] + np.eye(4, 5, dtype=np.float32)
    save_safetensors(tmp_path / "base", first)
    save_safetensors(tmp_path / "tuned", second)
    out = run("extract", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "found", "--rank", 5)
    assert "only in BASE, so not in the adapter: norm.weight\n" in out
    assert ": 2 layers (1 of rank 4, 1 of rank 5), 0 whole tensors, " in out


def test_what_is_not_low_rank_is_stored_whole_and_merged(tmp_path, run, run_json):
    first = checkpoint()
    second = first | {"norm.weight": np.full(3, 2, np.float32), "second.weight": first["second.weight"] * 2}
    save_safetensors(tmp_path / "base", first)
    save_safetensors(tmp_path / "tuned", second)
    out = run("extract", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "found", "--rank", 4)
    assert "stored whole: norm.weight (3)\n" in out
    assert ": 1 layer, 1 whole tensor, " in out
    run("merge", tmp_path / "base", tmp_path / "found", "-o", tmp_path / "merged", "--verify")
    merged = load_safetensors(tmp_path / "merged")
    assert merged.keys() == second.keys()
    for key, value in second.items():
        np.testing.assert_allclose(merged[key], value, atol=1e-6)
    arguments = ["extract", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "found", "--rank", 4, "--force"]
    assert run_json(*arguments)["whole"] == [{"name": "norm.weight", "shape": [3]}]


def test_only_some_layers_and_dropped_tensors(tmp_path, tuned, capsys, run):
    from lora_np.cli import main

    arguments = ["extract", tmp_path / "start", tuned, "-o", tmp_path / "found", "--rank", 1, "--drop", "sec*"]
    assert main([str(word) for word in [*arguments, "--target", "first"]]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"lora-np: {tuned}: dropped second.weight\n"
    assert set(load_peft(tmp_path / "found").layers) == {"first"}


def test_weights_as_in_conv1d(tmp_path, run):
    base = {"first.weight": np.zeros((6, 5))}
    save_safetensors(tmp_path / "base", base)
    save_safetensors(tmp_path / "tuned", {"first.weight": weights().delta("first")})
    run("extract", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "found", "--rank", 3, "--fan-in-fan-out")
    found = load_peft(tmp_path / "found")
    assert found.config["fan_in_fan_out"] is True
    np.testing.assert_allclose(found.delta("first"), weights().delta("first"), atol=1e-12)
    run("merge", tmp_path / "base", tmp_path / "found", "-o", tmp_path / "merged")
    np.testing.assert_allclose(load_safetensors(tmp_path / "merged")["first.weight"], weights().delta("first"), atol=1e-12)


def test_failures_leave_nothing(tmp_path, tuned, fail, misuse):
    start = tmp_path / "start"
    before = tree(tmp_path)
    message = fail("extract", start, start, "-o", tmp_path / "found", "--rank", 1)
    assert message == f"tuned must differ from the base, but all tensors of {start} are those of the base"
    assert fail("extract", start, tmp_path / "no", "-o", tmp_path / "found", "--rank", 1).endswith("no such file or folder")
    assert "--max-rank requires --energy" in misuse("extract", "a", "b", "-o", "c", "--rank", "1", "--max-rank", "2")
    assert "one of the arguments --rank --energy is required" in misuse("extract", "a", "b", "-o", "c")
    assert tree(tmp_path) == before
