"""An adapter of an image model merged into a diffusers pipeline: each component, and everything else copied."""

import json

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, LoRALayer, NotSupportedError
from lora_np.cli import main
from lora_np.factors.weights import AdapterWeights
from lora_np.io import merge_pipeline
from lora_np.io.pipelines import merge_parts
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.io.kinds import FOLDER, base_of, loaded, place

NAME = "kohya-pipeline"
OTHERS = {"model_index.json": "{}", "scheduler/config.json": "[]", "unet/config.json": "{}", "tokenizer/vocab.json": "{}"}
OLD = ("unet/diffusion_pytorch_model.bin", "sdxl.safetensors")
"""Weights that a merged pipeline must not have, for they are those before the merge."""

FILES = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.fp16.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def base(tmp_path):
    """A pipeline: a U-Net in shards, two text encoders, and what no adapter changes."""
    folder, parts = tmp_path / "base", {"vae": {"conv.weight": np.ones((2, 2))}}
    for key, tensor in load_safetensors(base_of(NAME)).items():
        component, _, inner = key.partition(".")
        parts.setdefault(component, {})[inner] = tensor
    for name in [*OTHERS, *OLD, *(f"{component}/x" for component in parts)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in OTHERS.items():
        (folder / name).write_text(text)
    for name in OLD:
        (folder / name).write_bytes(b"old")
    shards = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(parts["unet"])}
    for file in set(shards.values()):
        save_safetensors(folder / "unet" / file, {key: parts["unet"][key] for key in shards if shards[key] == file})
    (folder / "unet" / INDEX).write_text(json.dumps({"weight_map": shards}))
    for component, file in FILES.items():
        save_safetensors(folder / component / file, parts[component])
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_merged(folder, base, sources=None):
    """Every tensor is the expected one, or that of the base; every other file is the base's."""
    expected = load_safetensors(FOLDER / NAME / "expected.safetensors") if sources is None else sources
    before, after = files(base), files(folder)
    assert after.keys() == before.keys() - set(OLD)
    found = {}
    for name in before.keys() - set(OLD):
        if not name.endswith(".safetensors") or name.startswith("vae"):
            assert after[name] == before[name]
            continue
        component = name.partition("/")[0]
        old = load_safetensors(base / name)
        for key, tensor in load_safetensors(folder / name).items():
            found[f"{component}.{key}"] = tensor
            if f"{component}.{key}" not in expected:
                assert np.array_equal(tensor, old[key])
    for key, tensor in expected.items():
        assert np.abs(found[key] - tensor).max() <= 5e-7


def test_each_component_is_merged_and_the_rest_is_copied(tmp_path, base):
    seen = []
    merged = merge_pipeline(base, loaded(NAME), tmp_path / "out", threads=1, progress=lambda key, size: seen.append(key))
    assert_merged(tmp_path / "out", base)
    assert {tensor.file for tensor in merged} >= {"unet/part-0.safetensors", "text_encoder_2/model.fp16.safetensors"}
    assert {tensor.key for tensor in merged} <= set(seen)
    back = merge_pipeline(tmp_path / "out", loaded(NAME), tmp_path / "back", subtract=True)
    assert [tensor.key for tensor in back] == [tensor.key for tensor in merged]
    assert_merged(tmp_path / "back", base, load_safetensors(base_of(NAME)))


def test_the_command_line(tmp_path, capsys, base):
    adapter = str(place(NAME))
    assert main(["merge", str(base), adapter, "-o", str(tmp_path / "out"), "--verify"]) == 0
    out, err = capsys.readouterr()
    assert_merged(tmp_path / "out", base)
    assert out.endswith("changed, all verified\n")
    assert "text_encoder/model.safetensors" in out
    assert err.splitlines() == [f"lora-np: {base}: not copied: {name}, weights before the merge" for name in sorted(OLD)]
    assert main(["merge", str(base), adapter, "-o", str(tmp_path / "again"), "--report", "--weights-only"]) == 0
    assert "\nunet/" in capsys.readouterr().out
    assert {name.partition("/")[0] for name in files(tmp_path / "again")} == {"unet", "text_encoder", "text_encoder_2"}
    assert main(["merge", str(base), adapter, "-o", str(base), "--force"]) == 1
    assert capsys.readouterr().err.endswith("OUT must not be BASE\n")


def test_only_the_components_of_the_adapter_change(tmp_path, base):
    weights = AdapterWeights({"text_encoder.a": LoRALayer(4, 3, 2, rng=0)})
    save_safetensors(base / "text_encoder" / "model.safetensors", {"a.weight": np.ones((3, 4))})
    (base / "text_encoder" / "pytorch_model.bin").write_bytes(b"old")
    assert [part.place for part in merge_parts(base, weights)] == ["text_encoder/model.safetensors"]
    merge_pipeline(base, weights, tmp_path / "out")
    kept = files(base).keys() - {"text_encoder/pytorch_model.bin", "sdxl.safetensors"}
    assert files(tmp_path / "out").keys() == kept


def test_another_base_is_one_part(tmp_path):
    weights = AdapterWeights({"a": LoRALayer(4, 3, 2, rng=0)})
    save_safetensors(tmp_path / "model.safetensors", {"a.weight": np.ones((3, 4))})
    file = str(tmp_path / "model.safetensors")
    assert merge_parts(file, weights) == [(file, weights, "")]
    assert merge_parts(tmp_path, weights) == [(file, weights, "model.safetensors")]
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert merge_parts(tmp_path, weights) == [(str(tmp_path), weights, "")]


def test_refusals_leave_nothing(tmp_path, base):
    layer = {"unet.nowhere": LoRALayer(4, 3, 2, rng=0)}
    with pytest.raises(FormatError, match=r"no module has the name of 'unet.nowhere'"):
        merge_pipeline(base, AdapterWeights(layer), tmp_path / "out")
    with pytest.raises(NotSupportedError, match=r"'head.weight', which the adapter changes"):
        merge_pipeline(base, AdapterWeights({}, whole={"head.weight": np.ones(1)}), tmp_path / "out")
    with pytest.raises(FormatError, match=r"must be the folder of a diffusers pipeline, but has no model_index.json"):
        merge_pipeline(base / "unet", AdapterWeights(layer), tmp_path / "out")
    with pytest.raises(ArgumentError, match="adapter must be AdapterWeights"):
        merge_pipeline(base, layer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
