"""Decoders: gradients, causality, ragged batches, heads, adapters, tasks and ranks of prompts, files."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    AdamW,
    ArgumentError,
    ArgumentNullError,
    BertModel,
    CausalLM,
    DenseLayer,
    DyLoRAAdapter,
    FullyConnectedLayer,
    GPT2Model,
    LlamaModel,
    MultiLoRAAdapter,
    SequenceClassifier,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    apply_lora,
    find,
    fit,
    load_layer,
    merge_in_place,
    save_layer,
    select_rank,
    select_task,
    without_adapters,
)
from lora_np.io.merge import merge_checkpoint
from lora_np.io.peft import apply_peft, load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from lora_np.models.llama import LlamaBlock
from lora_np.testing import check_gradients
from tests.kinds import batch
from tests.models.decoders import BUILD, GPT2, LLAMA, POSITIONS, SIZE, VOCABULARY, decoder, targets
from tests.models.test_bert import CONFIG as BERT
from tests.models.test_bert import filled

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, -1, -1, -1], [6, 5, 3, -1, -1]])
LENGTHS = [5, 2, 3]
each = pytest.mark.parametrize("name", BUILD)


def adapted(name, kind=StandardLoRAAdapter, **choices):
    return filled(apply_lora(decoder(name), kind, targets=targets(name), rng=0, **(choices or {"rank": 2})))


def dylora(name):
    return adapted(name, DyLoRAAdapter, max_rank=4, active_ranks=[1, 2, 4])


def routed(name):
    """A model with the tasks a and b on every dense layer, an untied head included."""
    model = apply_lora(decoder(name), MultiLoRAAdapter, default_task_name="a", default_rank=2, rng=0)
    for adapter in find(model, MultiLoRAAdapter).values():
        adapter.add_task("b", 1)
    return filled(model)


@st.composite
def prompts(draw):
    """Prompts of any lengths, often of one token or of equal lengths, in a batch padded as far as it may be."""
    lengths = draw(st.one_of(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.just([1]), st.just([3, 3])))
    width = draw(st.integers(max(lengths), POSITIONS))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = np.full((len(lengths), width), -1)
    for row, length in zip(array, lengths, strict=True):
        row[:length] = rng.integers(0, VOCABULARY, length)
    return array


# ---------------------------------------------------------------- gradients


@each
def test_every_gradient_by_complex_step(name):
    """With a tied head, that of the table is the sum over both of its uses."""
    errors = check_gradients(decoder(name), IDS, rtol=1e-8)
    assert len(errors) == {"llama": 20, "llama, untied": 21, "gpt2": 28}[name]


@each
@pytest.mark.parametrize("ids", [[[4]], [[1, 2, 3], [3, 2, 1]]], ids=["one token", "full"])
def test_every_gradient_of_batches_without_padding(name, ids):
    alone = np.size(ids) == 1  # a token that attends to itself alone: its query and key have no gradient
    check_gradients(decoder(name), np.array(ids), directions=True, allow_vacuous=alone, rtol=1e-8)


@each
@pytest.mark.parametrize("kind", ["lora", "dylora", "multilora"])
def test_gradients_of_adapters(name, kind):
    model = {"lora": adapted, "dylora": dylora, "multilora": routed}[kind](name)
    run = {"dylora": {"rank": [1, 2, 4]}, "multilora": {"tasks": ["a", None, "b"]}}.get(kind, {})
    errors = check_gradients(model, IDS, rtol=1e-8, **run)
    assert set(errors) == set(model.named_parameters())


@each
def test_a_table_that_trains_beside_adapters(name):
    path = decoder(name).head_name if "untied" not in name else "model.embed_tokens"
    model = filled(apply_lora(decoder(name), StandardLoRAAdapter, rank=1, targets=targets(name), train=[path], rng=0))
    errors = check_gradients(model, IDS, rtol=1e-8)
    assert f"{path}.weight" in errors
    assert set(errors) == set(model.named_parameters())


@pytest.mark.parametrize(("name", "path"), [("llama", "model.layers.0"), ("gpt2", "transformer.h.0")])
@settings(max_examples=10)
@given(st.integers(1, 5))
def test_a_block_alone_takes_the_rows_of_one_sequence(name, path, rows):
    block = decoder(name).walk()[path]
    check_gradients(block, batch(rows, SIZE), allow_vacuous=rows == 1, rtol=1e-8)
    with pytest.raises(ArgumentError, match=r"input must have shape \(rows, 8\), got \(2, 3, 8\)"):
        block.forward(batch(2, 3, SIZE))


# ---------------------------------------------------------------- what a position sees


@each
@settings(max_examples=25)
@given(prompts())
def test_a_prompt_is_the_same_alone_and_in_any_batch(name, array):
    model = decoder(name)
    logits = model.predict(array)
    assert logits.shape == (*array.shape, VOCABULARY)
    for prompt, rows in zip(array, logits, strict=True):
        length = (prompt >= 0).sum()
        assert_allclose(model.predict(prompt[np.newaxis, :length])[0], rows[:length], rtol=1e-9, atol=1e-11)
        assert not rows[length:].any()


@each
@settings(max_examples=10)
@given(st.integers(1, POSITIONS - 1))
def test_logits_depend_on_the_tokens_up_to_their_own(name, length):
    model, ids = decoder(name), np.arange(POSITIONS)[np.newaxis] % VOCABULARY
    other = ids.copy()
    other[0, length:] = (other[0, length:] + 3) % VOCABULARY
    before, after = model.predict(ids)[0], model.predict(other)[0]
    assert_allclose(after[:length], before[:length], rtol=1e-11, atol=1e-12)
    assert (np.abs(after - before)[length:].max(axis=1) > 1e-6).all()


@each
def test_padding_changes_nothing_to_the_bit(name):
    model = decoder(name)
    narrow, wide = model.forward(IDS), model.forward(np.pad(IDS, ((0, 0), (0, 2)), constant_values=-1))
    assert_array_equal(wide[:, : narrow.shape[1]], narrow)


# ---------------------------------------------------------------- body and head


@each
def test_a_model_is_its_body_and_its_head(name):
    model = decoder(name)
    logits = model.head.predict(model.body.predict(IDS))
    assert_allclose(logits[IDS >= 0], model.predict(IDS)[IDS >= 0], rtol=1e-12, atol=1e-13)


def test_a_tied_head_is_the_table():
    model = decoder("llama")
    assert np.shares_memory(model.head.weight, model.walk()["model.embed_tokens"].weight)
    assert model.head_name == "model.embed_tokens"
    assert decoder("llama, untied").head_name == "lm_head"
    assert "lm_head" not in model.walk()


def test_a_body_must_be_causal_and_a_head_must_fit():
    with pytest.raises(ArgumentNullError, match="body"):
        CausalLM(None)
    for body in (DenseLayer(3, 2), BertModel.new(BERT), decoder("llama")):
        with pytest.raises(ArgumentError, match="body must be a causal transformer such as LlamaModel, got "):
            CausalLM(body)
    for head in (DenseLayer(SIZE, 12), DenseLayer(7, VOCABULARY), DenseLayer(SIZE, VOCABULARY), 3, "head"):
        with pytest.raises(
            ArgumentError, match=r"head must be a layer from 8 to 11 in float32, got (Dense.* in float64|3|'head')$"
        ):
            CausalLM(LlamaModel.new(LLAMA), head)


def test_a_decoder_as_the_encoder_of_a_classifier():
    model = SequenceClassifier(decoder("llama").body, 3, rng=0)
    check_gradients(model, IDS, directions=True, rtol=1e-8)
    with pytest.raises(ArgumentError, match="encoder must be a model of token ids without a head"):
        SequenceClassifier(decoder("llama"), 3)


def test_heads_divide_the_size():
    with pytest.raises(ArgumentError, match="heads must divide the size 8, got 3"):
        GPT2Model.new(GPT2 | {"n_head": 3})
    with pytest.raises(
        ArgumentError, match="num_attention_heads must divide hidden_size = 8 if head_dim is not given, got 3"
    ):
        LlamaModel.new(LLAMA | {"num_attention_heads": 3, "num_key_value_heads": 3})
    layers = dict(decoder("llama").walk()["model.layers.0"].children())
    with pytest.raises(ArgumentError, match=r"heads must divide the number of outputs of self_attn\.q_proj, 8, got 3"):
        LlamaBlock(layers, 3, 3)


def test_heads_of_another_size():
    """Some models have heads whose sizes do not add up to the hidden size."""
    model = CausalLM(LlamaModel.new(LLAMA | {"head_dim": 6}, dtype=np.float64, rng=0))
    assert model.walk()["model.layers.0.self_attn.q_proj"].weight.shape == (24, SIZE)
    assert model.walk()["model.layers.0.self_attn.k_proj"].weight.shape == (12, SIZE)
    check_gradients(model, IDS, directions=True, rtol=1e-8)


@pytest.mark.parametrize("method", ["predict", "forward"])
@each
def test_bad_ids_are_refused_by_name(name, method):
    for bad, message in (
        ([[1.0, 2.0]], "integer token ids"),
        ([[1, VOCABULARY]], r"ids in 0\.\.10, and -1 for padding, got 11"),
        ([[1] * (POSITIONS + 1)], "at most 9 tokens a sentence, got 10"),
        ([[1, -1, 2]], "padded only at the end"),
    ):
        with pytest.raises(ArgumentError, match=message):
            getattr(decoder(name), method)(bad)


# ---------------------------------------------------------------- tasks and ranks belong to prompts


@each
def test_a_task_for_each_prompt_is_one_prompt_at_a_time(name):
    model, tasks = routed(name), ["b", None, "a"]
    together = model.predict(IDS, tasks=tasks)
    for rows, prompt, length, task in zip(together, IDS, LENGTHS, tasks, strict=True):
        alone = model.predict(prompt[np.newaxis, :length], tasks=[task])[0]
        assert_allclose(rows[:length], alone, rtol=1e-9, atol=1e-11)
        if task is not None:
            select_task(model, task)
            assert_allclose(rows[:length], model.predict(prompt[np.newaxis, :length])[0], rtol=1e-9, atol=1e-11)
    assert_allclose(together[1], without_adapters(model).predict(IDS)[1], rtol=1e-9, atol=1e-11)


@each
def test_a_rank_for_each_prompt_is_one_prompt_at_a_time(name):
    model, ranks = dylora(name), [4, 1, 2]
    together = model.predict(IDS, rank=ranks)
    for rows, prompt, length, rank in zip(together, IDS, LENGTHS, ranks, strict=True):
        assert_allclose(rows[:length], model.predict(prompt[np.newaxis, :length], rank=rank)[0], rtol=1e-9, atol=1e-11)
    select_rank(model, 2)
    assert_array_equal(model.predict(IDS), model.predict(IDS, rank=2))


# ---------------------------------------------------------------- adapters, merging, files


@each
def test_merging_keeps_the_outputs(name):
    model = adapted(name)
    expected = model.predict(IDS)
    assert merge_in_place(model) == 2 * len(targets(name))
    assert not find(model, StandardLoRAAdapter)
    assert_allclose(model.predict(IDS), expected, rtol=1e-9, atol=1e-11)


@each
def test_a_saved_model_comes_back(name):
    model, file = dylora(name), io.BytesIO()
    select_rank(model, 1)
    save_layer(model, file)
    file.seek(0)
    for twin in (load_layer(file), pickle.loads(pickle.dumps(model)), model.clone()):
        assert type(twin) is CausalLM
        assert twin.head_name == model.head_name
        assert_array_equal(twin.predict(IDS), model.predict(IDS))
        assert_array_equal(twin.predict(IDS, rank=2), model.predict(IDS, rank=2))


@each
def test_peft_folders_there_and_back(tmp_path, name):
    plain, model = decoder(name), adapted(name)
    save_peft(tmp_path / "adapter", model)
    twin = apply_peft(plain, tmp_path / "adapter")
    assert_allclose(twin.predict(IDS), model.predict(IDS), rtol=1e-5, atol=1e-6)
    tasks = apply_peft(plain, {"legal": tmp_path / "adapter", "medical": tmp_path / "adapter"})
    mixed = tasks.predict(IDS, tasks=["legal", None, "medical"])
    assert_allclose(mixed[2], model.predict(IDS)[2], rtol=1e-5, atol=1e-6)
    assert_allclose(mixed[1], plain.predict(IDS)[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_adapters_of_gpt2_fit_the_weights_of_its_checkpoints(tmp_path, head):
    """Conv1D stores (in, out): a square weight, such as that of attn.c_proj, would be merged wrongly without notice."""
    plain = decoder("gpt2")
    if head == "untied":
        plain = CausalLM(plain.body, FullyConnectedLayer(SIZE, VOCABULARY, bias=False, rng=0))
    save_safetensors(tmp_path / "base.safetensors", plain.named_parameters(frozen=True))
    targets = ["attn.c_proj", "mlp.c_fc", *(["lm_head"] if head == "untied" else [])]
    model = filled(
        apply_lora(
            plain,
            StandardLoRAAdapter,
            rank=2,
            targets=targets,
            train=["transformer.h.1.mlp.c_proj", "transformer.h.0.ln_1"],
            rng=0,
        )
    )
    save_peft(tmp_path / "adapter", model)
    weights = load_peft(tmp_path / "adapter")
    assert weights.config["fan_in_fan_out"] is True
    assert weights.whole["transformer.h.1.mlp.c_proj.weight"].shape == (12, SIZE)
    merge_checkpoint(tmp_path / "base.safetensors", weights, tmp_path / "merged.safetensors", fan_in_fan_out=True)
    merged, expected = load_safetensors(tmp_path / "merged.safetensors"), model.predict(IDS)
    twin = apply_peft(plain, tmp_path / "adapter")
    merge_in_place(model)
    for key, array in model.named_parameters(frozen=True).items():
        assert_allclose(merged[key], array, rtol=1e-12)
    assert_allclose(twin.predict(IDS), expected, rtol=1e-12)


def test_a_trained_head_of_gpt2_is_not_stored_like_conv1d(tmp_path):
    plain = decoder("gpt2")
    plain = CausalLM(plain.body, FullyConnectedLayer(SIZE, VOCABULARY, bias=False, rng=0))
    model = apply_lora(plain, StandardLoRAAdapter, rank=2, targets=["lm_head"], freeze_base_layer=False, rng=0)
    save_peft(tmp_path, filled(model))
    assert load_peft(tmp_path).whole["lm_head.weight"].shape == (VOCABULARY, SIZE)
    assert_allclose(apply_peft(plain, tmp_path).predict(IDS), model.predict(IDS), rtol=1e-12)


def test_what_the_caller_says_of_the_layout_counts(tmp_path):
    save_peft(tmp_path, adapted("gpt2"), config={"fan_in_fan_out": False})
    assert load_peft(tmp_path).config["fan_in_fan_out"] is False


@each
def test_float32_stays_float32(name):
    model = filled(apply_lora(decoder(name, np.float32), StandardLoRAAdapter, rank=1, targets=targets(name), rng=0))
    assert model.forward(IDS).dtype == np.float32
    model.backward(batch(*IDS.shape, VOCABULARY))
    assert {gradient.dtype.name for gradient in model.gradients.values()} == {"float32"}


@each
def test_training_on_text_lowers_the_loss(name):
    """Each token from those before it; a sentence of one token has nothing to predict, so all have at least two."""
    model = adapted(name, DyLoRAAdapter, max_rank=2, active_ranks=[1, 2])
    text = np.array([[1, 2, 3, 4, 5], [4, 5, 6, 7, -1], [2, 3, 4, -1, -1]])
    history = fit(model, (text[:, :-1], text[:, 1:]), SoftmaxCrossEntropy(), AdamW(0.05), 60, 3, rng=0)
    assert history.epoch_losses[-1] < 0.7 * history.epoch_losses[0]


@each
def test_operations_are_those_of_the_matrices_and_a_few_more(name):
    """A tied table is a matrix of the head."""
    model = decoder(name)
    matrices = sum(array.size for array in model.named_parameters().values() if array.ndim == 2)
    tables = SIZE * (VOCABULARY + (POSITIONS if name == "gpt2" else 0))
    used = matrices - tables + (SIZE * VOCABULARY if "untied" not in name else 0)
    assert 2 * used <= model.estimate_flops() <= 2.6 * used


@pytest.mark.parametrize(("name", "activation"), [("llama", "swish"), ("gpt2", "gelu")])
def test_a_model_tells_its_activations(name, activation):
    assert decoder(name).get_activation_types().count(activation) == 2


def test_a_model_tells_its_size():
    assert repr(decoder("llama").body) == "LlamaModel(11 -> 8, blocks=2, positions=9, 1,088 parameters)"
    assert repr(decoder("gpt2").body) == "GPT2Model(11 -> 8, blocks=2, positions=9, 1,240 parameters)"
    assert repr(decoder("llama, untied")) == "CausalLM(11 -> 11, 1,176 parameters)"


def test_an_untied_head_can_be_adapted():
    model = apply_lora(decoder("llama, untied"), StandardLoRAAdapter, rank=1, targets=["lm_head"], rng=0)
    assert list(find(model, StandardLoRAAdapter)) == ["lm_head"]
    model.forward(IDS)
    assert list(model._pass.cache.children) == ["lm_head"]  # nothing is kept of the body
    assert isinstance(without_adapters(model).head, FullyConnectedLayer)
