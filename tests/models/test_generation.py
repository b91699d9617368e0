"""`generate`: equal to recomputation, for each prompt of a batch, with its task and rank, until it ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    ArgumentError,
    ArgumentNullError,
    ArgumentOutOfRangeError,
    CausalLM,
    DenseLayer,
    DyLoRAAdapter,
    LlamaModel,
    MultiLoRAAdapter,
    NonFiniteError,
    apply_lora,
    find,
    generate,
    select_rank,
    select_task,
)
from lora_np.models.transformer import Transformer
from lora_np.run import INFERENCE
from lora_np.sequences import Past, Spans
from tests.models.decoders import BUILD, POSITIONS, VOCABULARY, decoder, targets

IDS = np.array([[3, 1, 4, 1], [9, 2, -1, -1], [6, -1, -1, -1]])
each = pytest.mark.parametrize("name", BUILD)


def together(*arguments, **options):
    """All tokens, (prompts, new)."""
    return np.stack([*generate(*arguments, **options)], axis=1)


def recomputed(model, prompt, new, **options):
    """Greedy tokens after one prompt, each by a pass over everything."""
    tokens = [int(token) for token in prompt if token >= 0]
    start = len(tokens)
    for _ in range(new):
        tokens.append(int(model.predict([tokens], **options)[0, -1].argmax()))
    return tokens[start:]


def lively(name, seed=0):
    """A model with large weights, whose next token depends on more than the last one."""
    model = decoder(name)
    rng = np.random.default_rng(seed)
    for array in model.named_parameters().values():
        if array.ndim == 2:
            array[...] = rng.normal(size=array.shape)
    return model


@st.composite
def prompts(draw):
    lengths = draw(st.one_of(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.just([3, 3])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = np.full((len(lengths), draw(st.integers(max(lengths), 7))), -1)
    for row, length in zip(array, lengths, strict=True):
        row[:length] = rng.integers(0, VOCABULARY, length)
    return array


# ---------------------------------------------------------------- greedy tokens


@each
@settings(max_examples=15)
@given(prompts(), st.integers(0, 3))
def test_greedy_tokens_are_those_of_recomputation(name, ids, seed):
    model = lively(name, seed)
    tokens = together(model, ids, 5)
    assert tokens.dtype.kind == "i"
    for row, prompt in zip(tokens, ids, strict=True):
        assert row.tolist() == recomputed(model, prompt, 5)


@each
def test_the_hidden_states_after_a_past_are_those_of_one_pass(name):
    """In pieces of several tokens as well, and for prompts of different lengths."""
    body, ids = decoder(name).body, np.array([[3, 1, 4, 1, 5, 9], [2, 7, 8, -1, -1, -1]])
    expected, past = body.predict(ids), Past(6)
    for offsets, lengths in (([0, 0], [2, 1]), ([2, 1], [3, 1]), ([5, 2], [1, 1])):
        rows = np.concatenate([ids[b, offsets[b] : offsets[b] + lengths[b]] for b in range(2)])
        spans = Spans.of(np.array(lengths), offsets=np.array(offsets) if any(offsets) else None)
        hidden, _ = body.apply(rows, INFERENCE.over(spans)._replace(past=past))
        wanted = np.concatenate([expected[b, offsets[b] : offsets[b] + lengths[b]] for b in range(2)])
        assert_allclose(hidden, wanted, rtol=1e-10, atol=1e-12)


@each
def test_float32_tokens_of_a_long_prompt(name):
    model, prompt = lively(name), np.arange(POSITIONS - 2)[np.newaxis]
    assert together(model, prompt, 3).shape == (1, 3)


def test_tokens_come_one_after_another_without_the_rest():
    tokens = generate(lively("llama"), IDS, 5)
    assert iter(tokens) is tokens
    first = next(tokens)
    assert first.shape == (3,)
    assert_array_equal(first, together(lively("llama"), IDS, 1)[:, 0])


def test_generators_of_one_model_do_not_disturb_each_other():
    model = lively("gpt2")
    model.train()
    one, other = generate(model, IDS, 4), generate(model, IDS[:, :2], 4)
    mixed = [(next(one), next(other)) for _ in range(4)]
    assert_array_equal(np.stack([tokens for tokens, _ in mixed], axis=1), together(model, IDS, 4))
    assert_array_equal(np.stack([tokens for _, tokens in mixed], axis=1), together(model, IDS[:, :2], 4))
    assert model.is_training


def test_the_ids_may_change_after_the_call():
    model, ids = lively("llama"), IDS.copy()
    tokens = generate(model, ids, 3)
    ids[...] = 0
    assert_array_equal(np.stack([*tokens], axis=1), together(model, IDS, 3))


def test_no_prompts():
    assert [*generate(lively("llama"), np.empty((0, 3), int), POSITIONS + 1)] == []


# ---------------------------------------------------------------- the end of a sentence


@each
@settings(max_examples=15)
@given(prompts(), st.integers(0, 5), st.lists(st.integers(0, VOCABULARY - 1), max_size=4))
def test_a_sentence_ends_with_a_stop_token(name, ids, seed, stop):
    model = lively(name, seed)
    whole, found = together(model, ids, 4), together(model, ids, 4, stop=stop)
    for row, expected in zip(found, whole, strict=True):
        ends = np.flatnonzero(np.isin(expected, stop))
        length = ends[0] + 1 if ends.size else 4
        assert_array_equal(row[:length], expected[: len(row)][:length])
        assert (row[length:] == -1).all()
    assert (found[:, -1] >= 0).any()  # it ends with the last sentence


def test_one_stop_token_needs_no_list():
    model = lively("llama")
    first = int(together(model, IDS, 1)[0, 0])
    for stop in (first, np.int64(first), np.array(first), np.array([first]), {first}, iter([first])):
        assert_array_equal(together(model, IDS, 4, stop=stop), together(model, IDS, 4, stop=[first]))


def rows_of_passes(monkeypatch, *arguments, **options):
    """The number of rows of each pass through the body, and the number of tokens."""
    rows, apply = [], Transformer.apply

    def noted(self, x, run):
        rows.append(len(x))
        return apply(self, x, run)

    monkeypatch.setattr(Transformer, "apply", noted)
    return rows, together(*arguments, **options)


def test_finished_sentences_leave_the_batch(monkeypatch):
    """The second ends with its third token, the first with its fourth."""
    model = lively("llama, untied", 1)
    rows, found = rows_of_passes(monkeypatch, model, IDS, 5, stop=[2, 4])
    assert (found >= 0).sum(axis=1).tolist() == [4, 3, 5]
    assert rows == [7, 3, 3, 2, 1]


def test_nothing_is_kept_for_a_backward_pass(monkeypatch):
    kept, apply = [], Transformer.apply
    monkeypatch.setattr(Transformer, "apply", lambda self, x, run: kept.append(run.keep) or apply(self, x, run))
    together(lively("llama"), IDS, 3)
    assert kept == [False, False, False]


def test_logits_are_computed_for_the_last_token_of_each_prompt_alone(monkeypatch):
    model, rows = lively("llama, untied"), []
    head = model.head
    monkeypatch.setattr(head, "apply", lambda x, run, apply=head.apply: rows.append(len(x)) or apply(x, run))
    together(model, IDS, 3)
    assert rows == [3, 3, 3]


# ---------------------------------------------------------------- draws


def constant(logits):
    """A model whose logits are the same whatever the tokens are."""
    config = {"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 2}
    config |= {"vocab_size": len(logits), "max_position_embeddings": 50}
    body = LlamaModel.new(config, dtype=np.float64, rng=0)
    for name, array in body.named_parameters().items():
        array[...] = 1.0 if array.ndim == 1 or name.startswith("embed") else 0.0
    head = DenseLayer(2, len(logits), bias=False)
    head.weight[...] = np.array(logits) / 2  # the hidden state is (1, 1), but for the epsilon of the norm
    return CausalLM(body, head)


def frequencies(logits, prompts=20_000, **options):
    found = together(constant(logits), np.zeros((prompts, 1), int), 1, rng=0, **options)[:, 0]
    return np.bincount(found, minlength=len(logits)) / prompts


@pytest.mark.parametrize(("temperature", "power"), [(1.0, 1), (0.5, 2), (2.0, 0.5)])
def test_tokens_have_the_probabilities_of_the_softmax_at_a_temperature(temperature, power):
    weights = np.array([1.0, 2, 4, 0])
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(weights), -1e3)
    expected = weights**power / (weights**power).sum()
    assert_allclose(frequencies(logits, temperature=temperature), expected, atol=0.02)


def test_top_k_draws_among_the_largest_and_those_equal_to_the_smallest_of_them():
    logits = np.log([1.0, 4, 2, 2, 8])
    assert_allclose(frequencies(logits, temperature=1, top_k=2), [0, 1 / 3, 0, 0, 2 / 3], atol=0.02)
    assert_allclose(frequencies(logits, temperature=1, top_k=3), [0, 1 / 4, 1 / 8, 1 / 8, 1 / 2], atol=0.02)
    for k in (5, 50):
        assert_allclose(frequencies(logits, temperature=1, top_k=k), np.array([1, 4, 2, 2, 8]) / 17, atol=0.02)
    assert_array_equal(frequencies(logits, 100, temperature=1, top_k=1), [0, 0, 0, 0, 1])


def test_a_low_temperature_is_greedy():
    model = lively("llama")
    for temperature in (1e-300, 5e-324):
        assert_array_equal(together(model, IDS, 4, temperature=temperature, rng=0), together(model, IDS, 4))


def test_draws_repeat_with_the_seed_and_do_not_depend_on_other_prompts_that_end():
    model = lively("gpt2")
    whole = together(model, IDS, 5, temperature=2.0, rng=3)
    assert_array_equal(together(model, IDS, 5, temperature=2.0, rng=np.random.default_rng(3)), whole)
    assert (together(model, IDS, 5, temperature=2.0, rng=4) != whole).any()
    stop = int(whole[0, 1])
    found = together(model, IDS, 5, temperature=2.0, rng=3, stop=stop)
    for row, expected in zip(found, whole, strict=True):
        length = (row >= 0).sum()
        assert_array_equal(row[:length], expected[:length])
    assert (found[0, 2:] == -1).all()


# ---------------------------------------------------------------- tasks and ranks of prompts


def strong(model):
    """The model with adapters of random values that change most tokens."""
    rng = np.random.default_rng(5)
    for array in model.named_parameters().values():
        array[...] = 2 * rng.normal(size=array.shape)
    return model


def routed(name):
    model = apply_lora(lively(name), MultiLoRAAdapter, default_task_name="a", default_rank=2, rng=0)
    for adapter in find(model, MultiLoRAAdapter).values():
        adapter.add_task("b", 1)
    return strong(model)


@each
def test_a_task_for_each_prompt_is_one_prompt_at_a_time(name):
    model, tasks = routed(name), ["b", None, "a"]
    whole = together(model, IDS, 4, tasks=tasks)
    stop = int(whole[0, 1])
    for found in (whole, together(model, IDS, 4, tasks=tasks, stop=stop)):
        for row, prompt, task in zip(found, IDS, tasks, strict=True):
            length = (row >= 0).sum()
            assert row[:length].tolist() == recomputed(model, prompt, 4, tasks=[task])[:length]
    select_task(model, "b")
    assert_array_equal(together(model, IDS, 4), together(model, IDS, 4, tasks=["b"] * 3))
    assert len({tuple(together(model, IDS, 4, tasks=[task] * 3).ravel()) for task in ("a", "b", None)}) > 1


@each
def test_a_rank_for_each_prompt_is_one_prompt_at_a_time(name):
    choices = {"max_rank": 4, "active_ranks": [1, 2, 4], "targets": targets(name), "rng": 0}
    model, ranks = strong(apply_lora(lively(name), DyLoRAAdapter, **choices)), [4, 1, 2]
    whole = together(model, IDS, 4, rank=ranks)
    for found in (whole, together(model, IDS, 4, rank=np.array(ranks), stop=int(whole[0, 1]))):
        for row, prompt, rank in zip(found, IDS, ranks, strict=True):
            length = (row >= 0).sum()
            assert row[:length].tolist() == recomputed(model, prompt, 4, rank=rank)[:length]
    select_rank(model, 2)
    assert_array_equal(together(model, IDS, 4), together(model, IDS, 4, rank=2))


# ---------------------------------------------------------------- refusals, at the call


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": None}, ArgumentNullError, "model must not be None"),
        ({"model": DenseLayer(2, 2)}, ArgumentError, "model must be a CausalLM, got DenseLayer"),
        ({"ids": [[99]]}, ArgumentError, r"^ids must contain ids in 0\.\.10"),
        ({"ids": [1, 2]}, ArgumentError, r"^ids must be integer token ids of shape \(sentences, tokens\)"),
        ({"ids": [[-1, -1]]}, ArgumentError, "^ids must have at least one token in each sentence"),
        ({"max_new_tokens": 0}, ArgumentOutOfRangeError, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 1.5}, ArgumentError, "max_new_tokens must be an integer"),
        ({"max_new_tokens": 7}, ArgumentError, "at most 6 after a prompt of 4 tokens, because the model has 9 .*; got 7"),
        ({"ids": [[0, 3, 0]], "max_new_tokens": 8}, ArgumentError, "at most 7 after a prompt of 3 tokens"),
        ({"temperature": -1}, ArgumentError, "temperature must .* got -1"),
        ({"temperature": float("nan")}, ArgumentError, "temperature must be finite"),
        ({"top_k": 0}, ArgumentOutOfRangeError, "top_k must be at least 1, got 0"),
        ({"stop": 11}, ArgumentOutOfRangeError, r"stop must contain ids in 0\.\.10, got 11"),
        ({"stop": [1, -1]}, ArgumentOutOfRangeError, r"stop must contain ids in 0\.\.10, got -1"),
        ({"stop": "end"}, ArgumentError, "stop must be an integer, got 'end'"),
        ({"stop": [None]}, ArgumentError, "stop must be an integer, got None"),
        ({"stop": np.array([[1, 2]])}, ArgumentError, r"stop must be an integer, got \[1, 2\]"),
        ({"stop": np.array([1.0])}, ArgumentError, "stop must be an integer, got 1.0"),
        ({"tasks": 3}, ArgumentError, "tasks must be a sequence with a name or None"),
        ({"rng": "seed"}, ArgumentError, "rng"),
        ({"tasks": ["a", "b"]}, ArgumentError, "tasks must have one entry for each of 3 rows of input, got 2"),
        ({"tasks": "abc"}, ArgumentError, "tasks must be a sequence with a name or None"),
        ({"tasks": ["a", "b", "c"]}, ArgumentError, "'c'"),
        ({"rank": 1}, ArgumentError, "rank must be None: no layer"),
        ({"rank": [1, 2]}, ArgumentError, "an integer for each of 3 rows of input"),
        ({"rank": lambda layer: 1}, ArgumentError, "rank must be an integer, or an integer for each prompt"),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_errors_are_raised_by_the_call_and_not_by_the_first_token(options, error, message):
    arguments = {"model": routed("llama"), "ids": IDS, "max_new_tokens": 3} | options
    with pytest.raises(error, match=message):
        generate(**arguments)


def test_the_last_position_is_used():
    assert together(lively("gpt2"), IDS, POSITIONS + 1 - 4).shape == (3, 6)


def test_logits_that_are_not_finite():
    model = lively("llama")
    model.walk()["model.norm"].weight[0] = np.inf
    with pytest.raises(NonFiniteError, match="the logits of the next token are not finite"), np.errstate(invalid="ignore"):
        next(generate(model, IDS, 2))
