"""Checkpoints of decoders: names with and without prefix, tied heads, and configurations that mean another function."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from lora_np import CausalLM, FormatError, NotSupportedError, SentenceEncoder, load_pretrained
from lora_np.io._model_config import MODELS, check_config
from lora_np.io.pretrained import load_encoder
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.io.test_pretrained import edit_config, edit_tensors

DATA = Path(__file__).parents[1] / "models" / "data" / "decoders"
IDS = [[3, 1, 4], [1, 5, -1]]
BODY = {"gpt2": "transformer.", "llama": "model.", "llama-tied": "model."}
TABLE = {"gpt2": "transformer.wte.weight", "llama-tied": "model.embed_tokens.weight"}


@pytest.fixture
def checkpoint(request, tmp_path):
    """A copy of a tiny checkpoint that a test may damage, with the result of the original."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DATA / request.param / name, tmp_path / name)
    return tmp_path, request.param, load_pretrained(DATA / request.param).predict(IDS)


def of(*names):
    return pytest.mark.parametrize("checkpoint", names, indirect=True)


def same(folder, expected, **options):
    model = load_pretrained(folder, **options)
    assert isinstance(model, CausalLM)
    assert not model.is_training
    assert_array_equal(model.predict(IDS), expected)


# ---------------------------------------------------------------- names


@of(*BODY)
def test_the_prefix_of_the_body_may_be_missing(checkpoint):
    folder, name, expected = checkpoint

    def change(arrays):
        for key in list(arrays):
            arrays[key.removeprefix(BODY[name])] = arrays.pop(key)

    edit_tensors(folder, change)
    same(folder, expected)
    assert BODY[name] in next(iter(load_pretrained(folder).named_parameters(frozen=True)))


@of("gpt2")
def test_masks_of_old_checkpoints_are_left_out(checkpoint):
    folder, _, expected = checkpoint
    masks = {"transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8), "h.1.attn.masked_bias": np.float32([-1e4])}
    edit_tensors(folder, lambda arrays: arrays.update(masks))
    same(folder, expected)


@of("gpt2")
def test_the_head_of_gpt2_is_tied_by_default(checkpoint):
    folder, _, expected = checkpoint
    edit_config(folder, tie_word_embeddings=...)
    same(folder, expected)


@of("llama")
def test_tables_of_rotary_positions_are_left_out(checkpoint):
    folder, _, expected = checkpoint
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    edit_tensors(folder, lambda arrays: arrays.update(table))
    same(folder, expected)


@of(*TABLE)
def test_a_tied_head_may_be_stored_twice_but_not_differ(checkpoint):
    folder, name, expected = checkpoint
    edit_tensors(folder, lambda arrays: arrays.update({"lm_head.weight": arrays[TABLE[name]].copy()}))
    same(folder, expected)
    edit_tensors(folder, lambda arrays: arrays["lm_head.weight"].__setitem__((3, 2), 7))
    with pytest.raises(FormatError, match=r"lm_head\.weight must be equal to the embedding if tie_word_embeddings is true"):
        load_pretrained(folder)


@of(*TABLE)
def test_an_untied_head(checkpoint):
    folder, name, _ = checkpoint
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(FormatError, match=r"the tensor 'lm_head\.weight' is missing"):
        load_pretrained(folder)
    edit_tensors(folder, lambda arrays: arrays.update({"lm_head.weight": 2 * arrays[TABLE[name]]}))
    model = load_pretrained(folder)
    assert model.head_name == "lm_head"
    np.testing.assert_allclose(model.predict(IDS), 2 * load_pretrained(DATA / name).predict(IDS), rtol=1e-6, atol=1e-6)


@of(*BODY)
def test_other_tensors_and_other_shapes_are_refused(checkpoint):
    folder, name, expected = checkpoint
    edit_tensors(folder, lambda arrays: arrays.update({f"{BODY[name]}extra": np.ones(2, np.float32)}))
    with pytest.raises(FormatError, match="unexpected tensor 'extra'; strict=False ignores such tensors"):
        load_pretrained(folder)
    same(folder, expected, strict=False)
    table = {"gpt2": "transformer.wte.weight"}.get(name, "model.embed_tokens.weight")
    edit_tensors(folder, lambda arrays: arrays.update({table: arrays[table][:-1].copy()}))
    with pytest.raises(FormatError, match="must be floating-point of shape"):
        load_pretrained(folder, strict=False)


@of(*BODY)
def test_a_tensor_with_and_without_prefix_occurs_twice(checkpoint):
    folder, name, _ = checkpoint
    first = next(key for key in load_safetensors(folder / "model.safetensors") if key.startswith(BODY[name]))
    edit_tensors(folder, lambda arrays: arrays.update({first.removeprefix(BODY[name]): arrays[first]}))
    with pytest.raises(FormatError, match=f"the tensor '{first.removeprefix(BODY[name])}' occurs twice"):
        load_pretrained(folder)


@pytest.mark.parametrize("kind", ["BF16", "F16", "F64"])
@of("gpt2", "llama")
def test_other_types_are_converted(checkpoint, kind):
    folder, _, expected = checkpoint
    arrays = load_safetensors(folder / "model.safetensors")
    if kind == "BF16":
        save_safetensors(folder / "model.safetensors", arrays, dtypes=dict.fromkeys(arrays, "BF16"))
    else:
        dtype = np.float16 if kind == "F16" else np.float64
        save_safetensors(folder / "model.safetensors", {name: array.astype(dtype) for name, array in arrays.items()})
    logits = load_pretrained(folder).predict(IDS)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.5 if kind == "BF16" else 0.05)


# ---------------------------------------------------------------- configurations


@of("llama")
@pytest.mark.parametrize(
    "entries",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 16},
        {"model_type": "smollm"},
        {"rope_parameters": ..., "rope_theta": 100.0},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 100.0},
        {"rope_scaling": None},
        {"rope_scaling": {"type": "default"}},
        {"layer_types": ["full_attention", "full_attention"]},
        {"tie_word_embeddings": ...},
        {"hidden_act": ..., "attention_bias": ..., "mlp_bias": ...},
        {"attention_dropout": 0.1, "torch_dtype": "bfloat16", "rope_interleaved": False, "is_llama_config": True},
    ],
    ids=str,
)
def test_configurations_of_the_same_function(checkpoint, entries):
    folder, _, expected = checkpoint
    edit_config(folder, **entries)
    same(folder, expected)


@of("llama")
@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"model_type": "mixtral"}, NotSupportedError, "model_type must be one of .*, got 'mixtral'"),
        ({"hidden_act": "gelu"}, NotSupportedError, "hidden_act must be 'silu', got 'gelu'"),
        ({"attention_bias": True}, NotSupportedError, "attention_bias must be False, got True"),
        ({"mlp_bias": True}, NotSupportedError, "mlp_bias must be False, got True"),
        ({"num_local_experts": 8}, NotSupportedError, "num_local_experts must be None, got 8"),
        ({"quantization_config": {"bits": 4}}, NotSupportedError, "quantization_config must be None, got"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            NotSupportedError,
            "rope_scaling must be that of plain rotary",
        ),
        ({"rope_parameters": {"rope_type": "llama3"}}, NotSupportedError, "rope_parameters must be that of plain rotary"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, NotSupportedError, "rope_parameters must be that of plain"),
        ({"rope_interleaved": True}, NotSupportedError, "rope_interleaved must be False, got True"),
        ({"partial_rotary_factor": 0.5}, NotSupportedError, "partial_rotary_factor must be 1, got 0.5"),
        ({"rope_parameters": [1]}, FormatError, "rope_parameters must be an object or null"),
        ({"rope_parameters": {"rope_theta": -1}}, FormatError, "rope_theta must be a positive number, got -1"),
        ({"rope_parameters": ..., "rope_theta": "1"}, FormatError, "rope_theta must be a positive number, got '1'"),
        ({"rope_parameters": ..., "rope_theta": 0}, FormatError, "rope_theta must be a positive number, got 0"),
        ({"rope_parameters": ..., "rope_theta": 1e300}, FormatError, r"rope_theta must be a positive number, got 1e\+300"),
        ({"sliding_window": 8}, NotSupportedError, "sliding_window must be null, or at least .* = 16, got 8"),
        ({"model_type": "mistral", "max_position_embeddings": 10**5}, NotSupportedError, "sliding_window .*, got 4096"),
        ({"layer_types": ["sliding_attention"]}, NotSupportedError, "layer_types must be 'full_attention' everywhere"),
        ({"layer_types": 3}, NotSupportedError, "layer_types must be 'full_attention' everywhere"),
        ({"tie_word_embeddings": "yes"}, NotSupportedError, "tie_word_embeddings must be one of False, True, got 'yes'"),
        ({"num_key_value_heads": 3}, FormatError, "num_attention_heads must be a multiple of num_key_value_heads"),
        ({"num_key_value_heads": 0}, FormatError, "num_key_value_heads must be a positive integer, got 0"),
        ({"head_dim": 3}, FormatError, "the size of a head must be even"),
        ({"head_dim": None, "hidden_size": 12, "num_attention_heads": 4}, FormatError, "the size of a head must be even"),
        (
            {"head_dim": None, "num_attention_heads": 5},
            FormatError,
            "hidden_size must be a multiple of num_attention_heads",
        ),
        ({"rms_norm_eps": 0}, FormatError, "rms_norm_eps must be between 0 and 1, got 0"),
        ({"rms_norm_eps": 1}, FormatError, "rms_norm_eps must be between 0 and 1, got 1"),
        ({"vocab_size": ...}, FormatError, "vocab_size must be a positive integer, got None"),
        ({"num_hidden_layers": 3}, FormatError, r"the tensor 'layers\.2.*' is missing"),
        ({"num_hidden_layers": 1}, FormatError, r"unexpected tensor 'layers\.1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_configurations_of_another_function_are_refused(checkpoint, entries, error, message):
    folder, _, _ = checkpoint
    edit_config(folder, **entries)
    with pytest.raises(error, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize("kind", MODELS)
def test_only_the_sizes_must_be_there(kind):
    sizes = dict.fromkeys(MODELS[kind].sizes, 16) | {MODELS[kind].heads[1]: 4}
    assert check_config({"model_type": kind, **sizes}, "config.json")
    for name in sizes:
        with pytest.raises(FormatError, match=f"{name} must be a positive integer, got None"):
            check_config({"model_type": kind, **sizes, name: None}, "config.json")


def test_any_positive_base_of_the_rotary_positions_will_do():
    sizes = dict.fromkeys(MODELS["llama"].sizes, 16) | {"num_attention_heads": 4}
    assert check_config({"model_type": "llama", **sizes, "rope_theta": 0.5}, "config.json")["rope_theta"] == 0.5


@of("gpt2")
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"activation_function": "relu"}, "activation_function must be one of 'gelu_new', 'gelu_pytorch_tanh', got 'relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True, got False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False, got True"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
        ({"n_inner": 1.5}, "n_inner must be a positive integer, got 1.5"),
        ({"n_head": 5}, "n_embd must be a multiple of n_head"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_configurations_of_another_gpt2_are_refused(checkpoint, entries, message):
    folder, _, expected = checkpoint
    edit_config(folder, activation_function="gelu_pytorch_tanh")
    same(folder, expected)
    edit_config(folder, **entries)
    with pytest.raises((FormatError, NotSupportedError), match=message):
        load_pretrained(folder)


def test_the_inner_size_of_gpt2_is_four_times_the_size_by_default(tmp_path):
    shutil.copytree(DATA / "gpt2", tmp_path / "copy")
    edit_config(tmp_path / "copy", n_inner=None)
    with pytest.raises(
        FormatError, match=r"mlp\.c_fc\.weight must be floating-point of shape \(12, 48\), got .* \(12, 20\)"
    ):
        load_pretrained(tmp_path / "copy")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@of(*BODY)
def test_any_damage_of_the_configuration_is_an_error_of_the_format_or_harmless(checkpoint, data):
    folder, kind, _ = checkpoint
    config = json.loads((DATA / kind / "config.json").read_text())
    extra = ["rope_theta", "rope_scaling", "sliding_window", "layer_types", "head_dim"] if kind != "gpt2" else []
    name = data.draw(st.sampled_from(sorted({*config, *extra})))
    value = data.draw(st.sampled_from([None, -1, 0, 1.5, "x", [], {}, True, 2**70, 10**400, 7]))
    edit_config(folder, **config | {name: value})
    with contextlib.suppress(FormatError, NotSupportedError):  # anything else is a failure
        load_pretrained(folder).predict(IDS)


# ---------------------------------------------------------------- where an encoder is needed


def test_a_decoder_is_not_an_encoder():
    with pytest.raises(NotSupportedError, match=r"llama: must be an encoder, of the type bert, got CausalLM"):
        load_encoder(DATA / "llama")
    assert load_encoder(DATA.parent / "bert").predict(IDS).shape == (2, 3, 16)
    assert SentenceEncoder(load_pretrained(DATA / "llama").body).predict(IDS).shape == (2, 12)
