"""BERT encoders and their heads: gradients, ragged batches, adapters, tasks and ranks of sentences, files."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    AdamW,
    ArgumentError,
    ArgumentNullError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    MultiLoRAAdapter,
    NotSupportedError,
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
    trainable_parameters,
    without_adapters,
)
from lora_np.io.peft import apply_peft, save_peft
from lora_np.models.bert import BertBlock, BertModel
from lora_np.models.heads import SentenceEncoder, SequenceClassifier, TokenClassifier
from lora_np.testing import check_gradients
from lora_np.text import predict_by_length
from tests.kinds import batch

CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 11,
    "max_position_embeddings": 7,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, -1, -1, -1], [6, 5, 3, -1, -1]])
Q, V = "attention.self.query", "attention.self.value"


def encoder(seed=0, dtype=np.float64):
    """An encoder whose arrays are of ordinary size, so that nothing is nearly linear or nearly zero."""
    model, rng = BertModel.new(CONFIG, dtype=dtype, rng=seed), np.random.default_rng(seed + 1)
    for array in model.named_parameters().values():
        array[...] = rng.normal(size=array.shape) * (0.5 if array.ndim == 2 else 0.3) + (array.ndim == 1)
    return model


def filled(model, seed=2):
    """The model, each trainable array with numbers that are not near zero."""
    rng = np.random.default_rng(seed)
    for array in model.named_parameters().values():
        array[...] = rng.uniform(0.2, 0.6, array.shape) * rng.choice([-1, 1], array.shape)
    return model


def adapted(model, kind=StandardLoRAAdapter, **choices):
    choices = choices or {"rank": 2}
    return filled(apply_lora(model, kind, targets=["query", "value", "intermediate.dense"], rng=0, **choices))


HEADS = {
    "encoder": lambda model: model,
    "sequence": lambda model: SequenceClassifier(model, 3, rng=0),
    "tokens": lambda model: TokenClassifier(model, 3, rng=0),
    "sentence": SentenceEncoder,
    "sentence, not normalized": lambda model: SentenceEncoder(model, normalize=False),
}
each_head = pytest.mark.parametrize("head", HEADS)


@st.composite
def ids(draw):
    """Sentences of any lengths, often of one token or of equal lengths, in a batch padded as far as it may be."""
    lengths = draw(st.one_of(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.just([1]), st.just([3, 3])))
    width = draw(st.integers(max(lengths), 7))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = np.full((len(lengths), width), -1)
    for row, length in zip(array, lengths, strict=True):
        row[:length] = rng.integers(0, 11, length)
    return array


# ---------------------------------------------------------------- gradients


@each_head
def test_every_gradient_by_complex_step(head):
    errors = check_gradients(HEADS[head](encoder()), IDS, rtol=1e-8)
    assert "input" not in errors
    assert len(errors) == 37 + 2 * (head in ("sequence", "tokens"))


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        (StandardLoRAAdapter, {"rank": 2}),
        (DyLoRAAdapter, {"max_rank": 4, "active_ranks": [1, 2, 4]}),
        (MultiLoRAAdapter, {"default_task_name": "a", "default_rank": 2}),
    ],
    ids=["lora", "dylora", "multilora"],
)
def test_gradients_through_adapters_inside_a_classifier(kind, choices):
    model = adapted(SequenceClassifier(encoder(), 3, rng=0), kind, **choices)
    run = {"rank": [1, 2, 4]} if kind is DyLoRAAdapter else {}
    run = {"tasks": ["a", None, "a"]} if kind is MultiLoRAAdapter else run
    errors = check_gradients(model, IDS, **run)
    assert len(errors) == 12


@given(st.integers(1, 5))
def test_a_block_alone_takes_the_rows_of_one_sequence(rows):
    block = encoder().children()["encoder.layer.0"]
    check_gradients(block, batch(rows, 8), allow_vacuous=rows == 1, rtol=1e-8)
    with pytest.raises(ArgumentError, match=r"input must have shape \(rows, 8\), got \(2, 3, 8\)"):
        block.forward(batch(2, 3, 8))


# ---------------------------------------------------------------- ragged batches


@settings(max_examples=25)
@given(ids())
def test_a_sentence_is_the_same_alone_and_in_any_batch(array):
    model = encoder()
    hidden = model.predict(array)
    assert hidden.shape == (*array.shape, 8)
    for sentence, rows in zip(array, hidden, strict=True):
        length = (sentence >= 0).sum()
        assert_allclose(model.predict(sentence[np.newaxis, :length])[0], rows[:length], rtol=1e-11, atol=1e-12)
        assert not rows[length:].any()


@each_head
def test_padding_changes_nothing_to_the_bit(head):
    model = HEADS[head](encoder())
    wide = np.pad(IDS, ((0, 0), (0, 2)), constant_values=-1)
    narrow, padded = model.forward(IDS), model.forward(wide)
    assert_array_equal(padded[:, : narrow.shape[1]] if narrow.ndim == 3 else padded, narrow)


@each_head
def test_the_order_of_sentences_does_not_matter(head):
    model, order = HEADS[head](encoder()), [2, 0, 1]
    assert_allclose(model.predict(IDS[order]), model.predict(IDS)[order], rtol=1e-11, atol=1e-12)


def test_the_embedding_is_the_mean_of_the_tokens_of_length_one():
    model, lengths = encoder(), (IDS >= 0).sum(axis=1, keepdims=True)
    mean = model.predict(IDS).sum(axis=1) / lengths
    assert_allclose(SentenceEncoder(model, normalize=False).predict(IDS), mean, rtol=1e-12)
    assert_allclose(SentenceEncoder(model).predict(IDS), mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-12)


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[1.0, 2.0]], r"integer token ids of shape \(sentences, tokens\), got float64 of shape \(1, 2\)"),
        ([[True, False]], "integer token ids .* got bool"),
        ([1, 2, 3], r"integer token ids .* of shape \(3,\)"),
        ([[1, 2], [3]], "padded with -1 to equal lengths"),
        ([[1, 11]], r"ids in 0\.\.10, and -1 for padding, got 11"),
        ([[1, -2]], "and -1 for padding, got -2"),
        ([[1, 2], [-1, -1]], "at least one token in each sentence, got none in sentence 1"),
        ([[1, 2, 3], [4, -1, 5]], "padded only at the end of a sentence, got a gap in sentence 1"),
        ([[1] * 8], "at most 7 tokens a sentence, got 8"),
        ([["a", "b"]], "integer token ids"),
        (np.zeros((2, 0), int), "at least one token in each sentence, got none in sentence 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["predict", "forward"])
@each_head
def test_bad_ids_are_refused_by_name(head, method, bad, message):
    with pytest.raises(ArgumentError, match=message):
        getattr(HEADS[head](encoder()), method)(bad)


def test_ids_are_copied_only_if_asked():
    ids, model = np.array([[1, 2]], np.intp), encoder()
    assert np.shares_memory(model.check_input(ids), ids)
    assert not np.shares_memory(model.check_input(ids, copy=True), ids)


def test_no_ids_are_refused():
    with pytest.raises(ArgumentNullError, match="input must not be None"):
        encoder().predict(None)
    model = SequenceClassifier(encoder(), 3, rng=0)
    with pytest.raises(ArgumentError, match=r"^inputs must contain ids in 0\.\.10"):
        fit(model, ([[99]], [0]), SoftmaxCrossEntropy(), AdamW(), 1, 1)


@pytest.mark.parametrize("head", [SequenceClassifier, TokenClassifier])
def test_a_head_needs_an_encoder(head):
    with pytest.raises(
        ArgumentError, match="encoder must be a model of token ids without a head, such as BertModel, got Dense"
    ):
        head(DenseLayer(3, 2), 2)
    with pytest.raises(ArgumentNullError, match="encoder"):
        head(None, 2)


def test_no_head_on_a_head():
    with pytest.raises(ArgumentError, match="encoder must be a model of token ids without a head"):
        SentenceEncoder(SentenceEncoder(encoder()))
    with pytest.raises(ArgumentError, match="encoder must be a model of token ids without a head"):
        SequenceClassifier(SentenceEncoder(encoder()), 2)


# ---------------------------------------------------------------- tasks and ranks belong to sentences


def routed():
    model = SequenceClassifier(encoder(), 3, rng=0)
    model = apply_lora(model, MultiLoRAAdapter, default_task_name="a", default_rank=2, rng=0)
    for adapter in find(model, MultiLoRAAdapter).values():
        adapter.add_task("b", 1)
    return filled(model)


def test_a_task_for_each_sentence_is_one_sentence_at_a_time():
    model, tasks = routed(), ["b", None, "a"]
    together = model.predict(IDS, tasks=tasks)
    for row, sentence, task in zip(together, IDS, tasks, strict=True):
        assert_allclose(row, model.predict(sentence[np.newaxis], tasks=[task])[0], rtol=1e-11)
        if task is not None:
            select_task(model, task)
            assert_allclose(row, model.predict(sentence[np.newaxis])[0], rtol=1e-11)
    assert_allclose(together[1], without_adapters(model).predict(IDS)[1], rtol=1e-11)


def test_a_mixed_batch_trains_each_task_as_on_its_own_sentences():
    model, tasks, dy = routed(), ["b", "a", "b"], batch(3, 3)
    model.forward(IDS, tasks=tasks)
    model.backward(dy)
    mixed = dict(model.gradients)
    for task, rows in {"a": [1], "b": [0, 2]}.items():
        select_task(model, task)
        model.forward(IDS[rows])
        model.backward(dy[rows])
        for name, gradient in model.gradients.items():
            assert_allclose(mixed[name], gradient, rtol=1e-9, atol=1e-12)
    assert len(mixed) == 2 * len(model.gradients)


def test_a_rank_for_each_sentence_is_one_sentence_at_a_time():
    model = adapted(SequenceClassifier(encoder(), 3, rng=0), DyLoRAAdapter, max_rank=4, active_ranks=[1, 2, 4])
    together = model.predict(IDS, rank=[4, 1, 2])
    for row, sentence, rank in zip(together, IDS, [4, 1, 2], strict=True):
        assert_allclose(row, model.predict(sentence[np.newaxis], rank=rank)[0], rtol=1e-11)
    assert select_rank(model, 2) == 6
    assert_array_equal(model.predict(IDS), model.predict(IDS, rank=2))


@pytest.mark.parametrize("tasks", [["a", "b"], ["a", "b", "c"], "abc"], ids=str)
def test_tasks_that_do_not_fit_the_sentences_are_refused(tasks):
    with pytest.raises(ArgumentError, match="tasks"):
        routed().forward(IDS, tasks=tasks)


# ---------------------------------------------------------------- only what trains costs something


def kept_layers(cache, prefix=""):
    found = [prefix] if prefix else []
    children = getattr(cache, "children", None)
    for name, child in ({} if children is None else children).items():
        found += kept_layers(child, f"{prefix}.{name}" if prefix else name)
    return found


def test_nothing_is_kept_below_the_lowest_layer_that_trains():
    model = SequenceClassifier(encoder(), 3, rng=0)
    model = apply_lora(model, StandardLoRAAdapter, rank=1, targets=r".*layer\.1\..*query", train=["classifier"], rng=0)
    model.forward(IDS)
    blocks = {name.split("layer.")[1][0] for name in kept_layers(model._pass.cache) if "layer." in name}
    assert blocks == {"1"}
    model.backward(batch(3, 3))
    assert set(model.gradients) == {*model.named_parameters()}
    head_only = apply_lora(SequenceClassifier(encoder(), 3), StandardLoRAAdapter, rank=1, targets=["classifier"], rng=0)
    head_only.forward(IDS)
    assert kept_layers(head_only._pass.cache) == ["classifier"]


def test_the_lowest_layer_that_trains_is_not_differentiated_further(monkeypatch):
    model = apply_lora(SequenceClassifier(encoder(), 3), StandardLoRAAdapter, rank=1, targets=r".*layer\.1\..*query", rng=0)
    asked = []
    for name, layer in find(model, StandardLoRAAdapter).items():
        vjp = layer.vjp

        def noted(*args, vjp=vjp, name=name, **options):
            asked.append((name, options["inputs"]))
            return vjp(*args, **options)

        monkeypatch.setattr(layer, "vjp", noted)
    model.forward(IDS)
    assert model.backward(batch(3, 3)) is None
    assert asked == [(f"bert.encoder.layer.1.{Q}", False)]


# ---------------------------------------------------------------- adapters, merging, files


def test_names_are_those_of_the_checkpoint():
    model = encoder()
    names = list(model.named_parameters())
    assert names[0] == "embeddings.word_embeddings.weight"
    assert "encoder.layer.1.attention.output.LayerNorm.bias" in names
    wrapped = apply_lora(model, StandardLoRAAdapter, rank=1, targets=["output.dense"], rng=0)
    assert [path.removeprefix("encoder.layer.") for path in find(wrapped, StandardLoRAAdapter)] == [
        "0.attention.output.dense",
        "0.output.dense",
        "1.attention.output.dense",
        "1.output.dense",
    ]


@each_head
def test_merging_keeps_the_outputs(head):
    model = adapted(HEADS[head](encoder()))
    expected = model.predict(IDS)
    assert merge_in_place(model) == 6
    assert not find(model, StandardLoRAAdapter)
    assert_allclose(model.predict(IDS), expected, rtol=1e-10, atol=1e-12)


@each_head
def test_a_saved_model_comes_back(head):
    model, file = adapted(HEADS[head](encoder()), DyLoRAAdapter, max_rank=2, active_ranks=[1, 2]), io.BytesIO()
    select_rank(model, 1)
    save_layer(model, file)
    file.seek(0)
    twin = load_layer(file)
    assert type(twin) is type(model)
    assert_array_equal(twin.predict(IDS), model.predict(IDS))
    assert_array_equal(twin.predict(IDS, rank=2), model.predict(IDS, rank=2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_peft_folders_there_and_back(tmp_path, dtype):
    plain = encoder(dtype=dtype)
    model = adapted(plain)
    save_peft(tmp_path / "adapter", model)
    twin = apply_peft(plain, tmp_path / "adapter")
    assert_allclose(twin.predict(IDS), model.predict(IDS), rtol=1e-5, atol=1e-6)
    tasks = apply_peft(plain, {"legal": tmp_path / "adapter", "medical": tmp_path / "adapter"})
    assert_allclose(tasks.predict(IDS, tasks=["legal", None, "medical"])[2], model.predict(IDS)[2], rtol=1e-4, atol=1e-5)
    assert_allclose(tasks.predict(IDS, tasks=["legal", None, "medical"])[1], plain.predict(IDS)[1], rtol=1e-4, atol=1e-5)


def test_float32_stays_float32():
    model = adapted(SequenceClassifier(encoder(dtype=np.float32), 3, rng=0))
    assert model.forward(IDS).dtype == np.float32
    model.backward(batch(3, 3))
    assert {gradient.dtype.name for gradient in model.gradients.values()} == {"float32"}


@pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier])
def test_training_lowers_the_loss(kind):
    choices = {"max_rank": 2, "active_ranks": [1, 2], "targets": ["query", "value", "intermediate.dense"]}
    model = apply_lora(kind(encoder(), 2, rng=0), DyLoRAAdapter, **choices, train=["classifier"], rng=0)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 11, (24, 6))
    labels = (inputs[:, 0] > 5).astype(int) if kind is SequenceClassifier else (inputs > 5).astype(int)
    history = fit(model, (inputs, labels), SoftmaxCrossEntropy(), AdamW(0.05), 40, 8, rng=0)
    assert history.epoch_losses[-1] < 0.7 * history.epoch_losses[0]
    assert trainable_parameters(model, rank=1).trainable < trainable_parameters(model).trainable


def test_heads_divide_the_size():
    with pytest.raises(ArgumentError, match="heads must divide the size 8, got 3"):
        BertModel.new(CONFIG | {"num_attention_heads": 3})


def test_a_model_tells_its_size():
    model = encoder()
    assert repr(model) == "BertModel(11 -> 8, blocks=2, positions=7, 1,240 parameters)"


def test_a_step_needs_a_pass():
    with pytest.raises(InvalidOperationError):
        encoder().backward(batch(3, 5, 8))


def test_a_model_of_ids_says_why_it_has_no_graph():
    model = encoder()
    assert not model.supports_jit_compilation
    with pytest.raises(NotSupportedError, match=r"Embedding.* has no computation graph: it looks up rows"):
        model.export_computation_graph([])


def test_estimates_and_diagnostics():
    model = SequenceClassifier(encoder(), 3, rng=0)
    assert model.estimate_activation_memory() > 8 * 8 * 2
    assert model.estimate_flops() > 2 * 2 * (4 * 8 * 8 + 2 * 8 * 12)
    assert model.get_diagnostics()["layer.type"] == "SequenceClassifier"
    assert isinstance(model.walk()["bert.encoder.layer.0"], BertBlock)


# ---------------------------------------------------------------- other children; batches by length


def test_another_child_must_fit():
    model = SequenceClassifier(encoder(), 3, rng=0)
    with pytest.raises(ArgumentError, match="changed must name layers among bert, classifier, got 'head'"):
        model.with_children({"head": DenseLayer(4, 3)})
    with pytest.raises(ArgumentError, match=r"classifier must be \d+ -> 3 in float64, got DenseLayer"):
        model.with_children({"classifier": DenseLayer(4, 5)})


def test_predictions_in_batches_of_similar_length():
    ids = np.array([[1, 2, 3], [4, -1, -1], [5, 6, -1], [7, -1, -1]])
    model = filled(
        apply_lora(SequenceClassifier(encoder(), 3, rng=0), MultiLoRAAdapter, default_task_name="a", default_rank=2)
    )
    tasks = ["a", None, "a", None]
    assert_allclose(predict_by_length(model, ids, batch_size=2), model.predict(ids), rtol=0, atol=1e-12)
    mixed = predict_by_length(model, ids, tasks=tasks, batch_size=2)
    assert_allclose(mixed, model.predict(ids, tasks=tasks), rtol=0, atol=1e-12)
    assert np.abs(mixed - predict_by_length(model, ids)).max() > 1e-3
    with pytest.raises(ArgumentError, match="tasks"):
        predict_by_length(model, ids, tasks=["a"])


def test_a_rank_for_each_sentence_in_batches_of_similar_length():
    ids = np.array([[1, 2, 3], [4, -1, -1], [5, 6, -1], [7, -1, -1]])
    adapter = {"max_rank": 3, "active_ranks": [1, 2, 3], "rng": 0}
    model = filled(apply_lora(SequenceClassifier(encoder(), 3, rng=0), DyLoRAAdapter, **adapter))
    for ranks in ([1, 2, 3, 3], np.array([3, 3, 1, 2])):
        expected = model.predict(ids, rank=ranks)
        for batch_size in (2, 3, 64):
            result = predict_by_length(model, ids, rank=ranks, batch_size=batch_size)
            assert_allclose(result, expected, rtol=0, atol=1e-12)
    assert_allclose(predict_by_length(model, ids, rank=1), model.predict(ids, rank=1), rtol=0, atol=1e-12)
    for wrong in ([1, 2], lambda layer: 1):
        with pytest.raises(ArgumentError, match="rank must be an integer, or an integer for each"):
            predict_by_length(model, ids, rank=wrong)
