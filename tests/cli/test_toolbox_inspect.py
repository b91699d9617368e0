"""``inspect``: the numbers equal those of the dense update in every format; checkpoints; and the plot."""

import json
import sys
import warnings

import numpy as np
import pytest

from lora_np import DenseLayer, LoRALayer, Sequential, StandardLoRAAdapter, apply_lora, save_layer
from lora_np.cli import main
from lora_np.factors.surgery import effective_rank
from lora_np.factors.weights import AdapterWeights
from lora_np.io.peft import save_peft
from lora_np.io.safetensors import save_safetensors
from tests.cli.toolbox import (
    dora,
    dylora,
    multilora,
    standard,
    weights,
    write_base,
    write_kohya,
    write_mlx,
    write_peft,
    write_shards,
)
from tests.io.kinds import FOLDER

PNG, SVG = b"\x89PNG\r\n", b"<?xml"


def test_the_table_of_an_adapter(tmp_path, run):
    out = run("inspect", write_peft(tmp_path / "adapter"))
    lines = out.splitlines()
    assert lines[0] == f"{tmp_path / 'adapter'}: PEFT adapter"
    assert " ".join(lines[2].split()) == "layer in out rank alpha scaling |A| |B| |dW| effective rank energy at r/2"
    assert lines[4].split()[:6] == ["first", "6", "5", "3", "6", "2"]
    assert lines[5].split()[:6] == ["second", "5", "4", "3", "6", "2"]
    assert "2 layers, 60 parameters, 480 bytes (F64)" in lines
    assert "Frobenius" in out


@pytest.mark.parametrize("write", [write_peft, write_kohya, write_mlx])
def test_the_numbers_equal_those_of_the_dense_update(tmp_path, run_json, write):
    source = weights(rank=4)
    report = run_json("inspect", write(tmp_path / "adapter", source))
    (adapter,) = report["adapters"]
    assert adapter["name"] == ""
    assert adapter["parameters"] == source.parameter_count
    for layer in adapter["layers"]:
        dense = source.delta(layer["path"])
        sigma = np.linalg.svd(dense, compute_uv=False)[:4]
        np.testing.assert_allclose(layer["singular_values"], sigma, rtol=1e-12)
        assert layer["norm"] == pytest.approx(np.linalg.norm(dense), rel=1e-12)
        assert layer["norm_a"] == pytest.approx(np.linalg.norm(source.layers[layer["path"]].matrix_a))
        assert layer["norm_b"] == pytest.approx(np.linalg.norm(source.layers[layer["path"]].matrix_b))
        assert layer["half_rank"] == 2
        assert layer["energy_at_half_rank"] == pytest.approx((sigma[:2] ** 2).sum() / (sigma**2).sum())
        assert layer["effective_rank"] == pytest.approx(effective_rank(sigma))
        assert (layer["alpha"], layer["scaling"]) == (6, 1.5)


def test_the_bytes_are_those_of_the_file(tmp_path, run_json):
    tensors = {
        "base_model.model.first.lora_A.weight": np.ones((2, 6)),
        "base_model.model.first.lora_B.weight": np.ones((5, 2)),
    }
    folder = write_peft(tmp_path / "a", AdapterWeights({"first": LoRALayer(6, 5, 2)}))
    save_safetensors(f"{folder}/adapter_model.safetensors", tensors, dtypes=dict.fromkeys(tensors, "BF16"))
    (adapter,) = run_json("inspect", folder)["adapters"]
    assert (adapter["parameters"], adapter["bytes"], adapter["dtypes"]) == (22, 44, ["BF16"])


def test_a_model_in_an_npz_file(tmp_path, run, run_json):
    save_layer(standard(), tmp_path / "model.npz")
    out = run("inspect", tmp_path / "model.npz")
    assert out.startswith(f"{tmp_path / 'model.npz'}: Sequential model in an npz file\n")
    assert "2 layers, 60 parameters, 480 bytes (F64)" in out
    assert len(run_json("inspect", tmp_path / "model.npz")["adapters"]) == 1


def test_layers_of_a_model_are_in_its_order_and_those_of_a_file_by_path(tmp_path, run_json):
    layers = {name: DenseLayer(3, 3, rng=0) for name in ("b10", "b9", "a")}
    model = apply_lora(Sequential(layers), lambda layer: StandardLoRAAdapter(layer, 1, rng=0))
    save_layer(model, tmp_path / "model.npz")
    for place, order in ((tmp_path / "model.npz", list(layers)), (write_peft(tmp_path / "a", model), ["a", "b9", "b10"])):
        assert [layer["path"] for layer in run_json("inspect", place)["adapters"][0]["layers"]] == order


def test_every_task_has_a_table(tmp_path, run, run_json):
    save_layer(multilora(), tmp_path / "model.npz")
    out = run("inspect", tmp_path / "model.npz")
    assert "\nfrench:\nlayer " in out
    assert "\ngerman:\nlayer " in out
    save_peft(tmp_path / "tasks", multilora())
    for path in (tmp_path / "model.npz", tmp_path / "tasks"):
        report = run_json("inspect", path)
        assert [adapter["name"] for adapter in report["adapters"]] == ["french", "german"]
        assert [adapter["layers"][0]["rank"] for adapter in report["adapters"]] == [2, 3]


def test_dylora_settings_are_shown(tmp_path, run, run_json):
    folder = write_peft(tmp_path / "a", dylora())
    assert (
        "DyLoRA (2 layers): active ranks 1, 2, 4 with probabilities 0.3333, 0.3333, 0.3333; deployment rank 2; "
        "mode full; scaling max\n"
    ) in run("inspect", folder)
    assert run_json("inspect", folder)["adapters"][0]["layers"][0]["dylora"]["active_ranks"] == [1, 2, 4]
    model = dylora()
    model["first"].set_deployment_rank(4)
    out = run("inspect", write_peft(tmp_path / "b", model))
    assert "DyLoRA (first): active ranks" in out
    assert "DyLoRA (second): active ranks" in out


def test_dora_is_shown(tmp_path, run, run_json):
    folder = write_peft(tmp_path / "a", dora())
    assert "DoRA (2 layers): the rows of weight + dW are rescaled to trained norms\n" in run("inspect", folder)
    layer = run_json("inspect", folder)["adapters"][0]["layers"][0]
    assert layer["norm_magnitude"] == pytest.approx(np.linalg.norm(dora()["first"].magnitude))
    single = dora()["first"]
    save_layer(single, tmp_path / "single.npz")
    assert "1 layer, " in run("inspect", tmp_path / "single.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_nonfinite_updates_are_shown_as_nan(tmp_path, run, run_json, value):
    source = weights()
    source.layers["first"].matrix_a[0, 0] = value
    source.layers["first"].matrix_b[:] *= 1e200
    folder = write_peft(tmp_path / "a", source)
    assert [line.split()[8:] for line in run("inspect", folder).splitlines() if line.startswith("first")] == [
        ["nan", "nan", "nan", "%"]
    ]
    first, second = run_json("inspect", folder)["adapters"][0]["layers"]
    assert first["norm"] is None
    assert first["singular_values"] == [None] * 3
    assert second["norm"] > 0


def test_a_norm_too_large_for_float64(tmp_path, run_json):
    folder = write_peft(tmp_path / "a", weights(alpha=1e308))
    for layer in run_json("inspect", folder)["adapters"][0]["layers"]:
        assert (layer["norm"], layer["effective_rank"], layer["energy_at_half_rank"]) == (None, None, None)


def test_an_adapter_that_does_nothing(tmp_path, run_json):
    folder = write_peft(tmp_path / "a", AdapterWeights({"first": LoRALayer(6, 5, 2, rng=0)}))
    (layer,) = run_json("inspect", folder)["adapters"][0]["layers"]
    assert (layer["norm"], layer["effective_rank"], layer["energy_at_half_rank"]) == (0, 0, 1)


def test_names_cannot_control_the_terminal(tmp_path, run):
    layer = weights().layers["first"]
    out = run("inspect", write_kohya(tmp_path / "a.safetensors", AdapterWeights({"a\x1b[2Jb": layer})))
    assert r"a\x1b[2Jb " in out
    assert "\x1b" not in out


def test_drop_leaves_out_unknown_keys(tmp_path, capsys, fail):
    path = write_kohya(tmp_path / "a.safetensors", emb=np.ones(2))
    message = f"{path}: unexpected key 'emb': not a LoRA factor; --drop 'emb' would leave it out"
    assert fail("convert", path, "-o", tmp_path / "out") == message
    assert main(["inspect", path, "--drop", "e*", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"lora-np: {path}: dropped emb\n"
    report = json.loads(captured.out)["adapters"][0]
    assert report["dropped"] == ["emb"]
    assert len(report["layers"]) == 2


# ---------------------------------------------------------------- checkpoints


def test_tensors_of_a_file(tmp_path, run, run_json):
    path = write_base(tmp_path / "model.safetensors", "BF16")
    out = run("inspect", path)
    assert out.startswith(f"{path}: safetensors checkpoint\n\ntensor ")
    assert [line.split() for line in out.splitlines()[4:8]] == [
        ["first.weight", "BF16", "5", "x", "6", "60"],
        ["norm.weight", "BF16", "3", "6"],
        ["second.weight", "BF16", "4", "x", "5", "40"],
        ["step", "I64", "scalar", "8"],
    ]
    assert out.endswith("4 tensors, 54 elements, 114 bytes\n")
    assert run_json("inspect", path)["tensors"][0] == {
        "name": "first.weight",
        "file": "model.safetensors",
        "dtype": "BF16",
        "shape": [5, 6],
        "bytes": 60,
        "parameters": 30,
    }


def test_tensors_of_shards(tmp_path, run, run_json):
    folder = write_shards(tmp_path / "model")
    out = run("inspect", folder)
    assert out.splitlines()[2].split() == ["tensor", "file", "dtype", "shape", "bytes"]
    assert "model-00002-of-00002.safetensors" in out
    for path in (folder, f"{folder}/model.safetensors.index.json"):
        assert len(run_json("inspect", path)["tensors"]) == 4


def test_a_folder_of_one_file(tmp_path, run_json):
    write_base(tmp_path / "model.safetensors")
    assert len(run_json("inspect", tmp_path)["tensors"]) == 4


def test_the_error_for_other_folders_names_what_was_expected(tmp_path, fail):
    message = fail("inspect", tmp_path)
    assert message.startswith(f"{tmp_path}: no adapter or checkpoint found; expected a folder with adapter_config.json ")
    assert message.endswith("; or a checkpoint with model.safetensors or model.safetensors.index.json")
    assert fail("inspect", tmp_path / "none") == f"{tmp_path / 'none'}: no such file or folder"
    assert str(tmp_path / "x.json") in fail("inspect", tmp_path / "x.json")


def test_a_configuration_without_weights(tmp_path, fail):
    folder = write_peft(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    assert fail("inspect", folder) == f"{folder}: contains no adapter_model.safetensors"


# ---------------------------------------------------------------- plots


@pytest.mark.parametrize(("name", "start"), [("spectra.png", PNG), ("spectra.svg", SVG), ("SPECTRA.SVG", SVG)])
def test_a_plot(tmp_path, run, name, start):
    folder = write_peft(tmp_path / "a")
    run("inspect", folder, "--plot", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_equal_spectra_give_equal_plots(tmp_path, run):
    folder, file = write_peft(tmp_path / "a"), tmp_path / "spectra.svg"
    plots = []
    for _ in range(2):
        run("inspect", folder, "--plot", file)
        plots.append(file.read_bytes())
    assert plots[0] == plots[1]


def test_a_plot_names_tasks_and_layers(tmp_path, run):
    save_layer(multilora(), tmp_path / "model.npz")
    run("inspect", tmp_path / "model.npz", "--plot", tmp_path / "spectra.svg")
    text = (tmp_path / "spectra.svg").read_text()
    for label in ("french: first", "german: second", "component", "singular value"):
        assert f"<!-- {label}" in text


def test_a_plot_of_many_layers_names_some_of_them(tmp_path, run):
    layer = weights().layers["first"]
    folder = write_peft(tmp_path / "a", AdapterWeights({f"layers.{number}": layer for number in range(50)}))
    run("inspect", folder, "--plot", tmp_path / "spectra.svg")
    text = (tmp_path / "spectra.svg").read_text()
    assert "<!-- 20 of 50 layers named -->" in text
    assert "<!-- layers.0 -->" in text
    assert "<!-- layers.49 -->" in text


def test_a_plot_of_awkward_names_and_numbers(tmp_path, run, monkeypatch):
    values = weights()
    values.layers["first"].matrix_a[0, 0] = np.nan
    layers = {
        "_hidden": values.layers["first"],
        "$x": values.layers["second"],
        "zero": LoRALayer(4, 4, 2),
        "層": LoRALayer(3, 3, 1),
    }
    run("inspect", write_peft(tmp_path / "a", AdapterWeights(layers)), "--plot", tmp_path / "spectra.svg")
    text = (tmp_path / "spectra.svg").read_text()
    assert "<!--  _hidden -->" in text or "<!-- _hidden -->" in text
    assert "x -->" in text
    only_zero = AdapterWeights({"zero": LoRALayer(4, 4, 2)})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run("inspect", write_peft(tmp_path / "b", only_zero), "--plot", tmp_path / "zero.png")
    assert not seen
    assert (tmp_path / "zero.png").read_bytes().startswith(PNG)


def test_a_single_layer_without_a_path_has_a_label(tmp_path, run):
    save_layer(standard()["first"], tmp_path / "layer.npz")
    run("inspect", tmp_path / "layer.npz", "--plot", tmp_path / "spectra.svg")
    assert "<!-- (the layer itself) -->" in (tmp_path / "spectra.svg").read_text()


def test_a_plot_without_matplotlib(tmp_path, fail, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = fail("inspect", write_peft(tmp_path / "a"), "--plot", tmp_path / "spectra.png")
    assert message == '--plot requires matplotlib: pip install "lora_np[plot]"'
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_plot_requires_an_adapter_a_known_extension_and_a_folder(tmp_path, fail, misuse):
    path = write_base(tmp_path / "model.safetensors")
    message = fail("inspect", path, "--plot", tmp_path / "x.png")
    assert message == f"{path}: --plot requires an adapter, and this is a checkpoint"
    assert misuse("inspect", path, "--plot", "x.pdf").endswith("argument --plot: must end in .png or .svg, got 'x.pdf'")
    folder = write_peft(tmp_path / "a")
    place = tmp_path / "none" / "x.png"
    assert fail("inspect", folder, "--plot", place) == f"{place}: the folder {tmp_path / 'none'} does not exist"


# ---------------------------------------------------------------- what files say about themselves


def test_the_base_the_task_the_dropout_and_the_metadata(tmp_path, run, run_json):
    config = {"base_model_name_or_path": "some/base", "task_type": "CAUSAL_LM", "lora_dropout": 0.05}
    adapter = write_peft(tmp_path / "a", **config)
    lines = run("inspect", adapter).splitlines()
    assert lines[2:5] == ["base model: some/base", "task type: CAUSAL_LM", "dropout: 0.05"]
    (report,) = run_json("inspect", adapter)["adapters"]
    assert (report["base_model"], report["task_type"], report["dropout"]) == ("some/base", "CAUSAL_LM", 0.05)
    assert report["metadata"]["format"] == "pt"


def test_metadata_is_shown_in_bounded_length_and_cannot_control_the_terminal(tmp_path, run, run_json):
    said = {"format": "pt", "title": "a\x1b[31mb", "tags": "x" * 1000}
    save_safetensors(tmp_path / "a.safetensors", {"w": np.ones(2)}, said)
    out = run("inspect", tmp_path / "a.safetensors")
    assert out.endswith(f"\nmetadata:\n  tags: {'x' * 80}... (1,000 characters)\n  title: a\\x1b[31mb\n")
    assert run_json("inspect", tmp_path / "a.safetensors")["metadata"] == said


# ---------------------------------------------------------------- by module


def blocks():
    paths = [f"layers.{number}.{name}" for number in (0, 1, 10) for name in ("up", "down")]
    sizes = {"up": (3, 5), "down": (5, 3)}
    return AdapterWeights({path: random_layer(seed, *sizes[path[9:].strip(".")]) for seed, path in enumerate(paths)})


def random_layer(seed, inputs, outputs):
    rng, rank = np.random.default_rng(seed), 1 + seed // 2
    return LoRALayer.from_factors(rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs)))


def test_by_module(tmp_path, run, run_json):
    adapter = write_peft(tmp_path / "a", blocks())
    lines = [line.split() for line in run("inspect", adapter, "--by-module").splitlines()]
    assert lines[2][:4] == ["module", "layers", "parameters", "rank"]
    assert [line[:4] for line in lines[4:6]] == [["layers.*.down", "3", "48", "1..3"], ["layers.*.up", "3", "48", "1..3"]]
    (report,) = run_json("inspect", adapter, "--by-module")["adapters"]
    ups = [layer for layer in report["layers"] if layer["path"].endswith("up")]
    first = report["modules"][1]
    assert (first["module"], first["layers"], first["ranks"]) == ("layers.*.up", 3, [1, 2, 3])
    assert first["norm"] == pytest.approx(np.sqrt(np.mean([layer["norm"] ** 2 for layer in ups])))
    assert first["largest_norm"] == max(layer["norm"] for layer in ups)
    for name in ("effective_rank", "energy_at_half_rank"):
        assert first[name] == pytest.approx(np.mean([layer[name] for layer in ups]))
    one = write_peft(tmp_path / "one", AdapterWeights({"up": random_layer(2, 3, 5)}))
    assert run("inspect", one, "--by-module").splitlines()[4].split()[:4] == ["up", "1", "16", "2"]
    assert "modules" not in run_json("inspect", adapter)["adapters"][0]


# ---------------------------------------------------------------- several


def test_several_paths(tmp_path, run, run_json):
    paths = [write_peft(tmp_path / "a"), write_kohya(tmp_path / "b.safetensors"), write_base(tmp_path / "base.safetensors")]
    out = run("inspect", *paths)
    for path in paths[:2]:
        assert run("inspect", path) in out
    rows = [line.split() for line in out.splitlines()[-3:]]
    assert [row[0] for row in rows] == paths
    assert rows[0][1:] == ["PEFT", "adapter", "2", "3", "60"]
    assert rows[2][1:] == ["checkpoint", "4", "tensors", "54"]
    reports = run_json("inspect", *paths)
    assert reports == [run_json("inspect", path) for path in paths]


def test_a_damaged_file_does_not_hide_the_others(tmp_path, capsys):
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 20)
    good = write_peft(tmp_path / "good", standard(2))
    for options in ([], ["--json"]):
        assert main(["inspect", str(tmp_path / "bad.safetensors"), good, *options]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(f"lora-np: error: {tmp_path / 'bad.safetensors'}: ")
        assert captured.err.count("\n") == 1
        assert f"{good}" in captured.out
        assert ("damaged or unknown" in captured.out) == (not options)
    bad, _ = json.loads(captured.out)
    assert bad["kind"] is None
    assert bad["error"].startswith(f"{tmp_path / 'bad.safetensors'}: ")


def test_a_folder_and_its_subfolders(tmp_path, run, run_json):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_peft(tmp_path / "a2")
    write_peft(tmp_path / "a10", blocks(), base_model_name_or_path="b")
    save_peft(tmp_path / "deep" / "tasks", multilora())
    write_kohya(tmp_path / "deep" / "er" / "k.safetensors")
    save_layer(standard(), tmp_path / "deep" / "er" / "m.npz")
    write_mlx(tmp_path / "deep" / "mlx")
    write_shards(tmp_path / "deep" / "shards")
    (tmp_path / "README.md").write_text("nothing")
    found = [str(tmp_path / name) for name in ("a2", "a10", "deep/er/k.safetensors", "deep/er/m.npz", "deep/mlx")]
    found += [str(tmp_path / "deep" / name) for name in ("shards", "tasks/french", "tasks/german")]
    reports = run_json("inspect", "-r", tmp_path)
    assert [report["path"] for report in reports] == found
    rows = [line.split() for line in run("inspect", "--recursive", tmp_path).splitlines()[2:]]
    assert [row[0] for row in rows] == found
    assert rows[1][1:] == ["PEFT", "adapter", "b", "6", "1..3", "96"]
    one = write_kohya(tmp_path / "one.safetensors")
    assert [report["path"] for report in run_json("inspect", "-r", tmp_path / "deep" / "mlx", one)] == [found[4], one]


def test_a_folder_without_anything(tmp_path, fail, misuse):
    assert fail("inspect", "-r", tmp_path).startswith(f"{tmp_path}: no adapter or checkpoint found; expected ")
    assert "--plot requires a single PATH" in misuse("inspect", "a", "b", "--plot", "p.svg")


def test_experts_are_layers_whose_parameters_only_a_base_tells_apart(run, run_json):
    out = run("inspect", FOLDER / "peft-experts")
    assert "experts (9 layers): only the shapes of a base tell which parameter of a module is which" in out
    layers = {layer["path"]: layer for layer in run_json("inspect", FOLDER / "peft-experts")["adapters"][0]["layers"]}
    assert layers["layers.0.down_proj.1"]["experts"] == 2
    assert "experts" not in layers["up"]
