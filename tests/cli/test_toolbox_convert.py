"""``convert``: the PEFT folder computes the same function as the input."""

import json
import os

import numpy as np
import pytest

from lora_np import LoRALayer, save_layer
from lora_np.cli import convert
from lora_np.factors.weights import AdapterWeights, extract
from lora_np.io.peft import load_peft
from tests.cli.toolbox import dora, dylora, multilora, standard, tree, weights, write_kohya, write_mlx, write_peft


@pytest.mark.parametrize("write", [write_peft, write_kohya, write_mlx])
def test_files_of_other_libraries(tmp_path, run, run_json, write):
    out = run("convert", write(tmp_path / "in"), "-o", tmp_path / "out")
    converted = load_peft(tmp_path / "out")
    for name in weights().layers:
        np.testing.assert_allclose(converted.delta(name), weights().delta(name), rtol=1e-14)
    assert out.splitlines()[0].split() == ["layer", "in", "out", "rank", "alpha", "scaling"]
    assert out.splitlines()[2].split() == ["first", "6", "5", "3", "6", "2"]
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'in'} (")
    assert out.endswith(f" adapter) -> {tmp_path / 'out'}: 1 adapter\n")
    report = run_json("convert", tmp_path / "in", "-o", tmp_path / "out", "--force")
    assert report["adapters"][0]["layers"][1]["path"] == "second"


@pytest.mark.parametrize("make", [standard, dora, dylora])
def test_models(tmp_path, run, make):
    save_layer(make(), tmp_path / "model.npz")
    run("convert", tmp_path / "model.npz", "-o", tmp_path / "out")
    converted, expected = load_peft(tmp_path / "out"), extract(make())
    assert converted.nested == expected.nested
    for name, layer in expected.layers.items():
        np.testing.assert_array_equal(converted.layers[name].merge_weights(), layer.merge_weights())
        if make is dora:
            np.testing.assert_array_equal(converted.magnitudes[name], expected.magnitudes[name])


@pytest.mark.parametrize("form", ["npz", "peft"])
def test_dylora_at_a_rank(tmp_path, run, fail, form):
    if form == "npz":
        save_layer(dylora(), tmp_path / "in")
    else:
        write_peft(tmp_path / "in", dylora())
    run("convert", tmp_path / "in", "-o", tmp_path / "out", "--rank", "2")
    converted = load_peft(tmp_path / "out")
    assert not converted.nested
    expected = dylora()["second"].lora_layer.merge_weights(rank=2)
    np.testing.assert_allclose(converted.delta("second"), expected, rtol=1e-14)
    message = fail("convert", tmp_path / "in", "-o", tmp_path / "x", "--rank", "3")
    assert message == f"{tmp_path / 'in'}: first: rank must be one of the active ranks [1, 2, 4], got 3"


@pytest.mark.parametrize("form", ["npz", "peft"])
def test_tasks(tmp_path, run, run_json, form):
    save_layer(multilora(), tmp_path / "model.npz")
    source = tmp_path / "model.npz"
    if form == "peft":
        run("convert", source, "-o", tmp_path / "folder")
        source = tmp_path / "folder"
    out = run("convert", source, "-o", tmp_path / "all")
    assert "french:\nlayer" in out
    assert out.endswith(": 2 adapters\n")
    assert sorted(os.listdir(tmp_path / "all")) == ["french", "german"]
    run("convert", source, "-o", tmp_path / "german", "--task", "german")
    for folder in ("all/german", "german"):
        layer = multilora()["first"].get_task_adapter("german")
        np.testing.assert_array_equal(load_peft(tmp_path / folder).delta("first"), layer.merge_weights())
    report = run_json("convert", source, "-o", tmp_path / "all", "--force")
    assert [adapter["name"] for adapter in report["adapters"]] == ["french", "german"]


def test_the_default_adapter_is_kept_beside_the_named_ones(tmp_path, run):
    write_peft(tmp_path / "in", weights(1))
    write_peft(tmp_path / "in" / "other", weights(2))
    run("convert", tmp_path / "in", "-o", tmp_path / "out")
    assert tree(tmp_path / "out").keys() == tree(tmp_path / "in").keys()
    np.testing.assert_array_equal(load_peft(tmp_path / "out").delta("first"), weights(1).delta("first"))


def test_configuration_entries_about_the_base_are_kept(tmp_path, run):
    run("convert", write_peft(tmp_path / "in", task_type="CAUSAL_LM"), "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_a_task_that_cannot_be_a_folder_name(tmp_path, run, fail):
    save_layer(multilora(("../escape", "b")), tmp_path / "model.npz")
    message = fail("convert", tmp_path / "model.npz", "-o", tmp_path / "out")
    assert message == f"{tmp_path / 'out'}: the task '../escape' cannot be the name of a folder; rename it"
    run("convert", tmp_path / "model.npz", "-o", tmp_path / "out", "--task", "../escape")
    assert sorted(os.listdir(tmp_path)) == ["model.npz", "out"]


def test_nothing_to_convert(tmp_path, fail):
    assert "no adapter found; expected " in fail("convert", tmp_path, "-o", tmp_path / "out")


def test_large_sizes_are_printed_in_full(tmp_path, run):
    source = AdapterWeights({"wide": LoRALayer(11008, 4, 1)})
    out = run("convert", write_peft(tmp_path / "in", source), "-o", tmp_path / "out")
    assert out.splitlines()[2].split() == ["wide", "11008", "4", "1", "1", "1"]


def test_a_failure_leaves_nothing(tmp_path, fail, monkeypatch):
    save_layer(multilora(), tmp_path / "model.npz")

    def failing(folder, *rest, **options):
        write_peft(folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "save_peft", failing)
    for output in (tmp_path / "out", tmp_path / "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        fail("convert", tmp_path / "model.npz", "-o", output, "--force")
        assert sorted(os.listdir(tmp_path)) == ["model.npz", "there"]
        assert os.listdir(tmp_path / "there") == []
