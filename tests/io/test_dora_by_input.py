"""DoRA with a magnitude for each input, as LyCORIS can train it: merged, written again, and named where it cannot be."""

import numpy as np
import pytest

from lora_np import ArgumentError, DenseLayer, FormatError, LoRALayer, NotSupportedError, Sequential
from lora_np.cli import main
from lora_np.factors.weights import AdapterWeights
from lora_np.io import _merging, merge
from lora_np.io._applying import applied
from lora_np.io.base_names import with_base_names, with_tensor_names
from lora_np.io.diffusers import save_diffusers
from lora_np.io.kohya import load_kohya, save_kohya
from lora_np.io.merge import merge_checkpoint, verify_checkpoint
from lora_np.io.mlx import save_mlx
from lora_np.io.peft import save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from lora_np.surgery import combine
from tests.io.kinds import FOLDER, same
from tests.kinds import batch

CASES = {"linear": ((5, 4), ()), "conv": ((5, 3, 2, 2), (2, 2))}


def adapter(case, path="unet.a"):
    shape, kernel = CASES[case]
    columns = int(np.prod(shape[1:]))
    layer = LoRALayer.from_factors(batch(columns, 2), batch(2, shape[0], seed=1), 3.0)
    magnitude = np.linspace(0.5, 2, shape[1])
    return AdapterWeights(
        {path: layer}, {path: magnitude}, kernels={path: kernel} if kernel else {}, by_input=frozenset({path})
    )


def wanted(weights, old, path):
    """``m V / ‖V‖`` for each input channel V, in all outputs and all places of the kernel."""
    V = old + weights.layers[path].merge_weights().T.reshape(old.shape)
    norms = np.sqrt((np.moveaxis(V, 1, 0).reshape(old.shape[1], -1) ** 2).sum(axis=1))
    shape = (1, -1, *(1 for _ in old.shape[2:]))
    return V * (weights.magnitudes[path] / norms).reshape(shape)


@pytest.mark.parametrize("window", [1, 9, merge.WINDOW])
@pytest.mark.parametrize("case", CASES)
def test_each_input_is_scaled(tmp_path, monkeypatch, case, window):
    for module in (merge, _merging):
        monkeypatch.setattr(module, "WINDOW", window)
    weights, old = adapter(case), batch(*CASES[case][0], seed=2)
    save_safetensors(tmp_path / "base", {"unet.a.weight": old})
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    np.testing.assert_allclose(
        load_safetensors(tmp_path / "merged")["unet.a.weight"], wanted(weights, old, "unet.a"), 1e-12
    )
    (tensor,) = verify_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    assert tensor.error < 1e-15


def test_weights_stored_as_in_out_have_inputs_in_rows(tmp_path):
    weights, old = adapter("linear"), batch(4, 5, seed=2)
    save_safetensors(tmp_path / "base", {"unet.a.weight": old})
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged", fan_in_fan_out=True)
    merged = load_safetensors(tmp_path / "merged")["unet.a.weight"]
    np.testing.assert_allclose(merged.T, wanted(weights, old.T, "unet.a"), 1e-12)


@pytest.mark.parametrize("case", CASES)
def test_kohya_holds_it(tmp_path, case):
    weights = adapter(case, "lora_unet_a")
    save_kohya(tmp_path / "lora.safetensors", weights)
    inputs, kernel = CASES[case][0][1], CASES[case][1]
    assert load_safetensors(tmp_path / "lora.safetensors")["lora_unet_a.dora_scale"].shape == (
        1,
        inputs,
        *(1 for _ in kernel),
    )
    assert same(load_kohya(tmp_path / "lora.safetensors"), weights)


def test_a_scale_is_of_the_outputs_where_the_shape_allows_both(tmp_path):
    tensors = {"lora_unet_a.lora_down.weight": np.ones((1, 1)), "lora_unet_a.lora_up.weight": np.ones((1, 1))}
    save_safetensors(tmp_path / "x.safetensors", tensors | {"lora_unet_a.dora_scale": np.ones((1, 1))})
    read = load_kohya(tmp_path / "x.safetensors")
    assert (list(read.magnitudes), read.by_input) == (["lora_unet_a"], frozenset())


@pytest.mark.parametrize("save", [save_peft, save_mlx, save_diffusers])
def test_other_formats_name_it(tmp_path, save):
    with pytest.raises(NotSupportedError, match=r"unet\.a"):
        save(tmp_path / "x", adapter("linear"))
    assert not (tmp_path / "x").exists()


def test_models_and_sums_name_it():
    with pytest.raises(NotSupportedError, match="has a DoRA magnitude of its inputs, which can be merged, but not applied"):
        applied(Sequential({"a": DenseLayer(4, 5, rng=0)}), adapter("linear", "a"))
    with pytest.raises(NotSupportedError, match="'a' is adapted by DoRA"):
        combine([adapter("linear", "a")])
    with pytest.raises(ArgumentError, match="paths of by_input must be paths of magnitudes, got 'b'"):
        AdapterWeights({"b": LoRALayer(4, 5, 1, rng=0)}, by_input=frozenset({"b"}))


def test_a_fused_module_of_flux_cannot_be_separated(tmp_path):
    parts = [f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
    save_safetensors(tmp_path / "base.safetensors", {f"{part}.weight": np.zeros((4, 4)) for part in parts})
    path = "lora_unet_double_blocks_0_img_attn_qkv"
    layer = LoRALayer(4, 12, 2, rng=0)
    weights = AdapterWeights({path: layer}, {path: np.ones(4)}, by_input=frozenset({path}))
    with pytest.raises(NotSupportedError, match=f"'{path}' has one DoRA magnitude of its inputs for transformer_blocks_0"):
        with_base_names(weights, tmp_path / "base.safetensors")


def test_modules_that_share_a_weight_cannot_be_stacked(tmp_path):
    tensor = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    save_safetensors(tmp_path / "base.safetensors", {tensor: np.zeros((12, 4))})
    path = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    weights = AdapterWeights({path: LoRALayer(4, 4, 2, rng=0)}, {path: np.ones(4)}, by_input=frozenset({path}))
    with pytest.raises(
        NotSupportedError, match=f"'{path}' has a DoRA magnitude of its inputs, which .*in_proj_weight shares"
    ):
        with_tensor_names(weights, tmp_path / "base.safetensors")


def test_the_base_may_have_a_prefix_less(tmp_path):
    weights, old = adapter("linear"), batch(5, 4, seed=2)
    save_safetensors(tmp_path / "base", {"a.weight": old})
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    np.testing.assert_allclose(load_safetensors(tmp_path / "merged")["a.weight"], wanted(weights, old, "unet.a"), 1e-12)


@pytest.mark.parametrize("shape", [(2, 4), (1, 5), (1, 4, 2), (4,)])
def test_a_scale_of_another_shape_is_refused(tmp_path, shape):
    tensors = {"lora_unet_a.lora_down.weight": np.ones((2, 4)), "lora_unet_a.lora_up.weight": np.ones((5, 2))}
    save_safetensors(tmp_path / "x.safetensors", tensors | {"lora_unet_a.dora_scale": np.ones(shape)})
    with pytest.raises(FormatError, match=r"dora_scale must have shape \(5, 1\) or \(1, 4\)"):
        load_kohya(tmp_path / "x.safetensors")


def test_the_commands_tell_it_from_the_other_kind(capsys):
    by_input, by_output = (str(FOLDER / name / "lora.safetensors") for name in ("lycoris-dora-by-input", "kohya-dora"))
    assert main(["inspect", by_input]) == 0
    assert "the columns of weight + dW are rescaled to trained norms" in capsys.readouterr().out
    assert main(["diff", by_input, by_output]) == 1
    assert "DoRA of the inputs only in A" in capsys.readouterr().out
