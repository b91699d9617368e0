"""Weights kept as BF16: products, and models that load, adapt, merge, pickle and save with them."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    AdamW,
    ArgumentError,
    CausalLM,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    InvalidOperationError,
    LlamaModel,
    MultiLoRAAdapter,
    NextTokenLoss,
    StandardLoRAAdapter,
    apply_lora,
    fit,
    generate,
    load_layer,
    load_pretrained,
    merge_in_place,
    save_layer,
)
from lora_np.io.safetensors import save_safetensors
from lora_np.kernels import StoredMatrix, pack, packed_bytes, product, stored
from tests.io.gguf_files import gguf_bytes, llama_metadata, llama_tensors
from tests.io.test_gguf_llama import CONFIG, IDS


def matrix(rows, columns, seed=0):
    """A stored matrix and the same array."""
    bits = (np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    return StoredMatrix(bits), (bits.astype(np.uint32) << 16).view(np.float32)


# ---------------------------------------------------------------- the matrix


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 7),
    shape=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    tile=st.integers(1, 40),
)
def test_products_are_those_of_the_array(rows, columns, shape, tile):
    S, W = matrix(rows, columns)
    rng = np.random.default_rng(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "TILE", tile)
        for left, right in ((S, W), (S.T, W.T), (S.T.T, W)):
            x = rng.normal(size=(*shape, right.shape[0])).astype(np.float32)
            y = product(x, left)
            assert y.dtype == np.float32
            assert y.shape == (*shape, right.shape[1])
            assert_allclose(y, x @ right, rtol=1e-5, atol=1e-5)


def test_products_of_other_dtypes():
    S, W = matrix(3, 4)
    for x in (np.ones((2, 3)), np.ones((2, 3)) * 1j):
        assert product(x, S).dtype == (x @ W).dtype
        assert_allclose(product(x, S), x @ W, rtol=1e-6)


def test_a_product_widens_a_tile_at_a_time(monkeypatch):
    S, _ = matrix(4096, 256)
    monkeypatch.setattr(stored, "TILE", 1 << 14)
    for left in (S, S.T):
        x = np.ones((1, left.shape[0]), np.float32)
        tracemalloc.start()
        product(x, left)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < S.nbytes / 8


def test_it_passes_for_an_array():
    S, W = matrix(5, 3)
    assert (S.shape, S.T.shape, S.size, S.nbytes, S.ndim, S.dtype) == ((5, 3), (3, 5), 15, 30, 2, np.float32)
    assert repr(S) == "StoredMatrix(BF16, 5 × 3)"
    assert_array_equal(np.asarray(S), W)
    assert_array_equal(np.asarray(S.T), W.T)
    assert_array_equal(np.asarray(S, np.float64), W)
    assert_array_equal(S.ravel(), W.ravel())
    assert_array_equal(S + W, W + W)
    assert_array_equal(S.take(np.array([[4, 0], [1, 1]]), axis=0), W[[[4, 0], [1, 1]]])
    assert_array_equal(S.T.take(np.array([1]), axis=0), W.T[[1]])
    assert S.astype(np.float32, copy=False) is S.real is S
    assert S.astype(np.float32).flags.writeable
    assert S.astype(np.float64).dtype == np.float64
    assert not S.flags.writeable
    with pytest.raises(ValueError, match="widening"):
        np.asarray(S, copy=False)


def test_it_never_changes():
    S, W = matrix(2, 2)
    copied = S.copy()
    copied[...] = 0
    assert_array_equal(np.asarray(S), W)
    assert copy.deepcopy(S) is S
    restored = pickle.loads(pickle.dumps(S.T))
    assert_array_equal(np.asarray(restored), W.T)
    assert not restored.flags.writeable
    assert len(pickle.dumps(matrix(100, 100)[0])) < 2.1 * 100 * 100


def test_it_is_not_packed():
    S, _ = matrix(300, 300)
    pack(S.T, backward=True)
    assert packed_bytes(S) == 0


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module", params=["folder", "gguf"])
def path(request, tmp_path_factory):
    """A checkpoint in BF16."""
    place = tmp_path_factory.mktemp("stored")
    model = CausalLM(LlamaModel.new(CONFIG, rng=0), FullyConnectedLayer(64, 50, bias=False, dtype=np.float32, rng=1))
    if request.param == "gguf":
        (place / "tiny.gguf").write_bytes(gguf_bytes(llama_metadata(CONFIG), llama_tensors(model, CONFIG, "BF16")))
        return place / "tiny.gguf"
    arrays = model.named_parameters()
    save_safetensors(place / "model.safetensors", arrays, dtypes=dict.fromkeys(arrays, "BF16"))
    config = CONFIG | {"model_type": "llama", "tie_word_embeddings": False}
    (place / "config.json").write_text(str(config).replace("'", '"').replace("False", "false"))
    return place


@pytest.fixture
def model(path):
    return load_pretrained(path, weights="stored")


@pytest.fixture
def decoded(path):
    return load_pretrained(path)


def adapted(model, kind, **choices):
    made = apply_lora(model, kind, targets=["q_proj", "down_proj"], rng=0, **choices)
    rng = np.random.default_rng(1)
    made.set_parameters(0.2 * rng.normal(size=made.parameter_count))
    return made


def test_matrices_are_half_as_large_and_outputs_are_the_same(model, decoded):
    kinds = {name: type(array) for name, array in model.named_parameters(frozen=True).items()}
    assert {name for name, kind in kinds.items() if kind is np.ndarray} == {name for name in kinds if "norm" in name}
    assert model.estimate_memory()["trainable"] < 0.51 * decoded.estimate_memory()["trainable"]
    for name, array in decoded.named_parameters(frozen=True).items():
        assert_array_equal(np.asarray(model.named_parameters(frozen=True)[name]), array)
    assert_allclose(model.predict(IDS), decoded.predict(IDS), rtol=1e-4, atol=1e-5)
    tokens = [np.stack([*generate(each, IDS, 6)]) for each in (model, decoded)]
    assert_array_equal(*tokens)


ADAPTERS = {
    StandardLoRAAdapter: {"rank": 3},
    DyLoRAAdapter: {"max_rank": 3, "active_ranks": [1, 3]},
    MultiLoRAAdapter: {"default_task_name": "one", "default_rank": 2},
    DoRAAdapter: {"rank": 2},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_train_on_stored_weights_and_merge(model, decoded, kind):
    pair = [adapted(each, kind, **ADAPTERS[kind]) for each in (model, decoded)]
    targets = np.array([[1, 4, 1, 5, 9], [2, 6, -1, -1, -1]])
    for each in pair:
        fit(each.body, (IDS, targets), NextTokenLoss(each), AdamW(1e-2), 2, 2, rng=3)
    assert_allclose(pair[0].predict(IDS), pair[1].predict(IDS), rtol=1e-3, atol=1e-3)
    expected = pair[0].predict(IDS)
    assert merge_in_place(pair[0]) == 4
    assert_allclose(pair[0].predict(IDS), expected, rtol=1e-3, atol=1e-4)
    merged = pair[0].body.blocks["layers.0"].children()["mlp.down_proj"].weight
    assert type(merged) is np.ndarray
    assert type(model.body.blocks["layers.0"].children()["mlp.down_proj"].weight) is StoredMatrix


def test_stored_weights_do_not_train_until_they_are_unpacked(model):
    model.forward(IDS)
    model.backward(np.ones((2, 5, 50)))
    with pytest.raises(InvalidOperationError, match=r"is packed or memory-mapped and cannot train; call unpack\(\) first"):
        model.update_parameters(0.1)
    before = model.predict(IDS)
    model.unpack()
    assert {type(array) for array in model.named_parameters().values()} == {np.ndarray}
    assert_allclose(model.predict(IDS), before, rtol=1e-4, atol=1e-5)
    model.forward(IDS)
    model.backward(np.ones((2, 5, 50)))
    model.update_parameters(0.1)
    assert (model.predict(IDS) != before).any()


def test_copies_packing_and_files(model, decoded, tmp_path):
    expected = model.predict(IDS)
    for twin in (copy.deepcopy(model), model.clone(), pickle.loads(pickle.dumps(model)), model.pack("max")):
        assert type(twin.head.weight) is StoredMatrix
        assert_array_equal(twin.predict(IDS), expected)
    save_layer(model, tmp_path / "model.npz")
    assert_allclose(load_layer(tmp_path / "model.npz").predict(IDS), decoded.predict(IDS), rtol=1e-5, atol=1e-6)
    assert model.get_parameters().shape == (model.parameter_count,)


def test_new_values_replace_stored_ones(model, decoded):
    values = {name: 2 * np.asarray(array) for name, array in decoded.named_parameters().items()}
    assert model.load_weights(values, strict=True).success
    assert_array_equal(model.named_parameters()["lm_head.weight"], values["lm_head.weight"])


def test_other_types_are_decoded(tmp_path):
    model = CausalLM(LlamaModel.new(CONFIG, rng=0))
    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes(llama_metadata(CONFIG), llama_tensors(model, CONFIG, "Q8_0")))
    loaded = load_pretrained(tmp_path / "tiny.gguf", weights="stored")
    assert {type(array) for array in loaded.named_parameters().values()} == {np.ndarray}


def test_arguments(path):
    with pytest.raises(ArgumentError, match="weights must be one of 'decoded', 'stored', got 'raw'"):
        load_pretrained(path, weights="raw")
    with pytest.raises(ArgumentError, match="dtype must be float32 if weights is 'stored'"):
        load_pretrained(path, dtype=np.float64, weights="stored")


def test_packing_leaves_stored_weights_as_they_are(model):
    adapted_model = adapted(model, StandardLoRAAdapter, rank=2)
    before = adapted_model.predict(IDS)
    assert adapted_model.pack("max").estimate_memory()["packed"] == 0
    assert_array_equal(adapted_model.predict(IDS), before)


def test_a_stored_weight_is_not_made_read_only_by_packing_its_layer(model):
    layer = model.walk()["model.layers.0.self_attn.q_proj"]
    assert layer.pack("max") is layer
    assert isinstance(layer.weight, StoredMatrix)
