"""PEFT itself loads every kind of adapter that lora_np has written as a PEFT folder, and merges it into the same weights.

`scripts/test_peft` installs PEFT and runs these tests.
"""

import numpy as np
import pytest

from lora_np import DenseLayer, Sequential
from lora_np.cli import main
from lora_np.io.peft import apply_peft, save_peft
from lora_np.io.safetensors import load_safetensors
from tests.io.kinds import FOLDER, KINDS, base_of, loaded, place, results

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.oracle

CONVERTIBLE = [
    name
    for name in KINDS
    if "PEFT" in (row := results(name))["convert"] + row["tool"]
    and isinstance(row["merge"], float)
    and not KINDS[name].base_is_residual
    and name != "kohya-sdxl-open-clip"  # for the merge, it has the names of parameters, not of modules
]
LAYERS = {2: torch.nn.Linear, 3: torch.nn.Conv1d, 4: torch.nn.Conv2d, 5: torch.nn.Conv3d}


def module(tensors):
    """A module with the tensors of a checkpoint: the kind of each layer is known by its name or shape."""
    net = torch.nn.Module()
    for key in sorted(tensors, reverse=True):  # gate_up_proj before down_proj, as in transformers
        path, _, name = key.rpartition(".")
        if name == "weight":
            attach(net, path, layer(path, tensors))
        elif name != "bias":
            owner = attach(net, path, torch.nn.Module())
            owner.register_parameter(name, torch.nn.Parameter(torch.zeros(tensors[key].shape)))
            owner.is_transposed = path == "layers.1"
    missing = net.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in tensors.items()}, strict=False)
    assert not missing.unexpected_keys
    return net


def layer(path, tensors):
    shape, has_bias = tensors[f"{path}.weight"].shape, f"{path}.bias" in tensors
    if path == "tokens":
        return torch.nn.Embedding(*shape)
    if path == "narrow":
        pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
        return pytorch_utils.Conv1D(shape[1], shape[0])
    if len(shape) == 1:
        return torch.nn.LayerNorm(shape)
    inputs, kernel, options = shape[1], shape[2:], {"bias": has_bias}
    if path == "groups":
        inputs, options = 2 * inputs, options | {"groups": 2}
    return LAYERS[len(shape)](inputs, shape[0], *([kernel] if kernel else []), **options)


def attach(net, path, child):
    """The module at a path, which is the child unless there is one."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in net._modules:
            net.add_module(name, torch.nn.Module())
        net = net._modules[name]
    if last not in net._modules:
        net.add_module(last, child)
    return net._modules[last]


def assert_merges(net, folder, expected, prefix=""):
    merged = peft.PeftModel.from_pretrained(net, folder).merge_and_unload().state_dict()
    for key, tensor in expected.items():
        np.testing.assert_allclose(merged[key.removeprefix(prefix)].numpy(), tensor, rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_peft_merges_what_was_converted(tmp_path, name):
    weights = loaded(name)
    config = {"fan_in_fan_out": True} if weights.config.get("fan_in_fan_out") else None
    save_peft(tmp_path / "peft", weights, config=config)
    expected = load_safetensors(FOLDER / name / (KINDS[name].task or "") / "expected.safetensors")
    assert_merges(module(load_safetensors(base_of(name))), tmp_path / "peft", expected)


@pytest.mark.parametrize("name", ["kohya-pipeline", "diffusers-pipeline", "diffusers-lora-down"])
def test_peft_loads_the_folder_of_each_component(tmp_path, name):
    assert main(["convert", str(place(name)), "--base", str(base_of(name)), "-o", str(tmp_path / "out")]) == 0
    tensors = load_safetensors(base_of(name))
    expected = load_safetensors(FOLDER / name / "expected.safetensors")
    for component in ("unet", "text_encoder", "text_encoder_2"):
        part = {key.removeprefix(f"{component}."): tensors[key] for key in tensors if key.startswith(f"{component}.")}
        merged = {key: tensor for key, tensor in expected.items() if key.startswith(f"{component}.")}
        assert_merges(module(part), tmp_path / "out" / component, merged, f"{component}.")


def test_peft_merges_the_vera_adapters_of_a_model(tmp_path):
    tensors = load_safetensors(base_of("peft-vera"))
    layers = {}
    for name in ("up", "head"):
        W, b = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        layers[name] = DenseLayer(W.shape[1], W.shape[0], dtype=np.float32, rng=0)
        layers[name].set_parameters(np.concatenate([W.T.ravel(), b]))
    save_peft(tmp_path / "vera", apply_peft(Sequential(layers), FOLDER / "peft-vera"))
    assert_merges(module(tensors), tmp_path / "vera", load_safetensors(FOLDER / "peft-vera" / "expected.safetensors"))
