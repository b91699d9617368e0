"""The loader: every format is told by what is in it, and what is wrong is said with the file and the key."""

import json
import zipfile

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, NotSupportedError, VeRAAdapter, apply_lora, save_layer
from lora_np.cli._adapters import find_adapters, kept_config, load_adapter
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


FORMATS = {
    "PEFT adapter": lambda place: write_peft(place / "adapter"),
    "kohya adapter": lambda place: write_kohya(place / "adapter.safetensors"),
    "mlx-lm adapter": lambda place: write_mlx(place / "adapter"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_found_by_its_content(tmp_path, kind):
    path = FORMATS[kind](tmp_path)
    assert find_adapters(path).kind == kind
    loaded = load_adapter(path)
    assert list(loaded.layers) == ["first", "second"]
    for name, layer in weights().layers.items():
        np.testing.assert_allclose(loaded.delta(name), layer.merge_weights(), rtol=1e-15)


def test_an_npz_file_is_found_by_its_content(tmp_path):
    path = write_npz(tmp_path / "no.ending")
    assert find_adapters(path).kind == "adapters of a model in an npz file (Sequential)"
    np.testing.assert_array_equal(load_adapter(path).delta("second"), standard()["second"].lora_layer.merge_weights())


@pytest.mark.parametrize("kind", ["PEFT adapter", "mlx-lm adapter"])
def test_the_weights_of_a_folder_stand_for_the_folder(tmp_path, kind, monkeypatch):
    path = FORMATS[kind](tmp_path)
    name = "adapter_model.safetensors" if kind == "PEFT adapter" else "adapters.safetensors"
    assert load_adapter(f"{path}/{name}").layers.keys() == {"first", "second"}
    monkeypatch.chdir(path)
    assert load_adapter(name).layers.keys() == {"first", "second"}


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    layer = weights().layers["first"]
    source = AdapterWeights({f"layers.{number}": layer for number in (10, 9, 0, 1, 100)})
    loaded = load_adapter(write_kohya(tmp_path / "a.safetensors", source))
    assert list(loaded.layers) == [f"layers.{number}" for number in (0, 1, 9, 10, 100)]


def test_a_checkpoint_and_an_empty_folder_hold_no_adapter(tmp_path):
    for path in (write_base(tmp_path / "model.safetensors"), str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert find_adapters(path) is None
        with pytest.raises(FormatError) as caught:
            load_adapter(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: no adapter in it; looked for ")
        for word in ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors", "lora_down", "npz"):
            assert word in message


def test_nothing_there(tmp_path):
    with pytest.raises(ArgumentError, match=r"nowhere: there is no such file or folder$"):
        load_adapter(str(tmp_path / "nowhere"))


def test_named_adapters_of_peft(tmp_path):
    for seed, name in enumerate(("french", "german"), 1):
        write_peft(tmp_path / name, weights(seed))
    path = str(tmp_path)
    assert find_adapters(path).names == ("french", "german")
    np.testing.assert_array_equal(load_adapter(path, task="german").delta("first"), weights(2).delta("first"))
    with pytest.raises(ArgumentError, match=r"it holds the adapters french, german; choose one with --task$"):
        load_adapter(path)
    with pytest.raises(ArgumentError, match=r"it has no adapter 'dutch', but french, german$"):
        load_adapter(path, task="dutch")
    write_peft(tmp_path, weights(3))
    np.testing.assert_array_equal(load_adapter(path).delta("first"), weights(3).delta("first"))


def test_a_single_adapter_has_no_tasks(tmp_path):
    for task in ("french", ""):
        with pytest.raises(ArgumentError, match=f"it has no adapter '{task}', but one without a name$"):
            load_adapter(write_peft(tmp_path / "adapter"), task=task)


def test_tasks_of_a_model(tmp_path):
    path, model = write_npz(tmp_path / "tasks.npz", multilora()), multilora()
    assert find_adapters(path).names == ("french", "german")
    expected = model["first"].get_task_adapter("german").merge_weights()
    np.testing.assert_array_equal(load_adapter(path, task="german").delta("first"), expected)
    with pytest.raises(ArgumentError, match=r"tasks\.npz: it holds the adapters french, german; choose one with --task$"):
        load_adapter(path)
    only = write_npz(tmp_path / "only.npz", multilora(("french",)))
    assert load_adapter(only).layers["first"].rank == 2


@pytest.mark.parametrize("scaling", ["max", "paper", "rslora"])
@pytest.mark.parametrize("form", ["npz", "peft"])
def test_dylora_at_a_rank(tmp_path, scaling, form):
    model = dylora(scaling=scaling)
    path = write_npz(tmp_path / "a.npz", model) if form == "npz" else write_peft(tmp_path / "a", model)
    whole, cut = load_adapter(path), load_adapter(path, rank=2)
    assert whole.nested["first"]["current_deployment_rank"] == 2
    assert whole.layers["first"].rank == 4
    assert not cut.nested
    assert cut.layers["first"].rank == 2
    np.testing.assert_allclose(cut.delta("first"), model["first"].lora_layer.merge_weights(rank=2), rtol=1e-15)
    with pytest.raises(ArgumentError, match=rf"{path}: first: rank must be one of its active ranks \[1, 2, 4\], got 3$"):
        load_adapter(path, rank=3)


def test_a_rank_needs_dylora(tmp_path):
    path = write_peft(tmp_path / "a")
    with pytest.raises(ArgumentError, match=f"{path}: it has no DyLoRA layer to take at rank 2$"):
        load_adapter(path, rank=2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"active_ranks": [2, 1]}, "strictly ascending"),
        ({"active_ranks": 5}, "sequence of integers"),
        ({"active_ranks": [1, 9]}, "at most max_rank = 4"),
        ({"current_deployment_rank": 3}, r"the deployment rank must be one of \[1, 2, 4\]"),
        ({"current_deployment_rank": []}, r"the deployment rank must be one of \[1, 2, 4\]"),
    ],
)
def test_dylora_settings_that_do_not_fit(tmp_path, settings, reason):
    folder = write_peft(tmp_path / "a", dylora())
    file = f"{folder}/adapter_model.safetensors"
    with SafetensorsFile(file) as stored:
        nested = json.loads(stored.metadata["lora_np"])
    nested["nested"]["first"] |= settings
    save_safetensors(file, load_safetensors(file), {"lora_np": json.dumps(nested)})
    with pytest.raises(FormatError, match=rf"^{folder}: first: its DyLoRA settings are damaged: .*{reason}"):
        load_adapter(folder)


def test_unknown_keys_are_refused_or_left_out(tmp_path):
    path = write_kohya(tmp_path / "a.safetensors", emb=np.ones(2))
    with pytest.raises(FormatError, match=rf"^{path}: the key 'emb' is no LoRA factor; --lenient leaves such keys out$"):
        load_adapter(path)
    assert load_adapter(path, strict=False).layers.keys() == {"first", "second"}


def test_errors_of_a_model_name_its_file(tmp_path):
    path = write_npz(tmp_path / "vera.npz", apply_lora(base(), lambda layer: VeRAAdapter(layer, 2, rng=0)))
    with pytest.raises(NotSupportedError, match=rf"^{path}: 'first': the branch of a VeRAAdapter"):
        load_adapter(path)
    path = write_npz(tmp_path / "base.npz", base())
    with pytest.raises(ArgumentError, match=rf"^{path}: model must have an adapter"):
        load_adapter(path)


def test_files_of_no_known_format(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x80\x02" + bytes(50))
    with pytest.raises(
        FormatError, match=rf"^{path}: no format that lora_np reads; looked for .*; pickles are never read$"
    ):
        load_adapter(str(path))
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"\x01")
    with pytest.raises(FormatError, match=rf"^{damaged}: a safetensors file has at least 8 bytes"):
        load_adapter(str(damaged))
    with zipfile.ZipFile(tmp_path / "torch.pt", "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(FormatError, match=rf"^{tmp_path / 'torch.pt'} is not a lora_np file: "):
        load_adapter(str(tmp_path / "torch.pt"))


def test_what_a_configuration_says_of_the_base_is_kept_where_all_agree(tmp_path):
    one = load_adapter(write_peft(tmp_path / "a", base_model_name_or_path="base", task_type="CAUSAL_LM"))
    other = load_adapter(write_peft(tmp_path / "b", base_model_name_or_path="base", task_type="SEQ_CLS"))
    assert kept_config(one) == {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM", "fan_in_fan_out": False}
    assert kept_config(one, other) == {"base_model_name_or_path": "base", "fan_in_fan_out": False}
    assert kept_config(one, weights()) == {}


def test_dora_is_read_whole(tmp_path):
    loaded = load_adapter(write_npz(tmp_path / "dora.npz", dora()))
    assert loaded.magnitudes.keys() == {"first", "second"}
