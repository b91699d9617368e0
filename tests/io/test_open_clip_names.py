"""The text encoders of OpenCLIP: names matched, and queries, keys and values merged into the rows of one weight."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import FormatError, LoRALayer, NotSupportedError
from lora_np.factors.weights import AdapterWeights
from lora_np.io.base_names import with_base_names, with_tensor_names
from lora_np.io.merge import merge_checkpoint
from lora_np.io.safetensors import load_safetensors, save_safetensors

SIZE = 3
BASES = {
    "lora_te2_": "conditioner.embedders.1.model.transformer.resblocks.7",  # SDXL
    "lora_te_": "cond_stage_model.model.transformer.resblocks.7",  # SD 2
}
COMPONENTS = {"lora_te2_": "text_encoder_2", "lora_te_": "text_encoder"}
FUSED = "attn.in_proj_weight"


def layer(seed, rank=2, inputs=SIZE, outputs=SIZE):
    rng = np.random.default_rng(seed)
    return LoRALayer.from_factors(rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs)), 3.0)


def name(module, prefix="lora_te2_"):
    return f"{prefix}text_model_encoder_layers_7_{module}"


@pytest.fixture(params=BASES)
def prefix(request):
    return request.param


@pytest.fixture
def base(tmp_path, prefix):
    rng = np.random.default_rng(9)
    shapes = {FUSED: (3 * SIZE, SIZE), "attn.out_proj.weight": (SIZE, SIZE)}
    shapes |= {"mlp.c_fc.weight": (4 * SIZE, SIZE), "mlp.c_proj.weight": (SIZE, 4 * SIZE), "attn.in_proj_bias": (9,)}
    tensors = {f"{BASES[prefix]}.{key}": rng.normal(size=shape) for key, shape in shapes.items()}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = rng.normal(size=(2, 2))
    save_safetensors(tmp_path / "base.safetensors", tensors)
    return tmp_path / "base.safetensors"


def merged(base, weights):
    """The tensors before and after a merge."""
    merge_checkpoint(base, with_tensor_names(weights, base), base.parent / "merged.safetensors")
    return load_safetensors(base), load_safetensors(base.parent / "merged.safetensors")


@pytest.mark.parametrize(
    "modules",
    [
        {"self_attn_v_proj": 0, "self_attn_q_proj": 1, "self_attn_k_proj": 2},
        {"self_attn_k_proj": 1},
        {"self_attn_q_proj": 0, "self_attn_v_proj": 2},
    ],
)
def test_queries_keys_and_values_change_their_rows_of_the_fused_weight(base, prefix, modules):
    layers = {name(module, prefix): layer(seed, rank=1 + seed) for seed, module in enumerate(modules)}
    before, after = merged(base, AdapterWeights(layers))
    expected = before[f"{BASES[prefix]}.{FUSED}"].copy()
    for module, change in zip(modules, layers.values(), strict=True):
        first = SIZE * ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj"].index(module)
        expected[first : first + SIZE] += change.merge_weights().T
    assert_allclose(after[f"{BASES[prefix]}.{FUSED}"], expected, rtol=1e-13)
    for key in before.keys() - {f"{BASES[prefix]}.{FUSED}"}:
        assert_array_equal(after[key], before[key])


@pytest.mark.parametrize(
    ("module", "tensor", "outputs", "inputs"),
    [
        ("self_attn_out_proj", "attn.out_proj.weight", SIZE, SIZE),
        ("mlp_fc1", "mlp.c_fc.weight", 4 * SIZE, SIZE),
        ("mlp_fc2", "mlp.c_proj.weight", SIZE, 4 * SIZE),
    ],
)
def test_other_modules_have_a_weight_of_their_own(base, prefix, module, tensor, outputs, inputs):
    change = layer(1, inputs=inputs, outputs=outputs)
    before, after = merged(base, AdapterWeights({name(module, prefix): change}))
    key = f"{BASES[prefix]}.{tensor}"
    assert_allclose(after[key], before[key] + change.merge_weights().T, rtol=1e-13)


def test_names_are_those_of_transformers(base, prefix):
    modules = ["self_attn_q_proj", "self_attn_out_proj", "mlp_fc1"]
    named = with_base_names(AdapterWeights({name(module, prefix): layer(0) for module in modules}), base)
    block = f"{COMPONENTS[prefix]}.text_model.encoder.layers.7"
    assert list(named.layers) == [f"{block}.self_attn.q_proj", f"{block}.self_attn.out_proj", f"{block}.mlp.fc1"]


def test_dora_of_all_three(base, prefix):
    """m V / ‖V‖ by rows: each third has its own magnitudes."""
    layers = {name(f"self_attn_{letter}_proj", prefix): layer(seed) for seed, letter in enumerate("kqv")}
    magnitudes = {path: np.random.default_rng(seed).uniform(1, 2, SIZE) for seed, path in enumerate(layers)}
    _, after = merged(base, AdapterWeights(layers, magnitudes))
    norms = np.linalg.norm(after[f"{BASES[prefix]}.{FUSED}"], axis=1)
    expected = [magnitudes[name(f"self_attn_{letter}_proj", prefix)] for letter in "qkv"]
    assert_allclose(norms, np.concatenate(expected), rtol=1e-12)


def test_dora_of_only_some_is_refused(base, prefix):
    path = name("self_attn_k_proj", prefix)
    weights = AdapterWeights({path: layer(0)}, {path: np.ones(SIZE)})
    with pytest.raises(NotSupportedError, match=f"in_proj_weight: DoRA of only some of the modules .*: {path}"):
        with_tensor_names(weights, base)


@pytest.mark.parametrize("sizes", [{"inputs": 4}, {"outputs": 4}])
def test_other_sizes_are_refused(base, prefix, sizes):
    paths = [name(f"self_attn_{letter}_proj", prefix) for letter in "qk"]
    weights = AdapterWeights({paths[0]: layer(0), paths[1]: layer(1, **sizes)})
    with pytest.raises(FormatError, match=rf"base\.safetensors: '{paths[1]}' must be 3 -> 3, as its rows of .*, got "):
        with_tensor_names(weights, base)


def test_a_block_of_another_kind_is_not_matched(tmp_path):
    tensors = {"transformer.resblocks.0.attn.other.weight": np.zeros((3, 3)), "mixer.in_proj_weight": np.zeros((3, 3))}
    save_safetensors(tmp_path / "base.safetensors", tensors)
    for path in ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "lora_te2_mixer_in_proj_weight"):
        with pytest.raises(FormatError, match="no module has the name"):
            with_tensor_names(AdapterWeights({path: layer(0)}), tmp_path / "base.safetensors")
