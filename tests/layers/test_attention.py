"""Attention and rotary positions: worked examples, a loop as oracle, gradients, invariances, precision."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import ArgumentError, ArgumentOutOfRangeError
from lora_np.layers.attention import Attention
from lora_np.layers.rotary import Rotary
from lora_np.sequences import Past, Spans
from lora_np.testing import numerical_gradient
from tests.kinds import batch
from tests.strategies import seeds
from tests.test_sequences import lengths

RAGGED = Spans.of(np.array([3, 1, 2]))


@st.composite
def attentions(draw, **fixed):
    """Attention with J in {1, H / 2, H}, full or causal, with or without rotary positions; and d."""
    heads, d = draw(st.sampled_from([1, 2, 4, 6])), draw(st.sampled_from([2, 4, 6]))
    groups = draw(st.sampled_from(sorted({1, max(heads // 2, 1), heads})))
    rotary = draw(st.sampled_from([None, Rotary(d, 100.0)]))
    return Attention(heads, groups, **{"causal": draw(st.booleans()), "rotary": rotary} | fixed), d


def operands(attention, d, spans, seed=0):
    """Q, k, v and the gradient of c."""
    N, H, J = spans.lengths.sum(), attention.heads, attention.key_value_heads
    return tuple(batch(N, heads * d, seed=seed + i) for i, heads in enumerate([H, J, J, H]))


def passes(attention, d, spans, seed=0):
    """The output and the three gradients."""
    *qkv, dc = operands(attention, d, spans, seed)
    c, cache = attention.apply(*qkv, spans)
    return c, *attention.vjp(dc, cache)


def oracle(attention, q, k, v, lengths):
    """One sequence, one head and one query at a time; rotations are products of complex numbers."""
    c, starts, d = np.zeros_like(q), np.cumsum(lengths) - lengths, q.shape[1] // attention.heads
    for start, length in zip(starts, lengths, strict=True):
        for h in range(attention.heads):
            j = h * attention.key_value_heads // attention.heads
            rows, of_query, of_key = slice(start, start + length), slice(h * d, (h + 1) * d), slice(j * d, (j + 1) * d)
            Q, K, V = q[rows, of_query], k[rows, of_key], v[rows, of_key]
            if attention.rotary is not None:
                turn = np.exp(1j * np.arange(length)[:, None] * 100.0 ** (-np.arange(d // 2) / (d // 2)))
                Q, K = ((x[:, : d // 2] + 1j * x[:, d // 2 :]) * turn for x in (Q, K))
            for t in range(length):
                seen = t + 1 if attention.causal else length
                weights = np.exp((K[:seen].conj() @ Q[t]).real / np.sqrt(d))
                c[start + t, of_query] = weights @ V[:seen] / weights.sum()
    return c


# ---------------------------------------------------------------- values


def test_one_head_worked_by_hand():
    q, k, v = np.array([[0.0], [2]]), np.array([[0.0], [np.log(3) / 2]]), np.array([[4.0], [8]])
    c, cache = Attention(1).apply(q, k, v, Spans.of(np.array([2])))
    assert_allclose(c, [[6], [7]])  # weights 1 : 1 and 1 : 3
    dq, dk, dv = Attention(1).vjp(np.array([[0.0], [16]]), cache)
    assert_allclose(dv, [[4], [12]])
    # dp = 16 (4, 8), dp - rowsum(dp p) = 16 (-3, 1), ds = (-12, 12)
    assert_allclose(dq, [[0], [12 * np.log(3) / 2]])
    assert_allclose(dk, [[-24], [24]])


def test_scores_are_divided_by_the_root_of_the_head_size():
    q, k = np.full((2, 4), 3.0), np.array([[0.0] * 4, [np.log(3) / 6] * 4])
    c, _ = Attention(1).apply(q, k, np.array([[4.0] * 4, [8.0] * 4]), Spans.of(np.array([2])))
    assert_allclose(c, np.full((2, 4), 7.0))  # 12 log(3) / 6 / √4 = log 3


def test_a_causal_query_sees_the_keys_up_to_its_own():
    v = np.array([[1.0], [3], [8]])
    c, _ = Attention(1, causal=True).apply(np.zeros((3, 1)), np.zeros((3, 1)), v, Spans.of(np.array([3])))
    assert_allclose(c, [[1], [2], [4]])


def test_query_heads_share_a_key_value_head_with_their_neighbours():
    v = np.array([[1.0, 2]])
    c, _ = Attention(6, 2).apply(np.zeros((1, 6)), np.zeros((1, 2)), v, Spans.of(np.array([1])))
    assert_array_equal(c, [[1, 1, 1, 2, 2, 2]])


@given(attentions(), lengths, seeds)
def test_the_output_is_that_of_a_loop_over_sequences_heads_and_queries(case, lengths, seed):
    attention, d = case
    q, k, v, _ = operands(attention, d, spans := Spans.of(lengths), seed)
    c, _ = attention.apply(q, k, v, spans)
    assert_allclose(c, oracle(attention, q, k, v, lengths), rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------- gradients


@given(attentions(), lengths.filter(lambda lengths: lengths.sum() < 14), seeds)
def test_the_gradients_of_the_three_inputs(case, lengths, seed):
    attention, d = case
    *qkv, dc = operands(attention, d, spans := Spans.of(lengths), seed)
    gradients = attention.vjp(dc, attention.apply(*qkv, spans)[1])
    for i, gradient in enumerate(gradients):

        def loss(x, i=i):
            return (attention.apply(*qkv[:i], x, *qkv[i + 1 :], spans)[0] * dc).sum()

        assert_allclose(gradient, numerical_gradient(loss, qkv[i]), rtol=1e-11, atol=1e-13)


@given(attentions(rotary=None), lengths, seeds)
def test_gradients_of_keys_sum_to_zero_and_those_of_values_to_those_of_the_output(case, lengths, seed):
    attention, d = case
    *qkv, dc = operands(attention, d, spans := Spans.of(lengths), seed)
    _, dk, dv = attention.vjp(dc, attention.apply(*qkv, spans)[1])

    def total(x):
        return np.add.reduceat(x, spans.starts)

    # Softmax ignores a constant added to all scores of a query, and its weights sum to one.
    assert_allclose(total(dk), np.zeros((len(lengths), dk.shape[1])), atol=1e-12)
    by_group = dc.reshape(len(dc), attention.key_value_heads, -1, d).sum(axis=2).reshape(dv.shape)
    assert_allclose(total(dv), total(by_group), rtol=1e-11, atol=1e-12)


@given(attentions(), lengths, seeds)
def test_shared_key_value_heads_are_equal_heads_whose_gradients_add_up(case, lengths, seed):
    attention, d = case
    spans = Spans.of(lengths)
    q, k, v, dc = operands(attention, d, spans, seed)
    H, J = attention.heads, attention.key_value_heads
    alone = Attention(H, causal=attention.causal, rotary=attention.rotary)

    def repeated(x):
        return x.reshape(len(x), J, d).repeat(H // J, axis=1).reshape(len(x), H * d)

    c, cache = attention.apply(q, k, v, spans)
    expected, cache_alone = alone.apply(q, repeated(k), repeated(v), spans)
    assert_allclose(c, expected, rtol=1e-12, atol=1e-13)
    dq, *shared = attention.vjp(dc, cache)
    dq_alone, *each = alone.vjp(dc, cache_alone)
    assert_allclose(dq, dq_alone, rtol=1e-11, atol=1e-12)
    for ours, heads in zip(shared, each, strict=True):
        assert_allclose(ours, heads.reshape(len(q), J, H // J, d).sum(axis=2).reshape(ours.shape), rtol=1e-11, atol=1e-12)


# ---------------------------------------------------------------- sequences


@given(attentions(), lengths, seeds)
def test_weights_sum_to_one_and_hidden_keys_have_none(case, lengths, seed):
    attention, d = case
    *qkv, _ = operands(attention, d, spans := Spans.of(lengths), seed)
    P = attention.apply(*qkv, spans)[1].P
    B, T = spans.shape
    P = P.reshape(B, attention.key_value_heads, T, -1, T)  # (B, J, T, G, T)
    assert_allclose(P.sum(axis=-1), np.ones(P.shape[:-1]), rtol=1e-12)
    for b, length in enumerate(lengths):
        assert (P[b, ..., length:][:, :length] == 0).all()
        for t in range(length):
            assert ((P[b, :, t] > 0) == (np.arange(T) < (t + 1 if attention.causal else length))).all()


@given(attentions(), lengths, st.integers(1, 4), seeds)
def test_padding_of_the_grid_changes_nothing(case, lengths, more, seed):
    attention, d = case
    spans = Spans.of(lengths)
    B, T = spans.shape
    slots = np.flatnonzero(np.arange(T + more) < lengths[:, None])
    padded = Spans((B, T + more), lengths, spans.positions, slots)
    for ours, expected in zip(passes(attention, d, padded, seed), passes(attention, d, spans, seed), strict=True):
        assert_allclose(ours, expected, rtol=1e-11, atol=1e-13)


@given(attentions(), lengths, seeds)
def test_a_sequence_alone_gives_what_it_gives_in_a_batch(case, lengths, seed):
    attention, d = case
    *qkv, dc = operands(attention, d, spans := Spans.of(lengths), seed)
    c, cache = attention.apply(*qkv, spans)
    together = (c, *attention.vjp(dc, cache))
    for start, length in zip(spans.starts, lengths, strict=True):
        rows = slice(start, start + length)
        c, cache = attention.apply(*(x[rows] for x in qkv), Spans.of(np.array([length])))
        for alone, x in zip((c, *attention.vjp(dc[rows], cache)), together, strict=True):
            assert_allclose(alone, x[rows], rtol=1e-11, atol=1e-13)


@given(attentions(), lengths, seeds)
def test_permuting_the_sequences_permutes_the_results(case, lengths, seed):
    attention, d = case
    *qkv, dc = operands(attention, d, spans := Spans.of(lengths), seed)
    order = np.random.default_rng(seed).permutation(len(lengths))
    rows = np.concatenate([spans.starts[b] + np.arange(lengths[b]) for b in order])
    c, cache = attention.apply(*qkv, spans)
    permuted_c, permuted_cache = attention.apply(*(x[rows] for x in qkv), Spans.of(lengths[order]))
    results, permuted = (c, *attention.vjp(dc, cache)), (permuted_c, *attention.vjp(dc[rows], permuted_cache))
    for x, y in zip(results, permuted, strict=True):
        assert_allclose(y, x[rows], rtol=1e-11, atol=1e-13)


@given(attentions(causal=True), st.integers(1, 9), seeds, st.data())
def test_causal_attention_of_a_prefix_is_the_prefix_of_the_whole(case, length, seed, data):
    attention, d = case
    prefix = data.draw(st.integers(1, length))
    *qkv, _ = operands(attention, d, spans := Spans.of(np.array([length])), seed)
    c, _ = attention.apply(*qkv, spans)
    shorter, _ = attention.apply(*(x[:prefix] for x in qkv), Spans.of(np.array([prefix])))
    assert_allclose(shorter, c[:prefix], rtol=1e-12, atol=1e-13)


def test_without_positions_full_attention_ignores_the_order_of_keys():
    attention, spans = Attention(2), Spans.of(np.array([5]))
    q, k, v, _ = operands(attention, 4, spans)
    order = [3, 0, 4, 1, 2]
    assert_allclose(attention.apply(q, k[order], v[order], spans)[0], attention.apply(q, k, v, spans)[0], rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", [[], [0]], ids=["no-sequence", "no-row"])
def test_a_batch_without_rows(lengths, causal):
    attention = Attention(4, 2, causal=causal, rotary=Rotary(2))
    shapes = [x.shape for x in passes(attention, 2, Spans.of(np.array(lengths, int)))]
    assert shapes == [(0, 8), (0, 8), (0, 4), (0, 4)]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_sequence_without_rows_leaves_the_others_alone(causal):
    attention = Attention(4, 2, causal=causal)
    with_empty, without = Spans.of(np.array([2, 0, 3])), Spans.of(np.array([2, 3]))
    for ours, expected in zip(passes(attention, 2, with_empty), passes(attention, 2, without), strict=True):
        assert_allclose(ours, expected, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("spans", [RAGGED, Spans.of(np.array([3, 3]))], ids=["ragged", "full"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("groups", [4, 2])
def test_float32_stays_float32(groups, causal, spans):
    attention = Attention(4, groups, causal=causal, rotary=Rotary(6))
    *qkv, dc = (x.astype(np.float32) for x in operands(attention, 6, spans))
    c, cache = attention.apply(*qkv, spans)
    precise = Attention(4, groups, causal=causal, rotary=Rotary(6))
    for x, y in zip((c, *attention.vjp(dc, cache)), passes(precise, 6, spans), strict=True):
        assert x.dtype == np.float32
        assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_large_scores_neither_overflow_nor_become_nan(dtype):
    x = np.array([[1e3], [-1e3], [1e3], [3e3]], dtype)
    attention = Attention(1)
    c, cache = attention.apply(x, x, x, Spans.of(np.array([3, 1])))
    assert_array_equal(c, [[1e3], [-1e3], [1e3], [3e3]])
    assert all(np.isfinite(gradient).all() for gradient in attention.vjp(np.ones_like(c), cache))


@pytest.mark.parametrize("spans", [RAGGED, Spans.of(np.array([3, 3]))], ids=["ragged", "full"])
@pytest.mark.parametrize("rotary", [None, Rotary(4)], ids=["plain", "rotary"])
def test_arguments_and_cache_are_not_written_to(rotary, spans):
    attention = Attention(4, 2, causal=True, rotary=rotary)
    arguments = operands(attention, 4, spans)
    for x in arguments:
        x.setflags(write=False)
    *qkv, dc = arguments
    _, cache = attention.apply(*qkv, spans)
    for first, second in zip(attention.vjp(dc, cache), attention.vjp(dc, cache), strict=True):
        assert_array_equal(first, second)


def test_keys_and_values_of_a_full_batch_are_not_copied():
    attention, spans = Attention(3), Spans.of(np.array([4, 4]))
    q, k, v, _ = operands(attention, 2, spans)
    _, cache = attention.apply(q, k, v, spans)
    assert np.shares_memory(cache.K, k)
    assert np.shares_memory(cache.V, v)


# ---------------------------------------------------------------- rotary positions


def test_a_rotation_worked_by_hand():
    rotary = Rotary(4, base=16.0)  # the angles of position 1 are 16^0 and 16^(-2/4)
    assert_allclose(
        rotary.apply(np.array([[1.0, 1, 0, 0]]), np.array([1])), [np.cos([1, 0.25, *(np.pi / 2 - np.array([1, 0.25]))])]
    )
    turned = rotary.apply(np.array([[1.0, 0, 0, 1], [1, 0, 0, 1]]), np.array([0, 2]))
    assert_array_equal(turned[0], [1, 0, 0, 1])
    assert_allclose(turned[1], [np.cos(2), -np.sin(0.5), np.sin(2), np.cos(0.5)])


@given(st.sampled_from([2, 4, 6]), st.integers(1, 3), st.lists(st.integers(0, 11), max_size=5), seeds)
def test_the_vjp_of_a_rotation_is_its_inverse_and_its_transpose(d, heads, positions, seed):
    rotary, positions = Rotary(d), np.array(positions, int)
    x, dy = batch(len(positions), heads * d, seed=seed), batch(len(positions), heads * d, seed=seed + 1)
    y, dx = rotary.apply(x, positions), rotary.vjp(dy, positions)
    assert_allclose(rotary.vjp(y, positions), x, rtol=1e-12, atol=1e-13)
    assert_allclose((dy * y).sum(), (dx * x).sum(), rtol=1e-11, atol=1e-12)


@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 4), seeds)
def test_the_product_of_two_rotated_heads_depends_on_their_distance(p, s, shift, seed):
    rotary, (q, k) = Rotary(6), batch(2, 1, 6, seed=seed)

    def score(p, s):
        return (rotary.apply(q, np.array([p])) * rotary.apply(k, np.array([s]))).sum()

    assert_allclose(score(p + shift, s + shift), score(p, s), rtol=1e-11, atol=1e-12)


def test_rotary_attention_ignores_a_shift_of_all_positions():
    attention = Attention(2, causal=True, rotary=Rotary(4))
    shifted = RAGGED._replace(positions=RAGGED.positions + 100)
    for ours, expected in zip(passes(attention, 4, shifted), passes(attention, 4, RAGGED), strict=True):
        assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- objects


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_give_the_same_results(copied):
    attention = Attention(4, 2, causal=True, rotary=Rotary(4))
    for x, y in zip(passes(attention, 4, RAGGED), passes(copied(attention), 4, RAGGED), strict=True):
        assert_array_equal(x, y)


@pytest.mark.parametrize("groups", [4, 5, 12])
def test_key_value_heads_that_do_not_divide_the_heads_are_refused(groups):
    with pytest.raises(ArgumentError, match=rf"^key_value_heads must divide heads = 6, got {groups}$"):
        Attention(6, groups)


@pytest.mark.parametrize("heads", [0, -2])
def test_a_number_of_heads_that_is_not_positive_is_refused(heads):
    with pytest.raises(ArgumentOutOfRangeError, match=f"^heads must be at least 1, got {heads}$"):
        Attention(heads)
    with pytest.raises(ArgumentOutOfRangeError, match=f"^key_value_heads must be at least 1, got {heads}$"):
        Attention(4, heads)


def test_a_rotary_of_another_type_is_refused():
    with pytest.raises(ArgumentError, match=r"^rotary must be a Rotary or None, got 10000\.0$"):
        Attention(4, rotary=10000.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "head_size must be even, got 3"),
        ((0,), "head_size must be at least 1, got 0"),
        ((4, 0.0), "base must be positive, got 0.0"),
        ((4, -1), "base must be positive, got -1"),
    ],
    ids=repr,
)
def test_bad_settings_of_rotary_positions_are_refused(arguments, message):
    with pytest.raises(ArgumentOutOfRangeError, match=f"^{message}$"):
        Rotary(*arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_far_position_is_turned_as_a_near_one_with_the_precision_of_the_dtype(dtype):
    p, x = 2**20 + 3, np.array([[3.0, 4]])
    turned = Rotary(2).apply(x.astype(dtype), np.array([p]))
    assert turned.dtype == dtype
    c, s = np.cos(p), np.sin(p)
    assert_allclose(turned, [[3 * c - 4 * s, 4 * c + 3 * s]], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("rotary", [None, Rotary(4)], ids=["plain", "rotary"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_of_several_passes_are_those_of_one(count, rotary):
    attention = Attention(4, 2, causal=True, rotary=rotary)
    first, rest = np.array([2, 1, 3])[:count], np.array([3, 2, 1])[:count]
    whole, past = Spans.of(first + rest), Past(8)
    q, k, v, _ = operands(attention, 4, whole)
    expected, _ = attention.apply(q, k, v, whole)
    earlier = np.concatenate([np.arange(n) < m for n, m in zip(first + rest, first, strict=True)])
    for rows, spans in [(earlier, Spans.of(first)), (~earlier, Spans.of(rest, first))]:
        c, _ = attention.apply(q[rows], k[rows], v[rows], spans, past)
        assert_allclose(c, expected[rows], rtol=1e-12, atol=1e-14)


def test_the_base_of_rotary_positions_is_that_of_the_paper():
    assert Rotary(4).base == 10000


def test_any_positive_base_will_do():
    assert Rotary(4, 1e-3).base == 1e-3
