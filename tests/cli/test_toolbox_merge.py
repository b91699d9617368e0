"""``merge`` and ``unmerge``: correct numbers, no partial output, and nothing overwritten without ``--force``."""

import errno
import json
import os
import sys

import numpy as np
import pytest

from lora_np import ArgumentError, LoRALayer, NotSupportedError, save_layer
from lora_np.cli import _output, main
from lora_np.cli import merge as verb
from lora_np.factors.weights import AdapterWeights
from lora_np.io.folders import copy_model_files
from lora_np.io.merge import MergedTensor, merge_checkpoint
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.cli.toolbox import (
    checkpoint,
    dora,
    dylora,
    multilora,
    tree,
    weights,
    write_base,
    write_peft,
    write_shards,
)

DORA = "a DoRA adapter cannot be subtracted from weights: the norms before it are not known"


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base.safetensors")


@pytest.fixture
def adapter(tmp_path):
    return write_peft(tmp_path / "adapter")


def assert_merged(tensors, source=None, sign=1):
    source = weights() if source is None else source
    old = checkpoint()
    assert tensors.keys() == old.keys()
    for name in source.layers:
        expected = old[f"{name}.weight"] + sign * source.delta(name).T
        np.testing.assert_allclose(tensors[f"{name}.weight"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tensors["norm.weight"], old["norm.weight"])


def test_a_file(tmp_path, run, base, adapter):
    out = run("merge", base, adapter, "-o", tmp_path / "merged.safetensors")
    assert_merged(load_safetensors(tmp_path / "merged.safetensors"))
    assert out == (
        "tensor         change    dtype  rounding\n"
        "-------------  --------  -----  --------\n"
        "first.weight   low-rank  F32     6.0e-08\n"
        "second.weight  low-rank  F32     6.0e-08\n"
        f"\n{tmp_path / 'merged.safetensors'}: 2 tensors changed\n"
    )
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base.safetensors", "merged.safetensors"]


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
def test_verified(tmp_path, run, run_json, adapter, dtype):
    base = write_base(tmp_path / "b.safetensors", dtype)
    out = run("merge", base, adapter, "-o", tmp_path / "m.safetensors", "--verify")
    assert "measured error" in out
    assert out.endswith("2 tensors changed, all verified\n")
    report = run_json("merge", base, adapter, "-o", tmp_path / "m.safetensors", "--verify", "--force")
    assert [tensor["key"] for tensor in report["tensors"]] == ["first.weight", "second.weight"]
    for tensor in report["tensors"]:
        assert tensor["dtype"] == dtype
        assert tensor["error"] <= 2 * tensor["precision"] + 1e-6


def test_json_without_verify(tmp_path, run_json, base, adapter):
    report = run_json("merge", base, adapter, "-o", tmp_path / "m.safetensors")
    assert {name: report[name] for name in ("base", "adapter", "output")} == {
        "base": base,
        "adapter": adapter,
        "output": str(tmp_path / "m.safetensors"),
    }
    assert report["tensors"][0] == {
        "key": "first.weight",
        "file": "base.safetensors",
        "dtype": "F32",
        "error": None,
        "change": "low-rank",
        "rank": 3,
        "precision": 2.0**-24,
    }


@pytest.mark.parametrize("by_index", [False, True])
def test_shards(tmp_path, run, adapter, by_index):
    folder = write_shards(tmp_path / "model")
    base = f"{folder}/model.safetensors.index.json" if by_index else folder
    out = run("merge", base, adapter, "-o", tmp_path / "merged/", "--verify")
    assert "model-00001-of-00002.safetensors" in out
    assert tree(tmp_path / "merged").keys() == tree(tmp_path / "model").keys()
    assert_merged(
        {name: value for file in (tmp_path / "merged").glob("*rs") for name, value in load_safetensors(file).items()}
    )
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_folder_of_one_file_gives_a_folder(tmp_path, run, adapter):
    (tmp_path / "model").mkdir()
    write_base(tmp_path / "model" / "model.safetensors")
    run("merge", tmp_path / "model", adapter, "-o", tmp_path / "merged", "--verify")
    assert_merged(load_safetensors(tmp_path / "merged" / "model.safetensors"))


def test_unmerge(tmp_path, run, base, adapter):
    run("unmerge", base, adapter, "-o", tmp_path / "out.safetensors", "--verify")
    assert_merged(load_safetensors(tmp_path / "out.safetensors"), sign=-1)
    run("merge", tmp_path / "out.safetensors", adapter, "-o", tmp_path / "again.safetensors", "--verify")
    for name, tensor in load_safetensors(tmp_path / "again.safetensors").items():
        np.testing.assert_allclose(tensor, checkpoint()[name], atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"fan_in_fan_out": True}])
def test_weights_stored_as_in_out(tmp_path, run, fail, config):
    tensors = {name: np.ascontiguousarray(tensor.T) for name, tensor in checkpoint().items()}
    save_safetensors(tmp_path / "base.safetensors", tensors)
    adapter = write_peft(tmp_path / "adapter", **config)
    flags = [] if config else ["--fan-in-fan-out"]
    output = tmp_path / "merged.safetensors"
    run("merge", tmp_path / "base.safetensors", adapter, "-o", output, "--verify", *flags)
    assert_merged({name: tensor.T for name, tensor in load_safetensors(output).items()})
    message = fail("merge", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "x", "--no-fan-in-fan-out")
    assert message == f"{tmp_path / 'base.safetensors'}: first.weight must have shape (5, 6) for the adapter, got (6, 5)"


@pytest.mark.parametrize(("options", "rank"), [([], 2), (["--rank", "4"], 4)])
def test_dylora_is_merged_at_its_deployment_rank_or_the_given_one(tmp_path, run, base, options, rank):
    save_layer(dylora(), tmp_path / "model.npz")
    run("merge", base, tmp_path / "model.npz", "-o", tmp_path / "m.safetensors", "--verify", *options)
    merged, old = load_safetensors(tmp_path / "m.safetensors"), checkpoint()
    delta = dylora()["first"].lora_layer.merge_weights(rank=rank)
    np.testing.assert_allclose(merged["first.weight"], old["first.weight"] + delta.T, rtol=1e-5, atol=1e-5)


def test_a_task(tmp_path, run, fail, base):
    save_layer(multilora(), tmp_path / "model.npz")
    assert fail("merge", base, tmp_path / "model.npz", "-o", tmp_path / "m").endswith("choose one with --task")
    run("merge", base, tmp_path / "model.npz", "-o", tmp_path / "m.safetensors", "--task", "german")
    delta = multilora()["first"].get_task_adapter("german").merge_weights()
    expected = checkpoint()["first.weight"] + delta.T
    np.testing.assert_allclose(load_safetensors(tmp_path / "m.safetensors")["first.weight"], expected, rtol=1e-5, atol=1e-5)


def test_dora(tmp_path, run, fail, base):
    adapter = write_peft(tmp_path / "dora", dora())
    run("merge", base, adapter, "-o", tmp_path / "m.safetensors", "--verify")
    lengths = np.linalg.norm(load_safetensors(tmp_path / "m.safetensors")["first.weight"], axis=1)
    np.testing.assert_allclose(lengths, np.abs(dora()["first"].magnitude), rtol=1e-5)
    message = fail("unmerge", base, adapter, "-o", tmp_path / "x")
    assert message == DORA
    assert sorted(os.listdir(tmp_path)) == ["base.safetensors", "dora", "m.safetensors"]


# ---------------------------------------------------------------- existing output


def test_existing_output_is_overwritten_only_with_force(tmp_path, run, fail, base, adapter):
    output = tmp_path / "m.safetensors"
    output.write_bytes(b"precious")
    assert fail("merge", base, adapter, "-o", output) == f"{output}: already exists; use --force to overwrite"
    assert output.read_bytes() == b"precious"
    run("merge", base, adapter, "-o", output, "--force")
    assert_merged(load_safetensors(output))


def test_force_keeps_other_files_of_a_folder(tmp_path, run, fail, adapter):
    folder = write_shards(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("mine")
    (tmp_path / "out" / "model-00001-of-00002.safetensors").write_text("old")
    assert "--force" in fail("merge", folder, adapter, "-o", tmp_path / "out")
    run("merge", folder, adapter, "-o", tmp_path / "out", "--force")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "mine"
    assert tree(tmp_path / "out").keys() == {*tree(tmp_path / "model"), "tokenizer.json"}
    run("inspect", tmp_path / "out")


def test_the_index_is_replaced_last(tmp_path, run, monkeypatch, adapter):
    folder, replaced = write_shards(tmp_path / "model"), []
    (tmp_path / "out").mkdir()
    replace = os.replace

    def recorded(source, target):
        replaced.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(_output.os, "replace", recorded)
    run("merge", folder, adapter, "-o", tmp_path / "out", "--force")
    assert len(replaced) == 6  # each file is first renamed within the temporary folder
    assert replaced[-1] == "model.safetensors.index.json"


def test_an_output_of_the_wrong_kind(tmp_path, fail, base, adapter):
    folder = write_shards(tmp_path / "model")
    (tmp_path / "there").mkdir()
    message = fail("merge", base, adapter, "-o", tmp_path / "there", "--force")
    assert message == f"{tmp_path / 'there'}: is a folder, not a file"
    assert fail("merge", folder, adapter, "-o", base, "--force") == f"{base}: is a file, not a folder"
    place = tmp_path / "no" / "x"
    assert fail("merge", base, adapter, "-o", place) == f"{place}: the folder {tmp_path / 'no'} does not exist"


@pytest.mark.parametrize("kind", ["file", "shards", "folder"])
def test_the_base_cannot_be_the_output(tmp_path, fail, adapter, kind):
    if kind == "file":
        base = write_base(tmp_path / "base.safetensors")
    elif kind == "shards":
        base = write_shards(tmp_path / "model")
    else:
        (tmp_path / "model").mkdir()
        base = str(tmp_path / "model")
        write_base(tmp_path / "model" / "model.safetensors")
    before = tree(tmp_path)
    assert fail("merge", base, adapter, "-o", base, "--force") == f"{base}: OUT must not be BASE"
    assert tree(tmp_path) == before


# ---------------------------------------------------------------- failures


def test_errors_name_the_file_and_the_key(tmp_path, fail, base, adapter):
    missing = write_peft(tmp_path / "missing", AdapterWeights({"third": LoRALayer(3, 3, 1)}))
    message = fail("merge", base, missing, "-o", tmp_path / "x")
    assert message == f"{base}: missing tensor 'third.weight', which the adapter changes"
    wrong = write_peft(tmp_path / "wrong", AdapterWeights({"first": LoRALayer(3, 3, 1)}))
    message = fail("merge", base, wrong, "-o", tmp_path / "x")
    assert message == f"{base}: first.weight must have shape (3, 3) for the adapter, got (5, 6)"
    nowhere = tmp_path / "nowhere"
    assert fail("merge", nowhere, adapter, "-o", tmp_path / "x") == f"{nowhere}: no such file or folder"
    message = fail("merge", adapter, adapter, "-o", tmp_path / "x")
    assert message == f"{adapter}: neither model.safetensors.index.json nor model.safetensors found"
    assert "x" not in os.listdir(tmp_path)


@pytest.mark.parametrize("form", ["file", "shards"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device: {output!r}"),
        (NotSupportedError("not this"), "not this"),
    ],
)
def test_a_failure_leaves_nothing(tmp_path, fail, monkeypatch, adapter, form, error, message):
    base = write_base(tmp_path / "b.safetensors") if form == "file" else write_shards(tmp_path / "model")
    before = tree(tmp_path)

    def failing(base, adapter, output, **options):
        merge_checkpoint(base, adapter, output, **options)
        raise error

    monkeypatch.setattr(verb, "merge_checkpoint", failing)
    output = tmp_path / "out"
    assert fail("merge", base, adapter, "-o", output) == message.format(output=str(output))
    assert tree(tmp_path) == before
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    error = FileNotFoundError(errno.ENOENT, "No such file", "shard")
    with (
        pytest.raises(FileNotFoundError, match="'shard'"),
        _output.new_output(str(tmp_path / "x"), folder=False, force=False),
    ):
        raise error
    with pytest.raises(OSError, match=r"^odd$"), _output.new_output(str(tmp_path / "x"), folder=False, force=False):
        raise OSError("odd")


@pytest.mark.parametrize("tampering", ["changed", "untouched", "lost", "nan"])
@pytest.mark.parametrize("form", ["file", "shards"])
def test_verify_catches_tampering(tmp_path, fail, monkeypatch, adapter, tampering, form):
    base = write_base(tmp_path / "b.safetensors") if form == "file" else write_shards(tmp_path / "model")
    before = tree(tmp_path)

    def tampered(base, adapter, output, **options):
        merged = merge_checkpoint(base, adapter, output, **options)
        file = output if form == "file" else os.path.join(output, "model-00001-of-00002.safetensors")
        tensors = load_safetensors(file)
        if tampering == "changed":
            tensors["first.weight"][0, 0] += 1e-3
        elif tampering == "nan":
            tensors["first.weight"][0, 0] = np.nan
        elif tampering == "untouched":
            tensors["norm.weight"][0] += 1e-6
        else:
            del tensors["norm.weight"]
        save_safetensors(file, tensors)
        return merged

    monkeypatch.setattr(verb, "merge_checkpoint", tampered)
    output = tmp_path / "out"
    message = fail("merge", base, adapter, "-o", output, "--verify")
    assert message.startswith(str(output))
    if tampering in ("changed", "nan"):
        assert f"{output}: first.weight has a relative error of " in message
        assert message.endswith("; the output was discarded")
    elif tampering == "untouched":
        assert message.endswith(": norm.weight differs from the base, but the adapter does not change it")
    else:
        assert message.endswith(": norm.weight is missing, or its dtype or shape differs from the base")
    assert tree(tmp_path) == before


def test_the_error_that_rounding_explains():
    tensor = MergedTensor("a.weight", "a", "F32")
    assert verb.allowed_error(tensor, 8) < 2e-6
    assert verb.allowed_error(MergedTensor("a.weight", "a", "F64"), 8) < 1e-14
    assert 2.0**-7 < verb.allowed_error(MergedTensor("a.weight", "a", "BF16"), 64) < 1.01 * 2.0**-7


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
@pytest.mark.parametrize("rank", [1, 64])
def test_rounding_explains_the_errors_of_large_layers(tmp_path, run, rank, dtype):
    rng = np.random.default_rng(rank)
    A, B = rng.normal(size=(300, rank)), rng.normal(size=(rank, 200))
    adapter = write_peft(tmp_path / "adapter", AdapterWeights({"w": LoRALayer.from_factors(A, B)}))
    save_safetensors(tmp_path / "b.safetensors", {"w.weight": rng.normal(size=(200, 300))}, dtypes={"w.weight": dtype})
    run("merge", tmp_path / "b.safetensors", adapter, "-o", tmp_path / "m.safetensors", "--verify")


# ---------------------------------------------------------------- progress


def test_a_terminal_shows_the_progress(tmp_path, monkeypatch, base, adapter):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    seen = []

    class Bar(tqdm.tqdm):
        def update(self, n=1):
            seen.append((self.desc, n, self.total))
            return super().update(n)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    assert main(["merge", base, adapter, "-o", str(tmp_path / "m.safetensors")]) == 0
    assert {name for name, _, _ in seen} == checkpoint().keys()
    assert sum(size for _, size, _ in seen) == sum(tensor.nbytes for tensor in checkpoint().values())
    assert {total for _, _, total in seen} == {os.path.getsize(base)}


def test_a_terminal_without_tqdm(tmp_path, monkeypatch, run, base, adapter):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    run("merge", base, adapter, "-o", tmp_path / "m.safetensors")


def test_the_bar_is_on_standard_error_and_is_cleared(tmp_path, capsys, monkeypatch, base, adapter):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["merge", base, adapter, "-o", str(tmp_path / "m.safetensors"), "--json"])
    captured = capsys.readouterr()
    assert "\r" not in captured.out
    assert captured.err.endswith("\r")


@pytest.mark.parametrize("write", [write_base, write_shards])
def test_the_report_of_rounding(tmp_path, run, run_json, write):
    base, adapter = write(tmp_path / "base"), write_peft(tmp_path / "a", weights(dtype=np.float32))
    report = run_json("merge", base, adapter, "-o", tmp_path / "out", "--report")
    for loss in report["losses"]:
        path = loss["key"].removesuffix(".weight")
        assert loss["change"] == pytest.approx(np.linalg.norm(weights().delta(path)), rel=1e-5)
        assert 0 < loss["share"] < 1e-6
        assert loss["unchanged"] == 0
    lines = run("merge", base, adapter, "-o", tmp_path / "out", "--report", "--force").splitlines()
    assert lines[0].split() == ["tensor", "dtype", "|change|", "|lost|", "lost", "weights", "unchanged"]
    assert lines[2].split()[:2] == ["first.weight", "F32"]
    assert lines[4].split()[0] == "all"
    assert lines[4].endswith("0 (0.00 %)")
    assert "losses" not in run_json("merge", base, adapter, "-o", tmp_path / "out", "--force")


def model_folder(folder, write=write_base):
    """A folder as transformers writes it, with weights in another format too."""
    if write is write_shards:
        write(folder)
    else:
        folder.mkdir()
        write(folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("[]")
    (folder / "pytorch_model.bin").write_bytes(b"old")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("main")
    return folder


@pytest.mark.parametrize("write", [write_base, write_shards])
def test_a_merged_folder_is_complete(tmp_path, capsys, run, write):
    base, adapter = model_folder(tmp_path / "base", write), write_peft(tmp_path / "a")
    assert main(["merge", str(base), adapter, "-o", str(tmp_path / "out"), "--verify"]) == 0
    assert capsys.readouterr().err == f"lora-np: {base}: not copied: pytorch_model.bin, weights before the merge\n"
    before, after = tree(base), tree(tmp_path / "out")
    assert after.keys() == before.keys() - {"pytorch_model.bin", ".git/HEAD"}
    others = ("config.json", "tokenizer.json", "1_Pooling/config.json")
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    run("merge", base, adapter, "-o", tmp_path / "weights", "--weights-only")
    assert tree(tmp_path / "weights").keys() == {name for name in before if "model.safe" in name or "model-0" in name}


def test_a_separate_head_is_not_tied_in_the_configuration(tmp_path):
    folder = model_folder(tmp_path / "base")
    (tmp_path / "out").mkdir()
    found = copy_model_files(folder, tmp_path / "out", untied=True)
    assert found.skipped == ("model.safetensors", "pytorch_model.bin")
    assert set(found.copied) == {"config.json", "tokenizer.json", os.path.join("1_Pooling", "config.json")}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "x", "tie_word_embeddings": False}
    with pytest.raises(ArgumentError, match="base must be a folder, got "):
        copy_model_files(tmp_path / "base" / "config.json", tmp_path / "out")
