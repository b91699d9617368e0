"""Adapters that train more than factors: heads, biases, norms, embeddings, tokens. What PEFT wrote does here what it does
there; what is written comes back; no tensor is lost."""

import contextlib
import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    SGD,
    ArgumentError,
    CausalLM,
    DenseLayer,
    Embedding,
    FormatError,
    FullyConnectedLayer,
    InvalidOperationError,
    LlamaModel,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    apply_lora,
    fit,
    load_layer,
    merge_in_place,
    save_layer,
    tanh,
)
from lora_np.factors.weights import AdapterWeights, Rows, extract, in_torch_layout
from lora_np.io._applying import applied, applied_tasks, check_is_task
from lora_np.io._peft_new_config import config_of
from lora_np.io.merge import merge_checkpoint, verify_checkpoint
from lora_np.io.peft import CONFIG, WEIGHTS, apply_peft, load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from lora_np.models.replacing import with_arrays
from tests.io.networks import DATA, IDS, TEXT_BASE, TEXT_CASES, assert_close, network, text_network
from tests.kinds import batch, bits, randomised

TEXT = DATA / "text"
LAYOUTS = [DenseLayer, FullyConnectedLayer]


def expected(case):
    return load_safetensors(TEXT / case / "expected.safetensors")


def torch_parameters(model):
    """All arrays of a model, in PyTorch's layout."""
    return {
        f"{path}.{name}": in_torch_layout(layer, name, getattr(layer, name))
        for path, layer in model.walk().items()
        for name in layer.parameter_names
    }


def assert_same_weights(actual, wanted):
    """Equal to the bit, in everything that a file holds."""
    assert set(actual.layers) == set(wanted.layers)
    for path, layer in wanted.layers.items():
        assert bits(actual.layers[path].named_parameters()) == bits(layer.named_parameters())
        assert (actual.layers[path].scaling, actual.layers[path].alpha) == (layer.scaling, layer.alpha)
    for kind in ("magnitudes", "whole", "biases"):
        assert bits(getattr(actual, kind)) == bits(getattr(wanted, kind))
    assert actual.rows.keys() == wanted.rows.keys()
    for key, (indices, values) in wanted.rows.items():
        assert actual.rows[key].indices.tolist() == indices.tolist()
        assert np.array_equal(actual.rows[key].values, values)
    assert actual.embeddings == wanted.embeddings
    assert actual.nested == wanted.nested


OTHERS = {
    "nothing": ({}, None, {}),
    "a bias of an adapted layer": ({"body.q.bias": 1}, None, {"bias": "lora_only"}),
    "a bias of another layer": ({"k.bias": 1}, None, {"bias": "all"}),
    "both": ({"k.bias": 1, "body.q.bias": 1}, None, {"bias": "all"}),
    "modules": ({"norm.weight": 1, "head.weight": 2, "head.bias": 3}, None, {"modules_to_save": ["head", "norm"]}),
    "a parameter of the model": ({"scale": 1}, None, {}),
    "a parameter beside an adapted layer": ({"body.scale": 1}, None, {}),
    "modules around": ({"top.a.weight": 1, "top.b.weight": 2}, ["top"], {"modules_to_save": ["top"]}),
    "a module that was not named": ({"top.a.weight": 1, "b.weight": 2}, ["top"], {"modules_to_save": ["b", "top.a"]}),
    "a tied pair": (
        {"lm_head.weight": 1, "table.weight": 1},
        None,
        {"modules_to_save": ["table"], "ensure_weight_tying": True},
    ),
    "two tables": ({"lm_head.weight": 1, "table.weight": 2}, None, {"modules_to_save": ["lm_head", "table"]}),
    "a head alone": ({"lm_head.weight": 1}, None, {"modules_to_save": ["lm_head"]}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_entries_about_what_trains_besides_the_factors(name):
    whole, saved, expected = OTHERS[name]
    weights = AdapterWeights(
        {"body.q": LoRALayer(4, 3, 1, rng=0)},
        config={} if saved is None else {"modules_to_save": saved},
        whole={key: np.full((2, 2), float(value)) for key, value in whole.items()},
    )
    found = config_of(weights)
    names = ("bias", "modules_to_save", "ensure_weight_tying", "lora_bias", "trainable_token_indices")
    assert {name: found[name] for name in names if name in found} == {"bias": "none"} | expected


# ---------------------------------------------------------------- what PEFT wrote


@pytest.mark.parametrize("case", TEXT_CASES)
class TestWrittenByPeft:
    @pytest.mark.parametrize("layer", LAYOUTS)
    def test_output(self, case, layer):
        assert_close(apply_peft(text_network(layer), TEXT / case).predict(IDS), expected(case)["output"])

    def test_every_tensor_is_used(self, case):
        weights = load_peft(TEXT / case)
        stored = load_safetensors(TEXT / case / WEIGHTS)
        assert weights.parameter_count == sum(array.size for array in stored.values())
        assert weights.dropped == ()

    def test_merged_models(self, case):
        model = apply_peft(text_network(), TEXT / case)
        merge_in_place(model)
        arrays = torch_parameters(model)
        for name, array in expected(case).items():
            if name.startswith("merged."):
                assert_close(arrays[name.removeprefix("merged.")], array)

    def test_merged_checkpoints(self, case, tmp_path):
        weights, output = load_peft(TEXT / case), tmp_path / "merged.safetensors"
        changed = {tensor.key for tensor in merge_checkpoint(TEXT_BASE, weights, output)}
        theirs = {n.removeprefix("merged."): a for n, a in expected(case).items() if n.startswith("merged.")}
        base, merged = load_safetensors(TEXT_BASE), load_safetensors(output)
        assert merged.keys() == theirs.keys()
        for name, array in theirs.items():
            assert_close(merged[name], array)
            assert (name in changed) == (not np.array_equal(merged[name], base[name]))
        for tensor in verify_checkpoint(TEXT_BASE, weights, output):
            assert tensor.error < 4 * tensor.precision

    def test_what_is_read_is_written_again(self, case, tmp_path):
        weights = load_peft(TEXT / case)
        save_peft(tmp_path / "again", weights)
        assert_same_weights(load_peft(tmp_path / "again"), weights)
        stored = load_safetensors(tmp_path / "again" / WEIGHTS)
        for key, array in load_safetensors(TEXT / case / WEIGHTS).items():
            assert np.array_equal(stored[key], array)

    @pytest.mark.parametrize("layer", LAYOUTS)
    def test_models_come_back_to_the_bit(self, case, layer, tmp_path):
        model = apply_peft(text_network(layer), TEXT / case)
        save_peft(tmp_path / "again", model)
        twin = apply_peft(text_network(layer), tmp_path / "again")
        assert bits(twin.named_parameters()) == bits(model.named_parameters())
        assert np.array_equal(twin.predict(IDS), model.predict(IDS))

    def test_the_model_stays_as_it_is(self, case):
        model = text_network()
        before = bits(model.named_parameters(frozen=True))
        adapted = apply_peft(model, TEXT / case)
        for array in adapted.named_parameters().values():
            array += 1
        assert bits(model.named_parameters(frozen=True)) == before


TRAINED = {
    "head": {"head.weight", "head.bias"},
    "norm": {"norm.weight", "norm.bias"},
    "bias-lora-only": {"body.up.base.bias"},
    "bias-all": {"norm.bias", "body.up.base.bias", "head.bias"},
    "lora-bias": {"body.up.base.bias", "head.base.bias"},
    "embedding": {"table.weight"},
    "saved-embedding": {"table.weight"},
    "tokens": {"table.weight"},
    "parameters": set(),
}


@pytest.mark.parametrize("case", TRAINED)
def test_what_the_adapter_replaces_trains_and_nothing_else(case):
    model = apply_peft(text_network(), TEXT / case)
    assert {name for name in model.named_parameters() if ".lora." not in name} == TRAINED[case]


def test_short_dtypes_come_as_float32():
    assert {array.dtype for array in load_peft(TEXT / "head-bfloat16").whole.values()} == {np.dtype(np.float32)}


def test_a_base_without_a_bias_gets_one(tmp_path):
    layer, bias = randomised(LoRALayer(4, 3, 2)), batch(3)
    save_peft(tmp_path, AdapterWeights({"head": layer}, biases={"head": bias}))
    model = Sequential({"head": DenseLayer(4, 3, bias=False, rng=0)})
    x = batch(5, 4)
    assert_close(apply_peft(model, tmp_path).predict(x) - model.predict(x), layer.predict(x) + layer.scaling * bias, 1e-12)


# ---------------------------------------------------------------- training, saving, applying


def trained(layer=DenseLayer, **options):
    """A model with a trained head, before and after training; deep enough to have an activation that is split."""
    model = Sequential({"norm": text_network().walk()["norm"], "up": layer(6, 8, tanh, rng=0), "head": layer(8, 3, rng=1)})
    adapted = apply_lora(model, StandardLoRAAdapter, rank=2, targets=["up"], rng=2, **options)
    x, classes = batch(20, 6), np.arange(20) % 3
    fit(adapted, (x, classes), SoftmaxCrossEntropy(), SGD(0.1), 2, 8, rng=3)
    return model, adapted, x


@pytest.mark.parametrize("train", [["head"], ["norm"], ["norm", "head"]])
@pytest.mark.parametrize("layer", LAYOUTS)
def test_a_trained_layer_is_saved_and_comes_back_to_the_bit(tmp_path, layer, train):
    model, adapted, x = trained(layer, train=train)
    save_peft(tmp_path, adapted)
    assert json.loads((tmp_path / CONFIG).read_text())["modules_to_save"] == sorted(train)
    twin = apply_peft(model, tmp_path)
    assert np.array_equal(twin.predict(x), adapted.predict(x))
    assert bits(twin.named_parameters()) == bits(adapted.named_parameters())
    assert not np.array_equal(adapted.predict(x), model.predict(x))


@pytest.mark.parametrize("layer", LAYOUTS)
@pytest.mark.parametrize("frozen", [frozenset(), frozenset({"weight"})])
def test_a_trained_base_is_saved_and_comes_back_to_the_bit(tmp_path, layer, frozen):
    model = Sequential({"up": layer(6, 8, rng=0), "head": layer(8, 3, rng=1)})
    adapted = apply_lora(model, StandardLoRAAdapter, rank=2, freeze_base_layer=False, rng=2)
    for adapter in adapted.children().values():
        adapter.base_layer = adapter.base_layer.clone()
        adapter.base_layer.frozen = frozen
    adapted.set_parameters(batch(adapted.parameter_count))
    save_peft(tmp_path, adapted)
    assert json.loads((tmp_path / CONFIG).read_text())["bias"] == "lora_only"
    twin = apply_peft(model, tmp_path)
    x = batch(5, 6)
    assert np.array_equal(twin.predict(x), adapted.predict(x))
    assert set(twin.named_parameters()) == set(adapted.named_parameters())


def test_a_model_that_was_applied_trains_on(tmp_path):
    model, adapted, x = trained(train=["head"])
    save_peft(tmp_path, adapted)
    twin = apply_peft(model, tmp_path)
    for one in (adapted, twin):
        fit(one, (x, np.arange(20) % 3), SoftmaxCrossEntropy(), SGD(0.1), 1, 8, rng=4)
    assert np.array_equal(twin.predict(x), adapted.predict(x))


def test_a_layer_is_written_whole_even_if_a_part_of_it_is_frozen(tmp_path):
    _, adapted, _ = trained(train=["head"])
    adapted.children()["head"].frozen = frozenset({"bias"})
    assert set(extract(adapted).whole) == {"head.weight", "head.bias"}
    adapted.children()["head"].frozen = frozenset({"weight"})
    assert set(extract(adapted).whole) == {"head.bias"}


def test_whole_tensors_are_copies():
    _, adapted, _ = trained(train=["head"])
    before = bits(adapted.named_parameters())
    for tensor in extract(adapted).whole.values():
        tensor[...] = 0
    assert bits(adapted.named_parameters()) == before


def tasks(tmp_path, change=0.0):
    """Two tasks around one trained head, of which one may differ."""
    model = Sequential({"up": DenseLayer(6, 8, rng=0), "head": DenseLayer(8, 3, rng=1)})
    adapted = apply_lora(model, lambda base: MultiLoRAAdapter(base, "a", 2, rng=2), targets=["up"], train=["head"])
    adapted.children()["up"].add_task("b", 1)
    randomised(adapted)
    save_peft(tmp_path / "saved", adapted)
    file = tmp_path / "saved" / "b" / WEIGHTS
    tensors = load_safetensors(file)
    tensors["base_model.model.head.bias"] = tensors["base_model.model.head.bias"] + change
    save_safetensors(file, tensors)
    return model, adapted


def test_tasks_share_a_trained_head(tmp_path):
    model, adapted = tasks(tmp_path)
    twin, x = apply_peft(model, tmp_path / "saved"), batch(4, 6)
    for task in ("a", "b"):
        assert np.array_equal(twin.predict(x, tasks=[task] * 4), adapted.predict(x, tasks=[task] * 4))


def test_tasks_with_different_heads_are_refused(tmp_path):
    model, _ = tasks(tmp_path, change=1.0)
    with pytest.raises(NotSupportedError, match=r"saved: the tasks must agree on head\.bias"):
        apply_peft(model, tmp_path / "saved")


@pytest.mark.parametrize("case", ["lora-bias", "embedding", "tokens"])
def test_a_task_has_only_factors_of_weights(case):
    with pytest.raises(NotSupportedError, match=rf"{case}: 'only' changes \S+ otherwise than by factors"):
        apply_peft(text_network(), {"only": TEXT / case})


def test_weights_of_conv1d_are_written_as_in_out(tmp_path):
    model = Sequential({"up": DenseLayer(6, 8, rng=0)})
    adapted = apply_lora(model, StandardLoRAAdapter, rank=2, freeze_base_layer=False, rng=2)
    randomised(adapted)
    save_peft(tmp_path, adapted, config={"fan_in_fan_out": True})
    stored = load_safetensors(tmp_path / WEIGHTS)["base_model.model.up.base_layer.weight"]
    assert np.array_equal(stored, adapted.children()["up"].base_layer.weight)
    x = batch(5, 6)
    assert np.array_equal(apply_peft(model, tmp_path).predict(x), adapted.predict(x))


# ---------------------------------------------------------------- language models, whose head may be the embedding

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
TABLE = "model.embed_tokens"
TOKENS = [[3, 1, 4], [1, 5, -1]]


def language_model():
    return CausalLM(LlamaModel.new(SIZES | {"vocab_size": 9, "max_position_embeddings": 16}, dtype=np.float64, rng=0))


def test_a_trained_tied_table_comes_back_and_is_the_head_too(tmp_path):
    model = language_model()
    adapted = apply_lora(model, StandardLoRAAdapter, rank=2, targets=["q_proj"], train=[TABLE], rng=1)
    adapted.set_parameters(batch(adapted.parameter_count))
    save_peft(tmp_path, adapted)
    whole = load_peft(tmp_path).whole
    assert set(whole) == {f"{TABLE}.weight", "lm_head.weight"}
    assert np.array_equal(*whole.values())
    again = apply_peft(model, tmp_path)
    assert np.array_equal(again.predict(TOKENS), adapted.predict(TOKENS))
    assert "lm_head" not in again.children()


DIFFERENTLY = {
    "only the table": {"whole": {f"{TABLE}.weight": batch(9, 8)}},
    "only the head": {"whole": {"lm_head.weight": batch(9, 8)}},
    "both": {"whole": {f"{TABLE}.weight": batch(9, 8), "lm_head.weight": batch(9, 8, seed=5)}},
    "a low-rank table": {"layers": {TABLE: randomised(LoRALayer(9, 8, 1))}, "embeddings": frozenset({TABLE})},
    "a low-rank head": {"layers": {"lm_head": randomised(LoRALayer(8, 9, 1))}},
}


@pytest.mark.parametrize("kind", DIFFERENTLY)
def test_a_model_gets_a_separate_head_if_one_of_a_tied_pair_changes(tmp_path, kind):
    layers = {"model.layers.0.self_attn.q_proj": randomised(LoRALayer(8, 8, 1))}
    change = DIFFERENTLY[kind]
    save_peft(tmp_path / "first", AdapterWeights(**(change | {"layers": layers | change.get("layers", {})})))
    model = language_model().eval()
    untied = CausalLM(model.body, model.head)
    adapted = apply_peft(model, tmp_path / "first")
    assert np.array_equal(adapted.predict(TOKENS), apply_peft(untied, tmp_path / "first").predict(TOKENS))
    assert not np.array_equal(adapted.predict(TOKENS), model.predict(TOKENS))
    assert not adapted.is_training
    assert not model.is_training
    assert "lm_head" not in model.children()
    for key, array in change.get("whole", {}).items():
        assert np.array_equal(adapted.named_parameters(frozen=True)[key], array)
    save_peft(tmp_path / "again", adapted)
    assert np.array_equal(apply_peft(model, tmp_path / "again").predict(TOKENS), adapted.predict(TOKENS))


# ---------------------------------------------------------------- any adapter

arrays = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def adapters(draw):
    """AdapterWeights of random shapes, with any of the things that a PEFT file can hold."""
    rng, sizes = draw(arrays), st.integers(1, 4)
    paths = draw(st.lists(st.sampled_from(["a", "a.b", "layers.1.q", "layers.11.q", "x+y"]), min_size=1, unique=True))
    rslora = draw(st.booleans())
    layers = {
        path: LoRALayer.from_factors(
            *(rng.normal(size=shape) for shape in ((m, r), (r, n))),
            draw(st.integers(0, 9)),
            scaling="rslora" if rslora else "max",
        )
        for path in paths
        for m, r, n in [(draw(sizes), draw(sizes), draw(sizes))]
    }
    kind = draw(st.sampled_from(["plain", "dora", "bias", "embedding", "embedding with dora", "experts"]))
    outputs = {path: rng.normal(size=layer.output_size) for path, layer in layers.items()}
    heads = draw(st.lists(st.sampled_from(["head.out", "norm", "score"]), unique=True))
    whole = {f"{path}.{name}": rng.normal(size=draw(sizes)) for path in heads for name in ("weight", "bias")}
    whole |= {f"{path}.bias": rng.normal(size=draw(sizes)) for path in paths if draw(st.booleans())}
    whole |= {f"{path}.bias": rng.normal(size=2) for path in draw(st.lists(st.just("free"), max_size=1))}
    whole |= {f"{paths[0]}.weight": rng.normal(size=(2, 3))} if draw(st.booleans()) else {}
    rows = {"table.weight": Rows.of([3, 0, 7], rng.normal(size=(3, 2)))} if draw(st.booleans()) else {}
    experts = {"mix.up": draw(sizes), "mix.down": draw(sizes)} if kind == "experts" else {}
    layers |= {f"{name}.{i}": next(iter(layers.values())).clone() for name, count in experts.items() for i in range(count)}
    return AdapterWeights(
        layers,
        outputs if kind in ("dora", "embedding with dora") else {},
        whole=whole,
        rows=rows,
        biases=outputs if kind == "bias" else {},
        embeddings=frozenset(paths if kind.startswith("embedding") else ()),
        experts=experts,
    )


@given(weights=adapters())
def test_write_then_read_is_the_identity(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("adapter")
    save_peft(folder, weights)
    assert_same_weights(load_peft(folder), weights)


ENTRIES = [
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("fan_in_fan_out", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters"),
    *("modules_to_save", "trainable_token_indices", "init_lora_weights", "use_qalora", "task_type"),
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["(a*)*", 10**400]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
tensors = st.tuples(
    st.sampled_from([np.float32, np.float64, np.int8, np.bool_]), st.lists(st.integers(0, 3), max_size=4).map(tuple)
).map(lambda kind: np.ones(kind[1], kind[0]))
keys = st.sampled_from(["head.lora_A.weight", "head.lora_B.bias", "head.bias", "x", "x.y", "table.lora_embedding_A"])


@given(
    case=st.sampled_from(TEXT_CASES),
    entries=st.dictionaries(st.sampled_from(ENTRIES), values, max_size=2),
    changes=st.dictionaries(keys, tensors, max_size=2),
)
def test_a_damaged_adapter_is_read_or_refused(tmp_path_factory, case, entries, changes):
    folder = tmp_path_factory.mktemp("adapter")
    (folder / CONFIG).write_text(json.dumps(json.loads((TEXT / case / CONFIG).read_text()) | entries))
    stored = load_safetensors(TEXT / case / WEIGHTS) | {f"base_model.model.{key}": array for key, array in changes.items()}
    save_safetensors(folder / WEIGHTS, stored)
    with contextlib.suppress(FormatError, NotSupportedError):
        assert load_peft(folder).parameter_count == sum(array.size for array in stored.values())


# ---------------------------------------------------------------- what does not fit


@pytest.fixture
def head(tmp_path):
    """A copy of an adapter with a trained head, to be damaged."""
    shutil.copytree(TEXT / "head", tmp_path / "adapter")
    return tmp_path / "adapter"


def edited(folder, changes):
    stored = load_safetensors(folder / WEIGHTS) | {f"base_model.model.{name}": array for name, array in changes.items()}
    save_safetensors(folder / WEIGHTS, {name: array for name, array in stored.items() if array is not None})


def test_a_tensor_that_the_model_lacks_is_named(head):
    edited(head, {"pooler.weight": np.ones((2, 2))})
    message = "adapter: does not fit the model: the model has no 'pooler.weight', which the adapter replaces"
    with pytest.raises(FormatError, match=message):
        apply_peft(text_network(), head)
    assert_close(apply_peft(text_network(), head, drop="pooler.*").predict(IDS), expected("head")["output"])


@pytest.mark.parametrize("key", ["head.scale", "table.bias", "head.", "head"])
def test_an_array_that_a_layer_lacks_is_named(key):
    weights = AdapterWeights({"body.up": LoRALayer(6, 5, 1)}, whole={key: np.ones(4)})
    with pytest.raises(ArgumentError, match=f"the model has no {key!r}, which the adapter replaces"):
        applied(text_network(), weights)


@pytest.mark.parametrize(("name", "shape"), [("head.weight", (5, 4)), ("head.bias", (5,)), ("norm.weight", (1, 6))])
def test_a_tensor_of_another_shape_is_named(head, name, shape):
    edited(head, {name: np.ones(shape)})
    with pytest.raises(FormatError, match=rf"does not fit the model: .*{name.split('.')[1]} must have shape"):
        apply_peft(text_network(), head)


def test_an_embedding_that_is_none_in_the_model():
    with pytest.raises(FormatError, match="table"):
        apply_peft(network(), TEXT / "embedding")


@pytest.mark.parametrize("index", [9, 100])
def test_a_token_beyond_the_table(tmp_path, index):
    rows = {"table.weight": Rows.of([0, index], np.ones((2, 6)))}
    save_peft(tmp_path, AdapterWeights({"body.up": LoRALayer(6, 5, 1)}, rows=rows))
    with pytest.raises(FormatError, match=rf"table\.weight: rows \[0, {index}\] of 6 do not fit \(9, 6\)"):
        apply_peft(text_network(), tmp_path)


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        ([1, 1], np.ones((2, 3)), r"all different, got \[1, 1\]"),
        ([-1], np.ones((1, 3)), r"at least 0 and all different, got \[-1\]"),
        ([True], np.ones((1, 3)), "must be an integer, got True"),
        ([0, 1], np.ones((1, 3)), r"a row for each of 2 indices, got shape \(1, 3\)"),
        ([0], np.ones(3), r"a row for each of 1 indices, got shape \(3,\)"),
    ],
)
def test_rows_are_checked(indices, values, message):
    with pytest.raises(ArgumentError, match=message):
        Rows.of(indices, values)


CANNOT_BE_WRITTEN = {
    "a head with the name of a factor": ({"whole": {"a.lora_A.weight": np.ones(2)}}, r"a\.lora_A\.weight: PEFT takes"),
    "rows of an adapted weight": ({"rows": {"head.weight": Rows.of([0], np.ones((1, 4)))}}, r"head\.weight: PEFT replaces"),
    "rows of a bias": ({"rows": {"a.bias": Rows.of([0], np.ones((1, 4)))}}, r"a\.bias: PEFT replaces"),
    "an embedding with a bias": ({"embeddings": frozenset({"head"}), "biases": {"head": np.ones(3)}}, "head: an embedding"),
}


@pytest.mark.parametrize("reason", CANNOT_BE_WRITTEN)
def test_what_peft_cannot_hold_is_named(tmp_path, reason):
    parts, message = CANNOT_BE_WRITTEN[reason]
    with pytest.raises(NotSupportedError, match=message):
        save_peft(tmp_path / "saved", AdapterWeights({"head": LoRALayer(4, 3, 1)}, **parts))
    assert not (tmp_path / "saved").exists()


# ---------------------------------------------------------------- two files that belong together


@pytest.mark.parametrize("first", [CONFIG, WEIGHTS])
def test_a_folder_of_one_old_and_one_new_file_is_refused(tmp_path, first):
    for name, alpha in (("old", 2.0), ("new", 4.0)):
        save_peft(tmp_path / name, AdapterWeights({"head": LoRALayer(4, 3, 1, alpha, rng=0)}))
    shutil.copy(tmp_path / "new" / first, tmp_path / "old" / first)
    with pytest.raises(FormatError, match=r"old: adapter_config\.json is not the one that .* was written with"):
        load_peft(tmp_path / "old")


@pytest.mark.parametrize("renames", [0, 1])
def test_an_interrupted_save_leaves_the_old_adapter_or_an_error(tmp_path, monkeypatch, renames):
    old, new = (AdapterWeights({"head": LoRALayer(4, 3, 1, alpha, rng=0)}) for alpha in (2.0, 4.0))
    save_peft(tmp_path, old)
    rename, left = os.replace, [None] * renames

    def interrupted(source, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_peft(tmp_path, new)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS]
    if renames:
        with pytest.raises(FormatError, match="writing them was interrupted"):
            load_peft(tmp_path)
    else:
        assert_same_weights(load_peft(tmp_path), old)


def test_the_base_may_be_renamed(tmp_path):
    save_peft(tmp_path, AdapterWeights({"head": LoRALayer(4, 3, 1, rng=0)}))
    config = json.loads((tmp_path / CONFIG).read_text()) | {"base_model_name_or_path": "other", "target_modules": ["head"]}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert load_peft(tmp_path).config["base_model_name_or_path"] == "other"


def test_an_adapted_model_with_a_head_is_saved_whole(tmp_path):
    _, adapted, x = trained(train=["head"])
    save_layer(adapted, tmp_path / "model.npz")
    assert np.array_equal(load_layer(tmp_path / "model.npz").predict(x), adapted.predict(x))


# ---------------------------------------------------------------- what does not fit


def test_a_task_cannot_change_biases():
    layer = LoRALayer(4, 6, 2, 3.0, rng=0)
    with pytest.raises(NotSupportedError, match="changes q otherwise than by factors of a weight"):
        check_is_task(AdapterWeights({"q": layer}, biases={"q": np.ones(6)}))


def test_a_bias_of_another_size_is_named():
    model = Sequential({"q": DenseLayer(4, 6, rng=0)})
    weights = AdapterWeights({"q": LoRALayer(4, 6, 2, 3.0, rng=0)}, biases={"q": np.ones(5)})
    with pytest.raises(ArgumentError, match=r"q: lora_B\.bias must have shape \(6,\), got \(5,\)"):
        applied(model, weights)


def test_an_embedding_of_another_size_is_named():
    model = text_network()
    path = next(path for path, layer in model.walk().items() if isinstance(layer, Embedding))
    weights = AdapterWeights({path: LoRALayer(3, 2, 1, 1.0, rng=0)}, embeddings=frozenset({path}))
    with pytest.raises(ArgumentError, match=r"the change has the shape \(3, 2\), the table"):
        applied(model, weights)


def test_new_arrays_must_be_those_of_a_layer():
    layer = DenseLayer(4, 6, rng=0)
    with pytest.raises(ArgumentError, match="must not have layers inside"):
        with_arrays(Sequential([layer]), {"weight": np.ones((4, 6))})
    with pytest.raises(ArgumentError, match=r"arrays must name arrays of .*; got 'scale'"):
        with_arrays(layer, {"scale": np.ones(4)})


def test_a_layer_with_new_arrays_has_made_no_pass():
    layer = DenseLayer(4, 6, rng=0)
    layer.forward(np.ones((2, 4)))
    changed = with_arrays(layer, {"weight": np.ones((4, 6))})
    with pytest.raises(InvalidOperationError):
        changed.backward(np.ones((2, 6)))
    layer.backward(np.ones((2, 6)))


@pytest.mark.parametrize("indices", [[1, 1], [-1, 2]])
def test_tokens_that_are_twice_or_negative_are_refused(tmp_path, indices):
    folder = tmp_path / "adapter"
    weights = AdapterWeights({"q": LoRALayer(4, 6, 2, 3.0, rng=0)}, rows={"emb.weight": Rows.of([1, 2], np.ones((2, 4)))})
    save_peft(folder, weights)
    arrays = load_safetensors(folder / WEIGHTS)
    save_safetensors(folder / WEIGHTS, arrays)  # without the digest of the configuration
    config = json.loads((folder / CONFIG).read_text())
    text = json.dumps(config).replace("[1, 2]", json.dumps(indices))
    assert text != json.dumps(config)
    (folder / CONFIG).write_text(text)
    with pytest.raises(FormatError, match="indices"):
        load_peft(folder)


def test_an_embedding_with_a_bias_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    weights = AdapterWeights({"emb": LoRALayer(9, 4, 2, 3.0, rng=0)}, embeddings=frozenset({"emb"}))
    save_peft(folder, weights, config={"lora_bias": True})
    arrays = load_safetensors(folder / WEIGHTS)
    save_safetensors(folder / WEIGHTS, arrays | {"base_model.model.emb.lora_B.bias": np.ones(4)})
    with pytest.raises(NotSupportedError, match=r"lora_B\.bias is not supported for an embedding"):
        load_peft(folder)


def test_an_embedding_with_a_magnitude_in_a_model_and_merged_is_the_same(tmp_path):
    table = randomised(Embedding(9, 4))
    change = {"emb": randomised(LoRALayer(9, 4, 2, 3.0))}
    weights = AdapterWeights(change, {"emb": np.arange(1.0, 5.0)}, embeddings=frozenset({"emb"}))
    save_peft(tmp_path / "adapter", weights)
    assert_same_weights(load_peft(tmp_path / "adapter"), weights)
    adapted = applied(Sequential({"emb": table, "up": DenseLayer(4, 3, rng=0)}), weights)
    V = table.weight + weights.layers["emb"].merge_weights()
    expected = np.arange(1.0, 5.0) * V / np.linalg.norm(V, axis=0)
    np.testing.assert_allclose(adapted.children()["emb"].weight, expected, rtol=1e-14)
    save_safetensors(tmp_path / "base", {"emb.weight": table.weight})
    merge_checkpoint(tmp_path / "base", weights, tmp_path / "merged")
    np.testing.assert_allclose(load_safetensors(tmp_path / "merged")["emb.weight"], expected, rtol=1e-14)


def test_a_column_of_zeros_of_an_embedding_with_a_magnitude_stays_one():
    model = Sequential({"emb": Embedding(1, 2)})
    model.children()["emb"].weight[...] = 0
    change = {"emb": LoRALayer.from_factors(np.ones((1, 1)), np.array([[0.0, 2.0]]))}
    adapted = applied(model, AdapterWeights(change, {"emb": np.full(2, 3.0)}, embeddings=frozenset({"emb"})))
    assert adapted.children()["emb"].weight.tolist() == [[0, 3]]


def test_the_only_row_of_a_table_is_replaced():
    rows = {"emb.weight": Rows.of([0], batch(1, 2))}
    model = Sequential({"emb": Embedding(1, 2), "q": DenseLayer(2, 3, rng=0)})
    adapted = applied(model, AdapterWeights({"q": LoRALayer(2, 3, 1)}, rows=rows))
    assert np.array_equal(adapted.children()["emb"].weight, batch(1, 2))


def test_a_task_without_factors_for_a_layer_has_the_smallest_rank_there():
    one, two = ({path: randomised(LoRALayer(4, 4, 3))} for path in "qk")
    model = Sequential({"q": DenseLayer(4, 4, rng=0), "k": DenseLayer(4, 4, rng=1)})
    adapted = applied_tasks(model, {"one": AdapterWeights(one), "two": AdapterWeights(two)})
    ranks = {path: [task.rank for task in layer.task_adapters.values()] for path, layer in adapted.children().items()}
    assert ranks == {"q": [3, 1], "k": [1, 3]}


def test_a_convolution_is_not_a_task():
    weights = AdapterWeights({"conv": LoRALayer(12, 5, 2, 3.0, rng=0)}, kernels={"conv": (2, 2)})
    with pytest.raises(NotSupportedError, match="'conv' is a convolution"):
        check_is_task(weights)
