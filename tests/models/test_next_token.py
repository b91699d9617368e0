"""The loss of the next token: against softmax cross-entropy, by complex step, in pieces; and training with it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    AdamW,
    ArgumentError,
    ArgumentOutOfRangeError,
    CausalLM,
    FullyConnectedLayer,
    InvalidOperationError,
    LlamaModel,
    MultiLoRAAdapter,
    NextTokenLoss,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    apply_lora,
    fit,
)
from lora_np.functions.numerical import numerical_gradient
from lora_np.models import next_token
from lora_np.models.next_token import next_token_data

from .decoders import LLAMA, SIZE, VOCABULARY, decoder

MODELS = ["llama", "llama, untied", "gpt2"]


def adapted(name, targets=("q_proj", "v_proj", "c_attn"), dtype=np.float64):
    """A decoder with an adapter that is not zero, of which only the adapters train."""
    model = decoder(name, dtype)
    present = [target for target in targets if any(path.endswith(target) for path in model.walk())]
    model = apply_lora(model, StandardLoRAAdapter, rank=2, targets=present, rng=0)
    rng = np.random.default_rng(2)
    model.set_parameters(0.3 * rng.normal(size=model.parameter_count))
    return model


def batch(seed, sequences=3, width=5):
    """Ids of different lengths, and targets of which some are ignored, but not all of a sequence."""
    rng = np.random.default_rng(seed)
    ids, targets = (rng.integers(0, VOCABULARY, (sequences, width)) for _ in range(2))
    for row, length in enumerate(rng.integers(1, width + 1, sequences)):
        ids[row, length:] = -1
        ignored = rng.random(width) < 0.4
        ignored[rng.integers(length)] = False
        targets[row, ignored | (np.arange(width) >= length)] = rng.choice([-1, -100])
    return ids, targets


# ---------------------------------------------------------------- value and gradient


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 4))
def test_it_is_softmax_cross_entropy_on_the_logits(name, seed, rows):
    model, (ids, targets) = adapted(name), batch(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_token, "PIECE", rows * VOCABULARY)
        value, dh = NextTokenLoss(model).value_and_gradient(model.body.predict(ids), targets)
    logits = model.predict(ids)
    expected, dz = SoftmaxCrossEntropy().value_and_gradient(logits, targets)
    assert value == pytest.approx(expected, rel=1e-13)
    expected_dh = dz @ model.head.weight
    assert_allclose(dh, expected_dh, rtol=1e-10, atol=1e-14)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_gradient_is_that_of_the_value(seed):
    model, (ids, targets) = adapted("llama"), batch(seed)
    loss, hidden = NextTokenLoss(model), model.body.predict(ids)
    expected = numerical_gradient(lambda h: loss.compute(h, targets)[0], hidden)
    assert_allclose(loss.compute(hidden, targets)[1], expected, rtol=1e-9, atol=1e-13)


@given(seed=st.integers(0, 2**32 - 1))
def test_sequences_may_have_weights(seed):
    model, (ids, targets) = adapted("llama"), batch(seed)
    hidden = model.body.predict(ids)
    weights = np.random.default_rng(seed).uniform(0.1, 2, len(ids))
    value, dh = NextTokenLoss(model).value_and_gradient(hidden, targets, weights)
    expected, dz = SoftmaxCrossEntropy().value_and_gradient(model.predict(ids), targets, weights)
    assert value == pytest.approx(expected, rel=1e-12)
    assert_allclose(dh, dz @ model.head.weight, rtol=1e-10, atol=1e-14)


def test_a_sequence_alone_needs_no_axis_of_sequences():
    model, (ids, targets) = adapted("llama"), batch(0, sequences=1)
    loss, hidden = NextTokenLoss(model), model.body.predict(ids)
    value, dh = loss.value_and_gradient(hidden[0], targets[0])
    assert value == loss(hidden, targets)
    assert dh.shape == hidden[0].shape
    with pytest.raises(ArgumentError, match="got none in sequence 0"):
        loss(hidden[0], np.full(len(targets[0]), -1))


def test_no_sequences_have_no_loss():
    loss = NextTokenLoss(adapted("llama"))
    assert loss(np.zeros((0, 2, SIZE)), np.zeros((0, 2), int), []) == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_the_body_is_a_step_of_the_model(name):
    ids, targets = batch(0)
    whole, parts = adapted(name), adapted(name)
    for model, layer, loss in ((whole, whole, SoftmaxCrossEntropy()), (parts, parts.body, NextTokenLoss(parts))):
        _, dy = loss.value_and_gradient(layer.forward(ids), targets)
        layer.backward(dy, need_input_grad=False)
        layer.update_parameters(0.1)
        assert model.parameter_count > 0
    assert_allclose(parts.get_parameters(), whole.get_parameters(), rtol=1e-10, atol=1e-13)
    assert (parts.get_parameters() != adapted(name).get_parameters()).any()


def test_a_worked_example():
    model = CausalLM(
        LlamaModel.new(LLAMA, dtype=np.float64, rng=0), FullyConnectedLayer(SIZE, VOCABULARY, bias=False, rng=0)
    )
    model.frozen = frozenset(["lm_head"])
    model.head.weight[...] = 0
    model.head.weight[3, 0], model.head.weight[5, 1] = 1, 2
    hidden = np.zeros((1, 2, SIZE))
    hidden[0, 0, :2] = np.log(10), np.log(3)  # unnormalised probabilities 10 for id 3, 9 for id 5, 1 for the 9 others
    value, gradient = NextTokenLoss(model).value_and_gradient(hidden, [[3, -1]])
    assert value == pytest.approx(np.log(2.8))
    assert_allclose(gradient[0, 0, :3], [10 / 28 - 1, 2 * 9 / 28, 0])
    assert_array_equal(gradient[0, 1], 0)


def test_large_logits_do_not_overflow():
    model = adapted("llama")
    hidden = 1e4 * model.body.predict([[1, 2]])
    with np.errstate(over="raise", invalid="raise"):
        value, gradient = NextTokenLoss(model).value_and_gradient(hidden, [[1, 2]])
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_the_logits_are_never_in_memory_together(monkeypatch):
    vocabulary, tokens = 5000, 400
    config = LLAMA | {"vocab_size": vocabulary, "max_position_embeddings": tokens, "num_hidden_layers": 1}
    model = CausalLM(LlamaModel.new(config, rng=0))
    model.frozen = frozenset(["model"])
    monkeypatch.setattr(next_token, "PIECE", 1 << 16)
    loss, hidden = NextTokenLoss(model), np.ones((1, tokens, SIZE), np.float32)
    targets = np.arange(tokens)[np.newaxis]
    tracemalloc.start()
    loss.value_and_gradient(hidden, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 4 * next_token.PIECE  # a piece and the products; all logits take 8 MB
    assert 4 * tokens * vocabulary > 10 * peak


def test_rows_without_a_target_cost_nothing():
    model, rows = adapted("llama"), []
    loss = NextTokenLoss(model)
    real = loss.head.apply
    loss.head.apply = lambda x, run: (rows.append(len(x)), real(x, run))[1]
    loss.value_and_gradient(model.body.predict([[1, 2, 3], [4, -1, -1]]), [[-1, 2, -1], [5, -1, -1]])
    assert rows == [2]


# ---------------------------------------------------------------- what is refused


def test_a_head_that_trains_is_refused():
    for name in MODELS:
        with pytest.raises(InvalidOperationError, match=r"trains, but NextTokenLoss .* SoftmaxCrossEntropy on its logits"):
            NextTokenLoss(decoder(name))
    with pytest.raises(InvalidOperationError, match="lm_head trains"):
        NextTokenLoss(adapted("llama, untied", ["lm_head"]))
    with pytest.raises(ArgumentError, match="model must be a CausalLM"):
        NextTokenLoss(decoder("llama").body)


@pytest.mark.parametrize(
    ("shape", "targets", "error", "message"),
    [
        (
            (1, 2, VOCABULARY),
            [[1, 2]],
            ArgumentError,
            "predictions must be hidden states of shape .*the output of the model",
        ),
        ((1, 2, SIZE), [[1.0, 2.0]], ArgumentError, r"targets must be integers of shape \(1, 2\), got float64"),
        ((1, 2, SIZE), [[1]], ArgumentError, r"targets must be integers of shape \(1, 2\), got int64 of shape \(1, 1\)"),
        (
            (1, 2, SIZE),
            [[1, VOCABULARY]],
            ArgumentOutOfRangeError,
            r"targets must be labels in 0\.\.10, or -1 or -100 .* got 11",
        ),
        ((1, 2, SIZE), [[1, -2]], ArgumentOutOfRangeError, r"targets must be labels in 0\.\.10, or -1 or -100 .* got -2"),
        ((2, 2, SIZE), [[1, 1], [-1, -100]], ArgumentError, "got none in sequence 1"),
        ((SIZE,), -1, ArgumentError, "got none in sequence 0"),
        ((), 1, ArgumentError, "predictions must be hidden states"),
    ],
    ids=str,
)
def test_predictions_and_targets_must_fit(shape, targets, error, message):
    loss = NextTokenLoss(adapted("llama"))
    with pytest.raises(error, match=message):
        loss.value_and_gradient(np.zeros(shape), targets)


def test_fit_checks_all_targets_before_the_first_step():
    model = adapted("llama")
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match="got none in sequence 1"):
        fit(model.body, ([[1, 2], [3, 4]], [[2, 3], [-1, -1]]), NextTokenLoss(model), AdamW(0.1), 1, 1)
    assert_array_equal(model.get_parameters(), before)


# ---------------------------------------------------------------- data


def test_targets_of_prompts_are_ignored():
    ids, targets = next_token_data([[1, 2, 3], np.array([4, -1, -1]), []], [[5], (6, 7), [8, 9]])
    assert_array_equal(ids, [[1, 2, 3], [4, 6, -1], [8, -1, -1]])
    assert_array_equal(targets, [[-1, -1, 5], [6, 7, -1], [9, -1, -1]])


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1)), min_size=1))
def test_every_token_of_an_answer_is_a_target_once(pairs):
    prompts, answers = zip(*pairs, strict=True)
    ids, targets = next_token_data(prompts, answers)
    for row, aims, prompt, answer in zip(ids, targets, prompts, answers, strict=True):
        assert [*row[row >= 0], answer[-1]] == prompt + answer
        assert aims[aims >= 0].tolist() == answer
        places = np.flatnonzero(aims >= 0)
        assert_array_equal(places, np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1))


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([[1]], [], "must have the same, non-zero length, got 1 and 0"),
        ([], [], "must have the same, non-zero length, got 0 and 0"),
        ([[1]], [[]], r"at least one token to learn, got \[\] after \[1\] in row 0"),
        ([[]], [[1]], r"at least one token to learn, got \[1\] after \[\]"),
        ([[1, -1, 2]], [[1]], "prompts must contain non-negative ids"),
        ([[1]], [[-2]], "answers must contain non-negative ids"),
        ([[1.5]], [[2]], "each of prompts must be an integer"),
        (["ab"], [[2]], "prompts must contain sequences of token ids, got 'ab'"),
        ("ab", [[2]], "prompts must be a sequence of sequences"),
        ([1], [[2]], "prompts must contain sequences of token ids, got 1"),
        (None, [[2]], "prompts must be a sequence of sequences"),
    ],
    ids=str,
)
def test_prompts_and_answers_must_be_ids(prompts, answers, message):
    with pytest.raises(ArgumentError, match=message):
        next_token_data(prompts, answers)


# ---------------------------------------------------------------- training


def answer(model, prompt, count, **choices):
    """Greedy tokens after a prompt, recomputed from scratch for each."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.predict([ids], **choices)[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_lora_trained_on_fifty_lines_changes_the_answers():
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, VOCABULARY, (50, 3))
    prompts[:, 1] = np.arange(50) % 2  # the question, to which the answers are 5 6 and 3 4
    answers = [[5, 6] if question else [3, 4] for question in prompts[:, 1]]
    base = decoder("llama", seed=3)
    model = apply_lora(base, StandardLoRAAdapter, rank=4, rng=1)
    test = [(5, 0, 4), (8, 1, 10), (4, 1, 4), (9, 0, 9)]
    loss, data = NextTokenLoss(model), next_token_data(prompts, answers)
    before = [answer(model, prompt, 2) for prompt in test]
    history = fit(model.body, data, loss, AdamW(1e-2), epochs=60, batch_size=10, rng=2)
    assert history.epoch_losses[-1] < 0.3 * history.epoch_losses[0]
    assert [answer(model, prompt, 2) for prompt in test] == [[3, 4], [5, 6], [5, 6], [3, 4]] != before
    assert_array_equal(base.get_parameters(), decoder("llama", seed=3).get_parameters())


def test_the_answer_of_each_task_is_trained_in_one_batch():
    rng = np.random.default_rng(0)

    def two(layer):
        adapter = MultiLoRAAdapter(layer, "polite", default_rank=4, rng=rng)
        adapter.add_task("rude", rank=4)
        return adapter

    model = apply_lora(decoder("llama", seed=3), two)
    prompts, tasks = rng.integers(3, VOCABULARY, (60, 3)), ["polite", "rude"] * 30
    answers = [[5] if task == "polite" else [3] for task in tasks]
    fit(model.body, next_token_data(prompts, answers), NextTokenLoss(model), AdamW(1e-2), 20, 12, tasks=tasks, rng=2)
    assert answer(model, (5, 9, 4), 1, tasks=["polite"]) == [5]
    assert answer(model, (5, 9, 4), 1, tasks=["rude"]) == [3]


def test_terms_are_the_tokens_that_count():
    targets = np.array([[-1, 4, 2], [3, -1, -1]])
    for loss in (NextTokenLoss(adapted("llama")), SoftmaxCrossEntropy()):
        assert loss.terms(targets).tolist() == [2, 1]
