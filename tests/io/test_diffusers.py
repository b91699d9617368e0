"""Files of diffusers, constructed by hand."""

import json

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, LoRALayer, NotSupportedError
from lora_np.factors.weights import AdapterWeights
from lora_np.io.diffusers import METADATA, lacks_alpha, load_diffusers, save_diffusers
from lora_np.io.safetensors import SafetensorsFile, save_safetensors
from tests.kinds import batch

A, B = batch(2, 5), batch(4, 2, seed=2)
PLAIN = {"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B}


@pytest.fixture
def write(tmp_path):
    """Write a file with changed tensors and a configuration in its metadata; None omits a tensor."""

    def written(changes=None, config=None):
        tensors = {key: array for key, array in (PLAIN | (changes or {})).items() if array is not None}
        text = config if isinstance(config, str) else json.dumps(config)
        save_safetensors(tmp_path / "a.safetensors", tensors, None if config is None else {METADATA: text})
        return tmp_path / "a.safetensors"

    return written


def test_factors_and_the_default_of_alpha(write):
    layer = load_diffusers(write()).layers["unet.q"]
    assert np.array_equal(layer.matrix_a, A.T)
    assert np.array_equal(layer.matrix_b, B.T)
    assert layer.scaling == 1
    assert lacks_alpha(write())
    assert load_diffusers(write(), alpha=3).layers["unet.q"].scaling == 1.5


@pytest.mark.parametrize(
    ("down", "up", "path"),
    [
        ("unet.q.lora.down.weight", "unet.q.lora.up.weight", "unet.q"),
        ("te.q.lora_linear_layer.down.weight", "te.q.lora_linear_layer.up.weight", "te.q"),
        ("unet.a.processor.to_k_lora.down.weight", "unet.a.processor.to_k_lora.up.weight", "unet.a.to_k"),
        ("unet.a.processor.to_out_lora.down.weight", "unet.a.processor.to_out_lora.up.weight", "unet.a.to_out.0"),
        ("te.self_attn.to_v_lora.down.weight", "te.self_attn.to_v_lora.up.weight", "te.self_attn.v_proj"),
        ("te.self_attn.to_out_lora.down.weight", "te.self_attn.to_out_lora.up.weight", "te.self_attn.out_proj"),
        ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight", "q"),
    ],
)
def test_earlier_names(write, down, up, path):
    weights = load_diffusers(write(dict.fromkeys(PLAIN) | {down: A, up: B}))
    assert list(weights.layers) == [path]
    assert np.array_equal(weights.delta(path), (B @ A).T)


@pytest.mark.parametrize(
    ("tensors", "config", "scaling"),
    [
        ({"unet.q.alpha": np.array(3.0)}, None, 1.5),
        ({}, {"unet.lora_alpha": 3, "unet.r": 2}, 1.5),
        ({}, {"unet.lora_alpha": 3, "unet.alpha_pattern": {"q": 5}}, 2.5),
        ({}, {"unet.lora_alpha": 3, "unet.use_rslora": True}, 3 / np.sqrt(2)),
        ({"unet.q.alpha": np.array(4.0)}, {"unet.lora_alpha": 3, "unet.use_rslora": True}, 2),
        ({}, {"text_encoder.lora_alpha": 3}, 1),
    ],
)
def test_alpha_is_a_tensor_or_in_the_metadata(write, tensors, config, scaling):
    assert load_diffusers(write(tensors, config)).layers["unet.q"].scaling == pytest.approx(scaling, rel=1e-15)
    assert lacks_alpha(write(tensors, config)) == (scaling == 1)


def test_a_stored_alpha_is_not_replaced(write):
    assert load_diffusers(write({"unet.q.alpha": np.array(3.0)}), alpha=7).layers["unet.q"].alpha == 3


@pytest.mark.parametrize("alpha", ["3", np.nan])
def test_alpha_must_be_a_number(write, alpha):
    with pytest.raises(ArgumentError, match=r"^alpha must be"):
        load_diffusers(write(), alpha=alpha)


def test_dora(write):
    weights = load_diffusers(write({"unet.q.lora_magnitude_vector": np.arange(4.0)}))
    assert np.array_equal(weights.magnitudes["unet.q"], np.arange(4))


def test_layers_of_several_ranks_need_an_alpha(write):
    more = {"unet.k.lora_A.weight": batch(1, 5), "unet.k.lora_B.weight": batch(4, 1)}
    message = r"no alpha is stored for unet\.k of rank 1 and unet\.q of rank 2; alpha= gives it"
    with pytest.raises(FormatError, match=message):
        load_diffusers(write(more))
    assert load_diffusers(write(more), alpha=2).layers["unet.k"].scaling == 2
    assert load_diffusers(write(more | {"unet.k.alpha": np.array(3.0)})).layers["unet.k"].scaling == 3


DAMAGES = {
    "no A": ({"unet.q.lora_A.weight": None}, None, r"unet\.q\.lora_A\.weight is missing"),
    "no B": ({"unet.q.lora_B.weight": None}, None, r"unet\.q\.lora_B\.weight is missing"),
    "two alphas": ({"unet.q.alpha": np.ones(2)}, None, r"unet\.q\.alpha must be one number, got shape \(2,\)"),
    "two names": ({"unet.q.lora.down.weight": A}, None, "'unet.q.lora_A.weight' is another name of a tensor"),
    "an unknown key": ({"unet.q.bias": B}, None, "unexpected key 'unet.q.bias'"),
    "nothing": (dict.fromkeys(PLAIN), None, "contains no LoRA factors"),
    "damaged metadata": ({}, "{", "lora_adapter_metadata of its metadata is not valid JSON"),
    "a list": ({}, "[]", r"lora_adapter_metadata of its metadata must be an object, got \[\]"),
    "deep metadata": ({}, "[" * 100_000, "lora_adapter_metadata of its metadata is not valid JSON"),
    "alpha as text": (
        {},
        {"unet.lora_alpha": "3"},
        "unet in lora_adapter_metadata of its metadata: lora_alpha must be a number of at least 0, got '3'",
    ),
    "patterns as text": (
        {},
        {"unet.lora_alpha": 3, "unet.alpha_pattern": "q"},
        "metadata: alpha_pattern must be a mapping from patterns to numbers, got 'q'",
    ),
    "a pattern": (
        {},
        {"unet.lora_alpha": 3, "unet.alpha_pattern": {"(q": 1}},
        r"metadata: the pattern '\(q' of alpha_pattern is not supported: missing \)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_rejected(write, damage):
    tensors, config, message = DAMAGES[damage]
    with pytest.raises(FormatError, match=rf"a\.safetensors: .*{message}"):
        load_diffusers(write(tensors, config))


def test_a_tensor_can_be_dropped(write):
    weights = load_diffusers(write({"unet.q.bias": B}), drop="*.bias")
    assert weights.dropped == ("unet.q.bias",)


# ---------------------------------------------------------------- writing


def adapter(*paths, **more):
    return AdapterWeights({path: LoRALayer(5, 4, 2, alpha=3.0, rng=0) for path in paths}, **more)


def test_the_metadata_has_a_configuration_for_each_component(tmp_path):
    save_diffusers(tmp_path / "a.safetensors", adapter("unet.a.b", "text_encoder.c"))
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        config = json.loads(file.metadata[METADATA])
        assert file.metadata == {"format": "pt", METADATA: json.dumps(config, indent=2, sort_keys=True)}
    assert config["unet.target_modules"] == ["a.b"]
    assert config["text_encoder.lora_alpha"] == 3
    assert not lacks_alpha(tmp_path / "a.safetensors")


def test_a_component_can_be_given(tmp_path):
    save_diffusers(tmp_path / "a.safetensors", adapter("a.b", "unet.c"), component="text_encoder")
    assert sorted(load_diffusers(tmp_path / "a.safetensors").layers) == ["text_encoder.a.b", "unet.c"]


@pytest.mark.parametrize(
    ("paths", "component", "message"),
    [
        (["a.b"], None, "must begin with a component of a pipeline .*, got 'a.b'; component= gives it"),
        ([""], "unet", "must begin with a component of a pipeline .*, got ''"),
        (["lora_unet_a"], "unet", "must begin with a component of a pipeline .*, got 'lora_unet_a'"),
        (["a"], "vae", "component must be one of unet, .*, got 'vae'"),
        (["a", "unet.a"], "unet", r"paths of layers must differ with the component 'unet', got \['a', 'unet\.a'\]"),
    ],
)
def test_paths_that_the_format_cannot_have(tmp_path, paths, component, message):
    with pytest.raises(ArgumentError, match=message):
        save_diffusers(tmp_path / "a.safetensors", adapter(*paths), component=component)
    assert not list(tmp_path.iterdir())


def test_what_the_format_cannot_hold_is_named(tmp_path):
    with pytest.raises(
        NotSupportedError, match=r"diffusers format cannot hold the low-rank change of the embedding 'unet\.a'"
    ):
        save_diffusers(tmp_path / "a.safetensors", adapter("unet.a", embeddings=frozenset({"unet.a"})))
