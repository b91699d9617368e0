"""Whole tensors of 16 bits: read, merged and written without widening, to the bit, in bounded memory."""

import json
import tracemalloc

import numpy as np
import pytest

from lora_np import DenseLayer, LoRALayer, Sequential
from lora_np.cli import main
from lora_np.factors.weights import AdapterWeights
from lora_np.io.merge import merge_checkpoint, verify_checkpoint
from lora_np.io.peft import CONFIG, WEIGHTS, apply_peft, load_peft, save_peft
from lora_np.io.safetensors import SafetensorsFile, load_safetensors, save_safetensors, stored_elements
from lora_np.kernels import StoredMatrix
from tests.kinds import batch, randomised

KEY = "base_model.model.head.weight"
NAN = {"BF16": 0x7FA5, "F16": 0x7D05}
"""Numbers that are not the usual NaN: a conversion would change their bits."""


def elements(dtype, shape=(3, 4)):
    """Elements of 16 bits as they are stored, one of them a NaN."""
    found = (batch(*shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype == "F16":
        found = batch(*shape).astype(np.float16).view(np.uint16)
    found[0, 0] = NAN[dtype]
    return found


def tensor_of(bits, dtype):
    """The tensor of a file with these elements."""
    return bits.view(np.float16) if dtype == "F16" else bits


def write(folder, dtype, bits):
    """A PEFT folder with a whole tensor of 16 bits."""
    weights = AdapterWeights({"q": randomised(LoRALayer(4, 4, 2))}, whole={"head.weight": batch(*bits.shape)})
    save_peft(folder, weights)
    with SafetensorsFile(folder / WEIGHTS) as file:
        tensors = {key: np.array(tensor) for key, tensor in file.items()} | {KEY: tensor_of(bits, dtype)}
    save_safetensors(folder / WEIGHTS, tensors, dtypes={KEY: dtype})
    return folder


def stored(file, key):
    with SafetensorsFile(file) as tensors:
        return tensors.info(key).dtype, tensors.raw(key).view(np.uint16).tolist()


@pytest.mark.parametrize("dtype", NAN)
def test_nothing_changes_a_bit(tmp_path, dtype):
    bits = elements(dtype)
    weights = load_peft(write(tmp_path / "a", dtype, bits))
    expected = dtype, bits.ravel().tolist()
    save_peft(tmp_path / "again", weights)
    assert stored(tmp_path / "again" / WEIGHTS, KEY) == expected
    base = {"q.weight": np.zeros((4, 4)), "head.weight": np.zeros((3, 4))}
    for name, tensors in {"replaced": base, "added": {"q.weight": base["q.weight"]}}.items():
        save_safetensors(tmp_path / "base", tensors, dtypes=dict.fromkeys(tensors, dtype))
        merge_checkpoint(tmp_path / "base", weights, tmp_path / name)
        assert stored(tmp_path / name, "head.weight") == expected
        verify_checkpoint(tmp_path / "base", weights, tmp_path / name)


@pytest.mark.parametrize("dtype", NAN)
@pytest.mark.parametrize("other", ["F32", "F64", "BF16", "F16"])
def test_another_dtype_of_the_base_gets_the_values(tmp_path, dtype, other):
    weights = load_peft(write(tmp_path / "a", dtype, elements(dtype)))
    base = {"q.weight": np.zeros((4, 4)), "head.weight": np.zeros((3, 4))}
    save_safetensors(tmp_path / "base", base, dtypes=dict.fromkeys(base, other))
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    errors = {tensor.key: tensor for tensor in verify_checkpoint(tmp_path / "base", weights, tmp_path / "merged")}
    assert errors["head.weight"].error <= errors["head.weight"].precision
    with SafetensorsFile(tmp_path / "merged") as file:
        assert np.isnan(file["head.weight"][0, 0])


@pytest.mark.parametrize("other", ["F32", "F64"])
def test_a_change_is_added_to_stored_elements(tmp_path, other):
    bits, layer = elements("BF16"), randomised(LoRALayer(4, 3, 2))
    bits[0, 0] = 0
    save_safetensors(tmp_path / "base", {"head.weight": np.zeros((3, 4))}, dtypes={"head.weight": other})
    merge_checkpoint(
        tmp_path / "base", AdapterWeights({"head": layer}, whole={"head.weight": StoredMatrix(bits)}), tmp_path / "merged"
    )
    expected = (bits.astype(np.uint32) << 16).view(np.float32) + layer.merge_weights().T
    np.testing.assert_allclose(load_safetensors(tmp_path / "merged")["head.weight"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", NAN)
def test_a_model_gets_the_values(tmp_path, dtype):
    bits = elements(dtype, (3, 4))
    bits[0, 0] = 0
    write(tmp_path / "a", dtype, bits)
    model = Sequential({"q": DenseLayer(4, 4, rng=0), "head": DenseLayer(4, 3, rng=1)})
    adapted = apply_peft(model, tmp_path / "a")
    values = bits.view(np.float16) if dtype == "F16" else (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(adapted.children()["head"].weight, values.T.astype(float))
    adapted.children()["head"].weight += 1  # it is the model's own


@pytest.mark.parametrize("verb", ["inspect", "diff", "convert"])
def test_the_commands_read_them(tmp_path, capsys, verb):
    one = str(write(tmp_path / "a", "BF16", elements("BF16") % 0x7000))
    arguments = {"inspect": [one], "diff": [one, one], "convert": [one, "-o", str(tmp_path / "out")]}
    assert main([verb, *arguments[verb], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("dtype", NAN)
def test_a_large_one_needs_no_memory(tmp_path, dtype):
    rows = 6_000
    bits = np.zeros((rows, 1000), np.uint16)  # 12 MB
    folder = write(tmp_path / "a", dtype, bits)
    save_safetensors(tmp_path / "base", {"q.weight": np.zeros((4, 4))}, dtypes={"q.weight": dtype})
    tracemalloc.start()
    try:
        merge_checkpoint(tmp_path / "base", load_peft(folder), tmp_path / "merged", threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert json.loads((folder / CONFIG).read_text())["modules_to_save"] == ["head"]


def test_a_transposed_matrix_is_stored_as_it_is():
    bits = elements("BF16")
    found, dtype = stored_elements(StoredMatrix(bits).T)
    assert (dtype, found.tolist()) == ("BF16", bits.T.tolist())
