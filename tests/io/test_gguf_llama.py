"""`load_pretrained` of GGUF files: names, the order of rows, what is refused by name, and how much memory it takes."""

import contextlib
import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import CausalLM, FormatError, FullyConnectedLayer, LlamaModel, NotSupportedError, load_pretrained
from lora_np.io._gguf_llama import LlamaTensors, rows_of_halves
from lora_np.io.gguf import GGUFFile
from tests.io.gguf_files import gguf_bytes, llama_metadata, llama_tensors

CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
}
IDS = [[3, 1, 4, 1, 5], [9, 2, 6, -1, -1]]


@pytest.fixture(scope="module", params=["tied", "untied"])
def model(request):
    head = FullyConnectedLayer(64, 50, bias=False, dtype=np.float32, rng=1) if request.param == "untied" else None
    made = CausalLM(LlamaModel.new(CONFIG, rng=0), head)
    rng = np.random.default_rng(2)
    for name, array in made.named_parameters().items():
        if array.ndim == 1:
            array += rng.normal(size=array.shape).astype(np.float32) * 0.1
        elif name.endswith("embed_tokens.weight"):
            array *= 20
    return made.eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def write(path, model, kind="F32", **changes):
    path.write_bytes(gguf_bytes(llama_metadata(CONFIG) | changes, llama_tensors(model, CONFIG, kind)))


def test_the_model_of_a_file_is_the_model(path, model):
    write(path, model)
    loaded = load_pretrained(path)
    assert list(loaded.named_parameters()) == list(model.named_parameters())
    for name, array in loaded.named_parameters().items():
        assert_array_equal(array, model.named_parameters()[name], name)
    assert_array_equal(loaded.predict(IDS), model.predict(IDS))
    assert not loaded.is_training
    assert loaded.positions == 32


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 5e-3), ("BF16", 5e-2), ("Q8_0", 5e-2), ("Q4_1", 0.8)])
def test_quantized_files(path, model, kind, tolerance):
    write(path, model, kind)
    loaded = load_pretrained(str(path))
    expected = model.predict(IDS)
    assert_allclose(loaded.predict(IDS), expected, rtol=0, atol=tolerance * expected.std())
    assert loaded.predict(IDS).dtype == np.float32


def test_other_dtypes(path, model):
    write(path, model, "Q8_0")
    loaded = load_pretrained(path, dtype=np.float64)
    assert_allclose(loaded.predict(IDS), load_pretrained(path).predict(IDS), rtol=1e-4, atol=1e-5)
    assert loaded.dtype == np.float64


@given(heads=st.integers(1, 3), half=st.integers(1, 4), columns=st.integers(1, 3))
def test_rows_of_halves_by_hand(heads, half, columns):
    rows = np.arange(heads * 2 * half)
    stored = np.tile(rows[:, np.newaxis], columns)
    back = rows_of_halves(stored, heads)
    for head in range(heads):
        for j in range(half):  # components 2 j and 2 j + 1 turn together in the file
            assert back[2 * half * head + j, 0] == 2 * half * head + 2 * j
            assert back[2 * half * head + half + j, 0] == 2 * half * head + 2 * j + 1


def test_tensors_have_the_names_of_hugging_face(path, model):
    write(path, model)
    with GGUFFile(path) as file:
        tensors = LlamaTensors(file, CONFIG, stored=False)
        assert set(tensors) == set(model.named_parameters())
        assert len(tensors) == len(file)


def test_without_the_optional_metadata(path, model):
    metadata = llama_metadata(CONFIG)
    for key in ("rope.dimension_count", "rope.freq_base"):
        del metadata[f"llama.{key}"]
    path.write_bytes(gguf_bytes(metadata, llama_tensors(model, CONFIG)))
    assert load_pretrained(path).body.blocks["layers.0"].rotary_base == 10000


def test_never_two_copies_of_the_model(path, model):
    write(path, model, "Q8_0")
    weights = sum(array.nbytes for array in load_pretrained(path).named_parameters().values())
    gc.collect()
    tracemalloc.start()
    loaded = load_pretrained(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded is not None
    assert peak < 1.35 * weights


@pytest.mark.parametrize(
    "changes",
    [
        {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.attention.causal": True},
        {"llama.rope.scaling.factor": 1.0, "llama.rope.scale_linear": 1.0, "llama.use_parallel_residual": False},
        {"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 0.0},
    ],
    ids=str,
)
def test_metadata_that_changes_nothing(path, model, changes):
    write(path, model, **changes)
    assert_array_equal(load_pretrained(path).predict(IDS), model.predict(IDS))


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"general.architecture": "qwen2"}, NotSupportedError, "'general.architecture': must be 'llama', got 'qwen2'"),
        ({"general.architecture": 3}, NotSupportedError, "must be 'llama', got 3"),
        ({"llama.expert_count": 8}, NotSupportedError, "'llama.expert_count': must be 0, got 8"),
        ({"llama.rope.scaling.type": "yarn"}, NotSupportedError, "'llama.rope.scaling.type': must be 'none', got 'yarn'"),
        ({"llama.rope.scaling.factor": 4.0}, NotSupportedError, "'llama.rope.scaling.factor': must be 1, got 4.0"),
        ({"llama.rope.scaling.factor": np.ones(2, np.float32)}, NotSupportedError, "factor': must be 1, got array"),
        ({"llama.attention.causal": False}, NotSupportedError, "'llama.attention.causal': must be True, got False"),
        ({"llama.use_parallel_residual": True}, NotSupportedError, "parallel_residual': must be False, got True"),
        ({"llama.rope.dimension_count": 8}, NotSupportedError, "must be the size of a head, 16, got 8"),
        ({"llama.attention.value_length": 8}, NotSupportedError, "must be the size of a head, 16, got 8"),
        ({"llama.attention.sliding_window": 8}, NotSupportedError, "sliding_window must be null, or at least"),
        ({"llama.attention.head_count_kv": np.array([2, 2], np.int32)}, NotSupportedError, "must be an integer, got array"),
        ({"llama.attention.head_count": 5}, FormatError, "hidden_size must be a multiple of num_attention_heads"),
        ({"llama.attention.head_count_kv": 3}, FormatError, "must be a multiple of num_key_value_heads"),
        ({"llama.attention.head_count": 0}, FormatError, "num_attention_heads must be a positive integer, got 0"),
        ({"llama.embedding_length": 0}, FormatError, "hidden_size must be a positive integer, got 0"),
        ({"llama.embedding_length": "64"}, NotSupportedError, "must be an integer, got '64'"),
        (
            {"llama.feed_forward_length": 95},
            FormatError,
            r"gate_proj\.weight must be .* of shape \(95, 64\)",
        ),
        ({"llama.block_count": 3}, FormatError, r"the tensor 'layers\.2\.input_layernorm\.weight' is missing"),
        ({"llama.block_count": 1}, FormatError, r"unexpected tensor 'layers\.1\..*'; strict=False ignores"),
        ({"llama.attention.layer_norm_rms_epsilon": 2.0}, FormatError, "rms_norm_eps must be between 0 and 1, got 2.0"),
        ({"llama.rope.freq_base": "x"}, FormatError, "rope_theta must be a positive number"),
    ],
    ids=str,
)
def test_metadata_that_means_something_else(path, model, changes, error, message):
    write(path, model, **changes)
    with pytest.raises(error, match=message) as raised:
        load_pretrained(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.1.attn_k_norm.weight", "blk.0.ffn_up_exps.weight"]
)
def test_tensors_that_change_the_function(path, model, name):
    tensors = llama_tensors(model, CONFIG) | {name: (np.ones(2, np.float32), "F32")}
    path.write_bytes(gguf_bytes(llama_metadata(CONFIG), tensors))
    with pytest.raises(NotSupportedError, match=f"tensor '{name}': not part of a plain Llama"):
        load_pretrained(path, strict=False)


def test_tensors_that_are_missing_or_unknown(path, model):
    tensors = llama_tensors(model, CONFIG)
    for name in ("more", "more.weight", "output_norm"):
        path.write_bytes(gguf_bytes(llama_metadata(CONFIG), tensors | {name: (np.ones(2, np.float32), "F32")}))
        with pytest.raises(FormatError, match=f"unexpected tensor '{name}'"):
            load_pretrained(path)
    assert_array_equal(load_pretrained(path, strict=False).predict(IDS), model.predict(IDS))
    for name, message in (
        ("token_embd", "token_embd.weight' must be there"),
        ("blk.1.attn_q", "q_proj.weight' is missing"),
    ):
        rest = {key: value for key, value in tensors.items() if key != f"{name}.weight"}
        path.write_bytes(gguf_bytes(llama_metadata(CONFIG), rest))
        with pytest.raises(FormatError, match=message):
            load_pretrained(path)


def test_queries_of_a_wrong_shape(path, model):
    tensors = llama_tensors(model, CONFIG)
    for array in (np.ones((3, 64), np.float32), np.ones(64, np.float32)):
        path.write_bytes(gguf_bytes(llama_metadata(CONFIG), tensors | {"blk.0.attn_q.weight": (array, "F32")}))
        with pytest.raises(FormatError, match=r"q_proj\.weight must be floating-point of shape \(64, 64\)"):
            load_pretrained(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pretrained(tmp_path / "nowhere.gguf")


def test_any_metadata_is_an_error_of_the_format_or_harmless(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("fuzz") / "tiny.gguf"
    values = st.sampled_from([0, 1, 7, 2**31, -1.5, 0.5, float("nan"), "x", "", [], ["a"], True, np.ones(2, np.int32)])

    @given(key=st.sampled_from(sorted(llama_metadata(CONFIG))), value=values)
    def check(key, value):
        write(path, model, **{key: value})
        with contextlib.suppress(FormatError, NotSupportedError):  # anything else is a failure
            load_pretrained(path).predict([[3]])

    check()
