"""The loader: formats are detected from the content, and errors name the file and the key."""

import json
import zipfile

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, NotSupportedError, VeRAAdapter, apply_lora, save_layer
from lora_np.cli._adapters import at_rank, base_config, find_adapters, load_adapter
from lora_np.factors.weights import AdapterWeights
from lora_np.io.safetensors import SafetensorsFile, load_safetensors, save_safetensors
from tests.cli.toolbox import (
    base,
    dora,
    dylora,
    multilora,
    standard,
    weights,
    write_base,
    write_kohya,
    write_mlx,
    write_peft,
)


def write_npz(file, model=None):
    save_layer(standard() if model is None else model, file)
    return str(file)


SEVERAL = ": contains several adapters: french, german; choose one with --task$"
FORMATS = {
    "PEFT adapter": lambda place: write_peft(place / "adapter"),
    "kohya adapter": lambda place: write_kohya(place / "adapter.safetensors"),
    "mlx-lm adapter": lambda place: write_mlx(place / "adapter"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_detected_from_the_content(tmp_path, kind):
    path = FORMATS[kind](tmp_path)
    assert find_adapters(path).kind == kind
    loaded = load_adapter(path)
    assert list(loaded.layers) == ["first", "second"]
    for name, layer in weights().layers.items():
        np.testing.assert_allclose(loaded.delta(name), layer.merge_weights(), rtol=1e-15)


def test_an_npz_file_is_detected_from_its_content(tmp_path):
    path = write_npz(tmp_path / "no.ending")
    assert find_adapters(path).kind == "Sequential model in an npz file"
    np.testing.assert_array_equal(load_adapter(path).delta("second"), standard()["second"].lora_layer.merge_weights())


@pytest.mark.parametrize("kind", ["PEFT adapter", "mlx-lm adapter"])
def test_the_weights_file_of_a_folder_denotes_the_folder(tmp_path, kind, monkeypatch):
    path = FORMATS[kind](tmp_path)
    name = "adapter_model.safetensors" if kind == "PEFT adapter" else "adapters.safetensors"
    assert load_adapter(f"{path}/{name}").layers.keys() == {"first", "second"}
    monkeypatch.chdir(path)
    assert load_adapter(name).layers.keys() == {"first", "second"}


def test_layers_are_sorted_by_number(tmp_path):
    layer = weights().layers["first"]
    source = AdapterWeights({f"layers.{number}": layer for number in (10, 9, 0, 1, 100)})
    loaded = load_adapter(write_kohya(tmp_path / "a.safetensors", source))
    assert list(loaded.layers) == [f"layers.{number}" for number in (0, 1, 9, 10, 100)]


def test_a_checkpoint_and_an_empty_folder_contain_no_adapter(tmp_path):
    for path in (write_base(tmp_path / "model.safetensors"), str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert find_adapters(path) is None
        with pytest.raises(FormatError) as caught:
            load_adapter(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: no adapter found; expected a folder with ")
        for word in ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors", "lora_down", "npz"):
            assert word in message


def test_a_missing_file(tmp_path):
    with pytest.raises(ArgumentError, match=r"nowhere: no such file or folder$"):
        load_adapter(str(tmp_path / "nowhere"))


def test_named_adapters_of_peft(tmp_path):
    for seed, name in enumerate(("french", "german"), 1):
        write_peft(tmp_path / name, weights(seed))
    path = str(tmp_path)
    assert find_adapters(path).names == ("french", "german")
    np.testing.assert_array_equal(load_adapter(path, task="german").delta("first"), weights(2).delta("first"))
    with pytest.raises(ArgumentError, match=rf"^{path}{SEVERAL}"):
        load_adapter(path)
    with pytest.raises(ArgumentError, match=rf"^{path}: no adapter named 'dutch'; available: french, german$"):
        load_adapter(path, task="dutch")
    write_peft(tmp_path, weights(3))
    np.testing.assert_array_equal(load_adapter(path).delta("first"), weights(3).delta("first"))


def test_a_single_adapter_is_unnamed(tmp_path):
    for task in ("french", ""):
        with pytest.raises(ArgumentError, match=f"no adapter named '{task}'; the only adapter is unnamed$"):
            load_adapter(write_peft(tmp_path / "adapter"), task=task)


def test_tasks_of_a_model(tmp_path):
    path, model = write_npz(tmp_path / "tasks.npz", multilora()), multilora()
    assert find_adapters(path).names == ("french", "german")
    expected = model["first"].get_task_adapter("german").merge_weights()
    np.testing.assert_array_equal(load_adapter(path, task="german").delta("first"), expected)
    with pytest.raises(ArgumentError, match=rf"^{path}{SEVERAL}"):
        load_adapter(path)
    only = write_npz(tmp_path / "only.npz", multilora(("french",)))
    assert load_adapter(only).layers["first"].rank == 2


@pytest.mark.parametrize("scaling", ["max", "paper", "rslora"])
@pytest.mark.parametrize("form", ["npz", "peft"])
def test_dylora_at_a_rank(tmp_path, scaling, form):
    model = dylora(scaling=scaling)
    path = write_npz(tmp_path / "a.npz", model) if form == "npz" else write_peft(tmp_path / "a", model)
    whole = load_adapter(path)
    cut = at_rank(whole, 2, path)
    assert whole.nested["first"].current_deployment_rank == 2
    assert whole.layers["first"].rank == 4
    assert not cut.nested
    assert cut.layers["first"].rank == 2
    np.testing.assert_allclose(cut.delta("first"), model["first"].lora_layer.merge_weights(rank=2), rtol=1e-15)
    with pytest.raises(ArgumentError, match=rf"^{path}: first: rank must be one of the active ranks \[1, 2, 4\], got 3$"):
        at_rank(whole, 3, path)


def test_a_rank_requires_dylora(tmp_path):
    path = write_peft(tmp_path / "a")
    with pytest.raises(ArgumentError, match=f"^{path}: rank 2 requires DyLoRA layers, and the adapter has none$"):
        at_rank(load_adapter(path), 2, path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"active_ranks": [2, 1]}, "strictly ascending"),
        ({"active_ranks": 5}, "sequence of integers"),
        ({"active_ranks": [1, 2, 9], "current_deployment_rank": 2}, "at most max_rank = 4"),
        ({"current_deployment_rank": 3}, r"current_deployment_rank must be one of the active ranks \[1, 2, 4\], got 3$"),
        (
            {"current_deployment_rank": []},
            r"current_deployment_rank must be one of the active ranks \[1, 2, 4\], got \(\)$",
        ),
    ],
)
def test_dylora_settings_that_do_not_fit(tmp_path, settings, reason):
    folder = write_peft(tmp_path / "a", dylora())
    file = f"{folder}/adapter_model.safetensors"
    with SafetensorsFile(file) as stored:
        nested = json.loads(stored.metadata["lora_np"])
    nested["nested"]["first"] |= settings
    save_safetensors(file, load_safetensors(file), {"lora_np": json.dumps(nested)})
    with pytest.raises(FormatError, match=rf"^{file}: base_model.model.first: invalid DyLoRA settings: .*{reason}"):
        load_adapter(folder)


def test_unknown_keys_are_rejected_or_ignored(tmp_path):
    path = write_kohya(tmp_path / "a.safetensors", emb=np.ones(2))
    with pytest.raises(
        FormatError, match=rf"^{path}: unexpected key 'emb': not a LoRA factor; drop='emb' would leave it out$"
    ):
        load_adapter(path)
    assert load_adapter(path, drop=["emb"]).layers.keys() == {"first", "second"}


def test_errors_of_a_model_name_its_file(tmp_path):
    path = write_npz(tmp_path / "vera.npz", apply_lora(base(), lambda layer: VeRAAdapter(layer, 2, rng=0)))
    with pytest.raises(NotSupportedError, match=rf"^{path}: 'first': the branch of a VeRAAdapter"):
        load_adapter(path)
    path = write_npz(tmp_path / "base.npz", base())
    with pytest.raises(ArgumentError, match=rf"^{path}: model must have an adapter"):
        load_adapter(path)


def test_files_of_unsupported_formats(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x80\x02" + bytes(50))
    with pytest.raises(
        FormatError,
        match=rf"^{path}: unsupported format; expected a .*; adapter_model.bin is a pickle, .* convert it",
    ):
        load_adapter(str(path))
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"\x01")
    with pytest.raises(FormatError, match=rf"^{damaged}: a safetensors file must have at least 8 bytes, got 1$"):
        load_adapter(str(damaged))
    with zipfile.ZipFile(tmp_path / "torch.pt", "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(FormatError, match=rf"^{tmp_path / 'torch.pt'} is not a lora_np file: "):
        load_adapter(str(tmp_path / "torch.pt"))


def test_configuration_entries_about_the_base_are_kept_if_all_agree(tmp_path):
    one = load_adapter(write_peft(tmp_path / "a", base_model_name_or_path="base", task_type="CAUSAL_LM"))
    other = load_adapter(write_peft(tmp_path / "b", base_model_name_or_path="base", task_type="SEQ_CLS"))
    assert base_config(one) == {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM", "fan_in_fan_out": False}
    assert base_config(one, other) == {"base_model_name_or_path": "base", "fan_in_fan_out": False}
    assert base_config(one, weights()) == {}


def test_dora_is_loaded_with_its_magnitudes(tmp_path):
    loaded = load_adapter(write_npz(tmp_path / "dora.npz", dora()))
    assert loaded.magnitudes.keys() == {"first", "second"}
