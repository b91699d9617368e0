"""Adapters with whole tensors in every command: used, carried over, or named. `--drop` says what it drops."""

import json

import numpy as np
import pytest

from lora_np import LoRALayer
from lora_np.cli import main
from lora_np.factors.weights import AdapterWeights, Rows
from lora_np.io.peft import CONFIG, WEIGHTS, load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.cli.toolbox import (
    checkpoint,
    weights,
    write_kohya,
    write_peft,
)
from tests.kinds import batch, bits

HEAD = {"head.weight": batch(2, 4), "head.bias": batch(2), "norm.weight": batch(3)}


def with_head(**changes):
    plain = weights()
    return AdapterWeights(plain.layers, whole=HEAD | changes, rows={"table.weight": Rows.of([2, 0], batch(2, 3))})


@pytest.fixture
def adapter(tmp_path):
    return write_peft(tmp_path / "adapter", with_head())


@pytest.fixture
def base(tmp_path):
    tensors = checkpoint() | {"table.weight": batch(5, 3).astype(np.float32)}
    save_safetensors(tmp_path / "base.safetensors", tensors)
    return str(tmp_path / "base.safetensors")


def outcome(capsys, *arguments, code=0):
    """The JSON of a command, and what it said on standard error."""
    assert main([str(argument) for argument in (*arguments, "--json")]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_merge_uses_and_verifies_every_tensor(tmp_path, run, base, adapter):
    output = tmp_path / "merged.safetensors"
    out = run("merge", base, adapter, "-o", output, "--verify")
    assert out.endswith("6 tensors changed, all verified\n")
    assert {"added", "replaced", "rows", "low-rank"} <= set(out.split())
    merged = load_safetensors(output)
    for name, array in HEAD.items():
        assert np.array_equal(merged[name], array.astype(merged[name].dtype))
    assert set(merged) == set(load_safetensors(base)) | set(HEAD)


def test_merge_drops_only_what_it_is_told_to_and_says_so(tmp_path, capsys, base, adapter):
    arguments = ("merge", base, adapter, "-o", tmp_path / "merged.safetensors", "--verify", "--drop", "head.*")
    report, err = outcome(capsys, *arguments)
    names = [f"base_model.model.{name}" for name in ("head.bias", "head.weight")]
    assert report["dropped"] == names
    assert err == "".join(f"lora-np: {adapter}: dropped {name}\n" for name in names)
    assert "head.weight" not in load_safetensors(tmp_path / "merged.safetensors")


def test_unmerge_names_what_it_cannot_undo(tmp_path, capsys, fail, base, adapter):
    message = fail("unmerge", base, adapter, "-o", tmp_path / "out.safetensors")
    assert message.startswith("head.bias cannot be subtracted")
    assert message.endswith("; --drop 'head.bias' would leave it as it is")
    drops = [part for name in ("head.*", "norm.*", "table.*") for part in ("--drop", name)]
    outcome(capsys, "unmerge", base, adapter, "-o", tmp_path / "out.safetensors", *drops)


def test_a_tied_head_needs_an_option(tmp_path, run, fail):
    table = {"embed_tokens.weight": batch(5, 3)}
    save_safetensors(tmp_path / "base.safetensors", table)
    adapter = write_peft(tmp_path / "adapter", AdapterWeights({"lm_head": LoRALayer(3, 5, 1, rng=0)}))
    arguments = ("merge", tmp_path / "base.safetensors", adapter, "-o", tmp_path / "merged.safetensors")
    assert fail(*arguments).endswith("; --untie writes one")
    run(*arguments, "--untie", "--verify")
    assert set(load_safetensors(tmp_path / "merged.safetensors")) == {"embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("command", [("truncate", "--rank", 1), ("convert",)])
def test_other_tensors_are_carried_over(tmp_path, run, adapter, command):
    verb, *options = command
    run(verb, adapter, "-o", tmp_path / "out", *options)
    before, after = load_peft(adapter), load_peft(tmp_path / "out")
    assert bits(after.whole) == bits(before.whole)
    assert np.array_equal(after.rows["table.weight"].values, before.rows["table.weight"].values)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["modules_to_save"] == ["head", "norm"]


def test_combine_carries_over_equal_tensors_and_refuses_different_ones(tmp_path, capsys, fail, adapter):
    same = write_peft(tmp_path / "same", with_head())
    other = write_peft(tmp_path / "other", with_head(**{"head.bias": batch(2, seed=5)}))
    outcome(capsys, "combine", adapter, same, "-o", tmp_path / "sum")
    assert bits(load_peft(tmp_path / "sum").whole) == bits(load_peft(adapter).whole)
    message = fail("combine", adapter, other, "-o", tmp_path / "out")
    assert message.endswith(
        "head.bias is replaced by different tensors, which cannot be added; --drop 'head.bias' would leave it out"
    )
    report, _ = outcome(capsys, "combine", adapter, other, "-o", tmp_path / "out", "--drop", "head.bias")
    assert report["dropped"] == ["base_model.model.head.bias"]


DIFFERENCES = {
    "head.bias": (with_head(**{"head.bias": HEAD["head.bias"] + 1}), None),
    "norm.weight": (with_head(**{"norm.weight": batch(4)}), "replaced 3 vs. replaced 4"),
    "table.weight": (
        AdapterWeights(weights().layers, whole=HEAD, rows={"table.weight": Rows.of([2, 1], batch(2, 3))}),
        "rows 0, 2 2 x 3 vs. rows 1, 2 2 x 3",
    ),
    "first.bias": (
        AdapterWeights(weights().layers, whole=HEAD, rows=with_head().rows, biases={"first": batch(5), "second": batch(4)}),
        "only in B",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_diff_compares_every_tensor(tmp_path, capsys, adapter, name):
    other, problem = DIFFERENCES[name]
    report, _ = outcome(capsys, "diff", adapter, write_peft(tmp_path / "other", other), code=1)
    different = {one["path"]: one["problem"] for one in report["layers"] if not one["same"]}
    assert different[name] == problem
    assert set(different) <= {name, "second.bias"}


def test_diff_of_equal_adapters(tmp_path, run, adapter):
    again = AdapterWeights(weights().layers, whole=HEAD, rows={"table.weight": Rows.of([0, 2], batch(2, 3)[::-1])})
    assert "the adapters are the same" in run("diff", adapter, write_peft(tmp_path / "again", again))


def test_inspect_lists_the_other_tensors(run, run_json, adapter):
    assert "rows 0, 2" in run("inspect", adapter)
    report = run_json("inspect", adapter)["adapters"][0]
    assert {(one["name"], one["change"], tuple(one["shape"])) for one in report["others"]} == {
        ("head.weight", "replaced", (2, 4)),
        ("head.bias", "replaced", (2,)),
        ("norm.weight", "replaced", (3,)),
        ("table.weight", "rows 0, 2", (2, 3)),
    }
    stored = load_safetensors(f"{adapter}/{WEIGHTS}")
    assert report["parameters"] == sum(array.size for array in stored.values())


UNKNOWN = {
    "a stray tensor": lambda folder: write_kohya(folder / "lora.safetensors", emb=np.ones(2)),
    "another type": lambda folder: edited(folder, peft_type="PROMPT_TUNING"),
    "a damaged configuration": lambda folder: edited(folder, use_rslora="false"),
    "an unsupported function": lambda folder: edited(folder, use_qalora=True),
    "named adapters": lambda folder: edited(folder / "task", use_qalora=True) and str(folder),
}


def edited(folder, **config):
    folder.mkdir(exist_ok=True)
    save_peft(folder, weights())
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | config))
    return str(folder)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_inspect_never_refuses_a_readable_file(tmp_path, run, run_json, kind):
    path = UNKNOWN[kind](tmp_path)
    assert "not understood as an adapter" in run("inspect", path)
    report = run_json("inspect", path)
    assert report["problem"]
    assert len(report["tensors"]) >= 4


def test_inspect_refuses_a_file_that_is_not_readable(tmp_path, fail):
    place = edited(tmp_path, use_qalora=True)
    (tmp_path / WEIGHTS).write_bytes(b"no header")
    assert "use_qalora" in fail("inspect", place)


@pytest.mark.parametrize("tokens", [5, 7])
def test_a_merged_folder_has_the_vocabulary_of_the_adapter(tmp_path, run, tokens):
    folder = tmp_path / "base"
    folder.mkdir()
    tensors = {"model.embed_tokens.weight": batch(5, 6), "model.first.weight": batch(5, 6), "lm_head.weight": batch(5, 6)}
    save_safetensors(folder / "model.safetensors", tensors)
    config = {"vocab_size": 5, "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    table = {"model.embed_tokens.weight": batch(tokens, 6), "lm_head.weight": batch(tokens, 6, seed=3)}
    layers = {"model.first": weights().layers["first"]}
    run(
        "merge", folder, write_peft(tmp_path / "a", AdapterWeights(layers, whole=table)), "-o", tmp_path / "out", "--verify"
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config | {"vocab_size": tokens}
    same = (folder / "config.json").read_bytes() == (tmp_path / "out" / "config.json").read_bytes()
    assert same == (tokens == 5)


def test_a_report_of_a_merge_into_the_body_of_a_classifier(tmp_path, run_json, base):
    layers = {f"bert.{path}": layer for path, layer in weights().layers.items()}
    adapter = write_peft(tmp_path / "a", AdapterWeights(layers, whole={"classifier.weight": batch(2, 4)}))
    report = run_json("merge", base, adapter, "-o", tmp_path / "out.safetensors", "--verify", "--report")
    assert {loss["key"] for loss in report["losses"]} == {"first.weight", "second.weight"}
