"""Names of image models: matched to the modules of a base, uniquely, or refused with both names."""

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, LoRALayer, NotSupportedError
from lora_np.factors.weights import AdapterWeights
from lora_np.io._unet_names import BLOCKS, diffusers_name, single_file_names
from lora_np.io.base_names import WEIGHT_FILES, base_modules, components, with_base_names, with_tensor_names
from lora_np.io.safetensors import save_safetensors

ATTENTION = "attentions.0.transformer_blocks.0.attn1.to_q"


def adapter(*paths, **more):
    return AdapterWeights({path: LoRALayer(4, 3, 2, rng=0) for path in paths}, **more)


@pytest.fixture
def base(tmp_path):
    """A base with the given modules."""

    def written(*modules, file="base.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        save_safetensors(tmp_path / file, {f"{module}.weight": np.zeros(1) for module in modules})
        return tmp_path / file

    return written


@pytest.mark.parametrize(
    ("path", "module", "named", "tensor"),
    [
        ("lora_unet_a_b_c", "a.b_c", "unet.a.b_c", "a.b_c"),
        ("lora_unet_a", "unet.a", "unet.a", "unet.a"),
        ("lora_unet_double_blocks_0_q", "double_blocks.0.q", "transformer.double_blocks.0.q", "double_blocks.0.q"),
        ("lora_transformer_a_b", "a.b", "transformer.a.b", "a.b"),
        ("lora_te_a_b", "a.b", "text_encoder.a.b", "a.b"),
        ("lora_te1_a", "a", "text_encoder.a", "a"),
        ("lora_te2_a_b", "a.b", "text_encoder_2.a.b", "a.b"),
        ("lora_te3_a", "a", "text_encoder_3.a", "a"),
        ("lycoris_a_b", "a.b", "a.b", "a.b"),
        ("unet.a.b", "a.b", "unet.a.b", "a.b"),
        ("transformer.a", "transformer.a", "transformer.a", "transformer.a"),
        ("diffusion_model.a", "model.diffusion_model.a", "unet.a", "model.diffusion_model.a"),
        ("model.a_b", "model.a_b", "model.a_b", "model.a_b"),
        # the two names of U-Nets
        (
            f"lora_unet_down_blocks_0_{ATTENTION.replace('.', '_')}",
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
            f"unet.down_blocks.0.{ATTENTION}",
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        ),
        (
            "lora_unet_input_blocks_4_0_in_layers_2",
            "down_blocks.1.resnets.0.conv1",
            "unet.down_blocks.1.resnets.0.conv1",
            "down_blocks.1.resnets.0.conv1",
        ),
        ("lora_unet_output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv", "unet.up_blocks.0.upsamplers.0.conv", None),
        ("lora_unet_output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv", "unet.up_blocks.0.upsamplers.0.conv", None),
        ("lora_te_x", "cond_stage_model.transformer.x", "text_encoder.x", "cond_stage_model.transformer.x"),
    ],
)
def test_names_are_matched(base, path, module, named, tensor):
    file, weights = base(module, "other.module"), adapter(path)
    assert list(with_base_names(weights, file).layers) == [named]
    assert list(with_tensor_names(weights, file).layers) == [tensor or module]
    assert with_base_names(weights, file).layers[named] is weights.layers[path]


def test_everything_that_belongs_to_a_layer_moves_with_it(base):
    more = {"magnitudes": np.ones(3), "kernels": (2, 1), "biases": np.zeros(3)}
    weights = adapter(
        "lora_te_a_b", embeddings=frozenset({"lora_te_a_b"}), **{name: {"lora_te_a_b": v} for name, v in more.items()}
    )
    named = with_tensor_names(weights, base("a.b"))
    assert {name: getattr(named, name) for name in more} == {name: {"a.b": value} for name, value in more.items()}
    assert named.embeddings == {"a.b"}


@pytest.mark.parametrize(
    ("paths", "modules", "message"),
    [
        (["lora_unet_a_b"], ["a.c"], "no module has the name of 'lora_unet_a_b', which the adapter changes"),
        (["lora_unet_a_b"], ["a.b", "a_b"], "'lora_unet_a_b' may be 'a.b' or 'a_b'"),
        (["lora_te_a", "lora_te1_a"], ["a"], "both 'lora_te_a' and 'lora_te1_a' are 'a'"),
        (["lora_te2_a"], ["text_encoder.a"], "no module has the name of 'lora_te2_a'"),
        (["lora_te_a"], ["unet.a"], "no module has the name of 'lora_te_a'"),
        (["lora_te_input_blocks_0_0"], ["text_encoder.conv_in"], "no module has the name of 'lora_te_input_blocks_0_0'"),
    ],
)
def test_what_does_not_match_is_named(base, paths, modules, message):
    for match in (with_base_names, with_tensor_names):
        with pytest.raises(FormatError, match=message):
            match(adapter(*paths), base(*modules))


BFL = "double_blocks.3.img_attn.qkv"
FUSED = "lora_unet_double_blocks_3_img_attn_qkv"
SEPARATE = [f"transformer_blocks.3.attn.to_{name}" for name in "qkv"]


@pytest.fixture
def flux(tmp_path):
    """A base with separate modules of the given output sizes."""

    def written(*sizes, prefix="", **more):
        tensors = {f"{prefix}{name}.weight": np.zeros((size, 4)) for name, size in zip(SEPARATE, sizes, strict=True)}
        save_safetensors(tmp_path / "flux.safetensors", tensors | more)
        return tmp_path / "flux.safetensors"

    return written


@pytest.mark.parametrize(
    "path", [FUSED, "transformer.double_blocks.3.img_attn.qkv", "diffusion_model.double_blocks.3.img_attn.qkv"]
)
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_fused_layer_becomes_those_of_its_parts(flux, path, prefix):
    A, B = np.arange(8.0).reshape(4, 2), np.arange(18.0).reshape(2, 9)
    whole = AdapterWeights({path: LoRALayer.from_factors(A, B, 3.0, scaling="rslora")}, {path: np.arange(9.0)})
    named = with_tensor_names(whole, flux(2, 3, 4, prefix=prefix))
    names = [f"{prefix}{name}" for name in SEPARATE]
    assert list(named.layers) == names
    assert np.array_equal(
        np.hstack([named.layers[name].merge_weights() for name in names]), whole.layers[path].merge_weights()
    )
    assert np.array_equal(np.concatenate([named.magnitudes[name] for name in names]), np.arange(9))
    assert [named.layers[name].scaling_rule for name in names] == ["rslora"] * 3


def test_a_fused_layer_of_other_sizes_is_refused(flux):
    message = rf"flux\.safetensors: '{FUSED}' has 3 outputs, but transformer_blocks_3_attn_to_q, .* have 9"
    with pytest.raises(FormatError, match=message):
        with_tensor_names(adapter(FUSED), flux(2, 3, 4))


def test_a_fused_layer_stays_one_if_the_base_has_it_or_lacks_a_part(flux, base):
    file = flux(2, 3, 4, **{f"{BFL}.weight": np.zeros((9, 4))})
    assert list(with_tensor_names(adapter(FUSED), file).layers) == [BFL]
    with pytest.raises(FormatError, match=f"no module has the name of '{FUSED}'"):
        with_tensor_names(adapter(FUSED), base(*SEPARATE[:2]))
    for unknown in ("lora_unet_double_blocks_3_other", "lora_unet_double_blocks"):
        with pytest.raises(FormatError, match=f"no module has the name of '{unknown}'"):
            with_tensor_names(adapter(unknown), flux(2, 3, 4))


def test_the_component_of_a_base_can_be_given(base):
    file = base("a.b")
    assert list(with_base_names(adapter("a.b"), file, component="unet").layers) == ["unet.a.b"]
    with pytest.raises(ArgumentError, match=r"component must be one of unet, .*, got 'vae'"):
        with_base_names(adapter("a.b"), file, component="vae")


@pytest.mark.parametrize("name", [name for name in WEIGHT_FILES if name.endswith(".safetensors")])
def test_a_pipeline_has_a_folder_for_each_component(base, tmp_path, name):
    base("a.b", file=f"unet/{name}")
    base("a.b", file="text_encoder/model.safetensors")
    weights = adapter("lora_unet_a_b", "lora_te_a_b")
    assert list(with_base_names(weights, tmp_path).layers) == ["unet.a.b", "text_encoder.a.b"]
    assert list(with_tensor_names(adapter("lora_te_a_b"), tmp_path / "text_encoder").layers) == ["a.b"]


@pytest.mark.parametrize("name", [name for name in WEIGHT_FILES if name.endswith(".safetensors")])
def test_a_folder_of_one_model(base, tmp_path, name):
    base("a.b", file=name)
    assert list(with_tensor_names(adapter("lora_unet_a_b"), tmp_path).layers) == ["a.b"]


def test_the_modules_of_a_base(tmp_path):
    block, path = "cond_stage_model.model.transformer.resblocks.0", "text_model.encoder.layers.0"
    fused = f"{block}.attn.in_proj_weight"
    shapes = {"a.weight": (), "unet.b.weight": (2, 3), "a.bias": (5,), f"{block}.mlp.c_fc.weight": (4, 3), fused: (6, 2)}
    save_safetensors(tmp_path / "a.safetensors", {key: np.zeros(shape) for key, shape in shapes.items()})
    assert base_modules(tmp_path / "a.safetensors") == [
        (None, "a", "a", 1, None),
        ("text_encoder", f"{path}.self_attn.q_proj", fused, 2, (fused, 0, 2, 6)),
        ("text_encoder", f"{path}.self_attn.k_proj", fused, 2, (fused, 2, 4, 6)),
        ("text_encoder", f"{path}.self_attn.v_proj", fused, 2, (fused, 4, 6, 6)),
        ("text_encoder", f"{path}.mlp.fc1", f"{block}.mlp.c_fc", 4, None),
        ("unet", "b", "unet.b", 2, None),
    ]


def test_an_adapter_must_be_adapter_weights(base):
    with pytest.raises(ArgumentError, match=r"^weights must be"):
        with_base_names({}, base("a"))


def test_the_parts_of_an_adapter_by_component():
    parts = components(adapter("unet.a", "text_encoder.a", "unet.b.c", "plain.d"))
    assert {name: list(part.layers) for name, part in parts.items()} == {
        "": ["plain.d"],
        "text_encoder": ["a"],
        "unet": ["a", "b.c"],
    }


def test_both_names_of_a_block_lead_to_each_other():
    for single, diffusers in BLOCKS:
        assert diffusers_name(single) == diffusers
        assert single in single_file_names(diffusers)
        assert diffusers_name(f"{single}.proj") == f"{diffusers}.proj"
    assert diffusers_name("other.1") is None
    assert single_file_names("other.1") == []
    assert diffusers_name("input_blocks.10") is None  # not input_blocks.1
    assert diffusers_name("input_blocks.3.0.conv") is None  # a resampler, and no third resnet
    assert diffusers_name("input_blocks.13.0") is None  # there are four levels
    assert diffusers_name("middle_block.1.in_layers.0") == "mid_block.attentions.0.in_layers.0"  # not a resnet
    assert diffusers_name("middle_block.0.in_layers.0") == "mid_block.resnets.0.norm1"


def test_whole_tensors_are_not_renamed():
    with pytest.raises(NotSupportedError, match=r"'head\.bias', which the adapter changes, is not a layer"):
        components(adapter("unet.a", whole={"head.bias": np.zeros(3)}))
