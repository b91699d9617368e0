"""Checkpoints in folders: what is read, what is mapped and not copied, and what is refused by name."""

import contextlib
import json
import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import lora_np
from lora_np import (
    FormatError,
    InvalidOperationError,
    NotSupportedError,
    StandardLoRAAdapter,
    apply_lora,
    load_pretrained,
    merge_in_place,
)
from lora_np.io.safetensors import load_safetensors, save_safetensors

TINY = Path(__file__).parents[1] / "models" / "data" / "bert"
IDS = [[3, 1, 4], [1, 5, -1]]
WORD = "embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path / name)
    return tmp_path


def edit_config(folder, **entries):
    config = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def tensors(folder):
    return {name: array.copy() for name, array in load_safetensors(folder / "model.safetensors").items()}


def edit_tensors(folder, change):
    arrays = tensors(folder)
    change(arrays)
    save_safetensors(folder / "model.safetensors", arrays)


# ---------------------------------------------------------------- reading


def test_arrays_have_the_names_and_bytes_of_the_file():
    model, stored = load_pretrained(TINY), tensors(TINY)
    arrays = model.named_parameters(frozen=True)
    assert set(arrays) <= set(stored)
    for name, array in arrays.items():
        assert array.tobytes() == stored[name].tobytes()
    assert not model.is_training
    assert load_pretrained(str(TINY), dtype=np.float64).predict(IDS).dtype == np.float64


def test_float32_arrays_are_the_file_and_not_a_copy():
    for name, array in load_pretrained(TINY).named_parameters(frozen=True).items():
        owner = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner.obj, mmap.mmap), name
        assert not array.flags.writeable, name


def test_mapped_arrays_train_after_unpack_only():
    model = load_pretrained(TINY)
    model.forward(IDS)
    model.backward(np.ones((2, 3, 16)))
    with pytest.raises(InvalidOperationError, match=r"is packed.*unpack\(\) first"):
        model.update_parameters(0.1)
    before = model.predict(IDS)
    model.unpack()
    model.forward(IDS)
    model.backward(np.ones((2, 3, 16)))
    model.update_parameters(0.1)
    assert (model.predict(IDS) != before).any()
    assert_array_equal(load_pretrained(TINY).predict(IDS), before)


def test_an_adapted_and_merged_model_leaves_the_file_as_it_is():
    before = (TINY / "model.safetensors").read_bytes()
    model = apply_lora(load_pretrained(TINY), StandardLoRAAdapter, rank=2, targets=["query"], rng=0)
    expected = model.pack("max").predict(IDS)
    for adapter in lora_np.find(model, StandardLoRAAdapter).values():
        adapter.lora_layer.matrix_b[...] = 0.1
    assert (model.predict(IDS) != expected).any()
    expected = model.predict(IDS)
    merge_in_place(model)
    np.testing.assert_allclose(model.predict(IDS), expected, rtol=1e-4, atol=1e-5)
    assert (TINY / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["BF16", "F16", "F64"])
def test_other_types_are_converted(folder, kind):
    arrays = tensors(folder)
    if kind == "BF16":
        save_safetensors(folder / "model.safetensors", arrays, dtypes=dict.fromkeys(arrays, "BF16"))
    else:
        dtype = np.float16 if kind == "F16" else np.float64
        save_safetensors(folder / "model.safetensors", {name: array.astype(dtype) for name, array in arrays.items()})
    model = load_pretrained(folder)
    assert {array.dtype.name for array in model.named_parameters(frozen=True).values()} == {"float32"}
    np.testing.assert_allclose(model.predict(IDS), load_pretrained(TINY).predict(IDS), atol=0.1 if kind == "BF16" else 0.02)


def test_a_prefix_and_the_tensors_of_heads_are_no_obstacle(folder):
    def change(arrays):
        for name in list(arrays):
            arrays[f"bert.{name}"] = arrays.pop(name)
        arrays["classifier.weight"] = np.ones((2, 16), np.float32)
        arrays["cls.predictions.bias"] = np.ones(50, np.float32)
        arrays["bert.embeddings.position_ids"] = np.arange(12)[np.newaxis]

    edit_tensors(folder, change)
    assert_array_equal(load_pretrained(folder).predict(IDS), load_pretrained(TINY).predict(IDS))


def test_a_checkpoint_in_several_files(folder):
    arrays = tensors(folder)
    names = sorted(arrays)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, own in shards.items():
        save_safetensors(folder / shard, {name: arrays[name] for name in own})
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_array_equal(load_pretrained(folder).predict(IDS), load_pretrained(TINY).predict(IDS))
    (folder / next(iter(shards))).unlink()
    with pytest.raises(FormatError, match=r"model-00001-of-00002\.safetensors: no such file"):
        load_pretrained(folder)


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (
            {"model_type": "roberta"},
            NotSupportedError,
            "model_type must be one of bert, gpt2, llama, mistral, smollm, got 'roberta'",
        ),
        ({"model_type": ...}, NotSupportedError, "model_type must be one of bert, .*, got None"),
        ({"hidden_act": "relu"}, NotSupportedError, "hidden_act must be 'gelu', got 'relu'"),
        ({"position_embedding_type": "relative_key"}, NotSupportedError, "position_embedding_type must be 'absolute'"),
        ({"is_decoder": True}, NotSupportedError, "is_decoder must be False, got True"),
        ({"hidden_size": "16"}, FormatError, "hidden_size must be a positive integer, got '16'"),
        ({"num_hidden_layers": True}, FormatError, "num_hidden_layers must be a positive integer, got True"),
        ({"vocab_size": ...}, FormatError, "vocab_size must be a positive integer, got None"),
        ({"intermediate_size": 0}, FormatError, "intermediate_size must be a positive integer, got 0"),
        ({"num_attention_heads": 3}, FormatError, "hidden_size must be a multiple of num_attention_heads"),
        ({"layer_norm_eps": -1}, FormatError, "layer_norm_eps must be between 0 and 1, got -1"),
        ({"hidden_size": 20}, FormatError, r"word_embeddings\.weight must be floating-point of shape \(50, 20\)"),
        ({"num_hidden_layers": 3}, FormatError, r"the tensor 'encoder\.layer\.2.*' is missing"),
        ({"num_hidden_layers": 1}, FormatError, r"unexpected tensor 'encoder\.layer\.1.*strict=False ignores"),
        ({"num_hidden_layers": 10**12}, FormatError, r"the tensor 'encoder\.layer\.2.*' is missing"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_means_something_else(folder, entries, error, message):
    edit_config(folder, **entries)
    with pytest.raises(error, match=message):
        load_pretrained(folder)


def test_other_tensors_may_be_ignored(folder):
    edit_tensors(folder, lambda arrays: arrays.update(adapter=np.ones(3, np.float32)))
    with pytest.raises(FormatError, match="unexpected tensor 'adapter'"):
        load_pretrained(folder)
    assert_array_equal(load_pretrained(folder, strict=False).predict(IDS), load_pretrained(TINY).predict(IDS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop(WORD), f"the tensor '{WORD}' is missing"),
        (lambda arrays: arrays.update({WORD: arrays[WORD].T.copy()}), r"must be floating-point of shape \(50, 16\), got"),
        (lambda arrays: arrays.update({WORD: arrays[WORD].astype(np.int64)}), "must be floating-point .* got int64"),
    ],
    ids=["missing", "transposed", "integers"],
)
def test_a_tensor_that_does_not_fit(folder, change, message):
    edit_tensors(folder, change)
    with pytest.raises(FormatError, match=message):
        load_pretrained(folder)


def test_a_tensor_that_occurs_twice(folder):
    arrays = tensors(folder)
    save_safetensors(folder / "model.safetensors", arrays | {f"bert.{WORD}": arrays[WORD]})
    with pytest.raises(FormatError, match=f"the tensor '{WORD}' occurs twice"):
        load_pretrained(folder)
    save_safetensors(folder / "model.safetensors", arrays)
    save_safetensors(folder / "more.safetensors", {WORD: 2 * arrays[WORD]})
    index = {"weight_map": dict.fromkeys(arrays, "model.safetensors") | {WORD: "more.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=f"the tensor '{WORD}' occurs twice"):
        load_pretrained(folder)


def test_files_that_are_not_there(tmp_path, folder):
    with pytest.raises(FormatError, match=r"config\.json: no such file; a pretrained model is a folder"):
        load_pretrained(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"model\.safetensors: no such file"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "invalid JSON"), ("[]", "must contain an object"), ("[" * 100_000, "invalid JSON")],
    ids=["cut", "list", "deep"],
)
def test_a_configuration_that_is_damaged(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(FormatError, match=rf"config\.json: {message}"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not a valid index"),
        ("{}", "not a valid index"),
        ('{"weight_map": {"a": 3}}', "not a valid index|files must be in the folder"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "files must be in the folder of the index"),
    ],
)
def test_an_index_that_is_damaged(folder, index, message):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FormatError, match=message):
        load_pretrained(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_of_the_configuration_is_an_error_of_the_format_or_harmless(folder, data):
    config = json.loads((TINY / "config.json").read_text())
    name = data.draw(st.sampled_from(sorted(config)))
    value = data.draw(st.sampled_from([None, -1, 0, 1.5, "x", [], {}, True, 2**70, 7]))
    edit_config(folder, **json.loads((TINY / "config.json").read_text()) | {name: value})
    with contextlib.suppress(FormatError, NotSupportedError):  # anything else is a failure
        load_pretrained(folder).predict(IDS)
