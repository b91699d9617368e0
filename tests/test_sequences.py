"""Rows of sequences of different lengths: their places in the grid, their means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lora_np.sequences import Past, Spans, mean_of_spans, mean_of_spans_vjp
from lora_np.testing import numerical_gradient
from tests.kinds import batch
from tests.strategies import seeds

RAGGED = Spans.of(np.array([2, 1, 3]))
FULL = Spans.of(np.array([2, 2, 2]))

lengths = st.one_of(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 5).map(lambda length: [length]),
    st.integers(1, 4).map(lambda sequences: [1] * sequences),
    st.tuples(st.integers(1, 4), st.integers(1, 3)).map(lambda pair: [pair[0]] * pair[1]),
    st.permutations([9, 1, 2]),
).map(np.array)
"""Lengths of sequences: any, a single one, of one row each, all equal, one long among short ones."""

each_spans = pytest.mark.parametrize("spans", [RAGGED, FULL], ids=["ragged", "full"])


# ---------------------------------------------------------------- spans


def test_a_ragged_batch_worked_by_hand():
    assert RAGGED.shape == (3, 3)
    assert_array_equal(RAGGED.positions, [0, 1, 0, 0, 1, 2])
    assert_array_equal(RAGGED.starts, [0, 2, 3])
    assert_array_equal(RAGGED.grid(np.arange(1, 7)), [[1, 2, 0], [3, 0, 0], [4, 5, 6]])
    assert_array_equal(RAGGED.rows(np.arange(9).reshape(3, 3)), [0, 1, 3, 6, 7, 8])


def test_a_full_batch_worked_by_hand():
    assert FULL.shape == (3, 2)
    assert FULL.slots is None
    assert_array_equal(FULL.positions, [0, 1, 0, 1, 0, 1])
    assert_array_equal(FULL.grid(np.arange(6)), [[0, 1], [2, 3], [4, 5]])


def test_the_grid_of_a_full_batch_is_a_view():
    x = batch(6, 4)
    assert np.shares_memory(FULL.grid(x), x)
    assert np.shares_memory(FULL.rows(FULL.grid(x)), x)


@given(lengths, st.sampled_from([(), (3,), (2, 3)]), seeds)
def test_the_grid_holds_every_row_in_its_place_and_zeros_elsewhere(lengths, axes, seed):
    spans = Spans.of(lengths)
    x = batch(lengths.sum(), *axes, seed=seed)
    grid = spans.grid(x)
    assert grid.shape == (len(lengths), lengths.max(), *axes)
    for b, (start, length) in enumerate(zip(spans.starts, lengths, strict=True)):
        assert_array_equal(grid[b, :length], x[start : start + length])
        assert_array_equal(grid[b, length:], 0)
        assert_array_equal(spans.positions[start : start + length], np.arange(length))
    assert_array_equal(spans.rows(grid), x)


@given(lengths, seeds)
def test_rows_is_the_transpose_of_grid(lengths, seed):
    spans = Spans.of(lengths)
    x, dy = batch(lengths.sum(), 3, seed=seed), batch(*spans.shape, 3, seed=seed + 1)
    assert_allclose((spans.grid(x) * dy).sum(), (x * spans.rows(dy)).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128, np.int64], ids=lambda dtype: dtype.__name__)
@each_spans
def test_grid_and_rows_keep_the_dtype(spans, dtype):
    grid = spans.grid(np.ones((6, 2), dtype))
    assert grid.dtype == spans.rows(grid).dtype == dtype


# ---------------------------------------------------------------- means


def test_means_worked_by_hand():
    x = np.array([[1.0, 10], [3, 30], [7, 70], [1, 0], [2, 0], [6, 3]])
    assert_array_equal(mean_of_spans(x, RAGGED), [[2, 20], [7, 70], [3, 1]])
    dx = mean_of_spans_vjp(np.array([[2.0, 4], [5, 6], [3, 9]]), RAGGED)
    assert_array_equal(dx, [[1, 2], [1, 2], [5, 6], [1, 3], [1, 3], [1, 3]])


@given(lengths, seeds)
def test_each_mean_is_that_of_the_rows_of_one_sequence(lengths, seed):
    x = batch(lengths.sum(), 3, seed=seed)
    each = [rows.mean(axis=0) for rows in np.split(x, np.cumsum(lengths)[:-1])]
    assert_allclose(mean_of_spans(x, Spans.of(lengths)), each, rtol=1e-12, atol=1e-14)


@given(lengths, seeds)
def test_the_gradient_of_the_means(lengths, seed):
    spans = Spans.of(lengths)
    x, dy = batch(lengths.sum(), 2, seed=seed), batch(len(lengths), 2, seed=seed + 1)
    gradient = numerical_gradient(lambda x: (mean_of_spans(x, spans) * dy).sum(), x)
    assert_allclose(mean_of_spans_vjp(dy, spans), gradient, rtol=1e-13)


@each_spans
def test_means_keep_float32(spans):
    x, dy = np.ones((6, 2), np.float32), np.ones((3, 2), np.float32)
    assert mean_of_spans(x, spans).dtype == mean_of_spans_vjp(dy, spans).dtype == np.float32


def test_a_batch_without_sequences():
    spans = Spans.of(np.array([], int))
    assert spans.shape == (0, 0)
    assert spans.grid(np.ones((0, 2))).shape == (0, 0, 2)
    assert mean_of_spans(np.ones((0, 2)), spans).shape == mean_of_spans_vjp(np.ones((0, 2)), spans).shape == (0, 2)


# ---------------------------------------------------------------- rows after earlier ones


def test_positions_go_on_after_the_offsets():
    spans = Spans.of(np.array([2, 1]), offsets=np.array([3, 0]))
    assert_array_equal(spans.positions, [3, 4, 0])
    assert_array_equal(spans.slots, [0, 1, 2])
    assert_array_equal(Spans.of(np.array([1, 1]), offsets=np.array([4, 2])).positions, [4, 2])


def test_a_past_returns_the_rows_of_all_passes_in_order():
    past, one, other = Past(4), object(), object()
    first = np.arange(8.0).reshape(2, 1, 2, 2)  # two sequences, one head, two rows (the second of the second is padding)
    K, V = past.extended(one, first, -first, Spans.of(np.array([2, 1])))
    assert_array_equal(K, first)
    assert_array_equal(V, -first)
    new = np.array([[[[10.0, 11]]], [[[20, 21]]]])
    spans = Spans.of(np.array([1, 1]), offsets=np.array([2, 1]))
    K, V = past.extended(one, new, 2 * new, spans)
    assert_array_equal(K[0, 0], [[0, 1], [2, 3], [10, 11]])
    assert_array_equal(K[1, 0, :2], [[4, 5], [20, 21]])  # the new row is where the padding was
    assert_array_equal(V[1, 0, :2], [[-4, -5], [40, 42]])
    assert_array_equal(past.extended(other, new, new, Spans.of(np.array([1, 1])))[0], new)  # each attention has its own


def test_a_past_keeps_the_given_sequences():
    past, attention = Past(2), object()
    rows = np.arange(3.0).reshape(3, 1, 1, 1)
    past.extended(attention, rows, rows, Spans.of(np.array([1, 1, 1])))
    past.keep(np.array([0, 2]))
    K, _ = past.extended(attention, rows[:2] + 5, rows[:2], Spans.of(np.array([1, 1]), offsets=np.array([1, 1])))
    assert_array_equal(K[:, 0, :, 0], [[0, 5], [2, 6]])
