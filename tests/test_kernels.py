"""The products against ``@`` in extended precision, over awkward shapes, layouts and types.

The limits are lowered, so that small arrays take the ways of large ones, on any processor.
"""

import importlib.util
import os
import subprocess
import sys
import threading
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_np import kernels
from lora_np.kernels import blas, panels, tiles, workers
from tests.strategies import LAYOUTS, leading_axes, seeds

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
REAL = [np.float64, np.float32]
lengths = st.sampled_from([1, 2, 3, 5, 7, 8, 9, 12, 13, 16, 17, 33])


@pytest.fixture
def lowered(monkeypatch):
    """Tiles and panels for arrays of a few elements; every matrix is thin."""
    monkeypatch.setattr(tiles, "LIMIT", 120)
    monkeypatch.setattr(tiles, "TILE_ROWS", (4, 3, 2))
    monkeypatch.setattr(tiles, "TILE_COLUMNS", (4, 2))
    monkeypatch.setattr(panels, "PANEL_BYTES", 16)
    monkeypatch.setattr(panels, "SPLIT", 4)
    monkeypatch.setattr(panels, "WORTH_PACKING", 1)


@pytest.fixture
def tiled(lowered, monkeypatch):
    """A count of the products that went by tiles or panels."""
    counts = {"rows": 0, "panels": 0}

    def counting(kind, function):
        def counted(*arguments):
            counts[kind] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(tiles, "_multiply", counting("rows", tiles._multiply))
    monkeypatch.setattr(panels, "_multiply_panels", counting("panels", panels._multiply_panels))
    return counts


@pytest.fixture
def few(lowered, monkeypatch):
    """Panels as views, for up to 12 rows."""
    monkeypatch.setattr(tiles, "THIN", 1)
    monkeypatch.setattr(tiles, "FEW_ROWS", 12)


def packed(W, *, backward=True):
    """A copy of a matrix that is packed as it is, or as the transpose of an array."""
    matrix = W.copy(order="K")
    kernels.pack(matrix, backward=backward)
    return matrix


def whole_numbers(seed, *shape):
    """Small integers as floats: their sums of products are exact in either type, so that every way gives equal bits."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(float)


@st.composite
def factors(draw):
    """An x of any leading axes and a W, in any layout, of one type, with whole values."""
    leading = draw(st.one_of(leading_axes, lengths.map(lambda rows: (rows,))))
    k, n, seed, dtype = draw(lengths), draw(lengths), draw(seeds), draw(st.sampled_from(REAL))
    x, W = whole_numbers(seed, *leading, k).astype(dtype), whole_numbers(seed + 1, k, n).astype(dtype)
    return draw(st.sampled_from(LAYOUTS))(x), draw(st.sampled_from(LAYOUTS))(W)


@relaxed
@given(factors())
def test_a_product_matches_numpy(lowered, pair):
    x, W = pair
    y = kernels.product(x, W)
    np.testing.assert_array_equal(y, x @ W)
    assert y.dtype == x.dtype
    assert y.shape == (*x.shape[:-1], W.shape[1])
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(y, W)


@relaxed
@given(factors())
def test_a_product_of_few_rows_matches_numpy(few, pair):
    x, W = pair
    y = kernels.product(x, W)
    np.testing.assert_array_equal(y, x @ W)
    assert y.dtype == x.dtype
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(y, W)


@relaxed
@given(factors(), st.booleans())
def test_a_packed_product_matches_numpy_in_both_directions(lowered, pair, backward):
    x, W = pair
    W = packed(W, backward=backward)
    y = kernels.product(x, W)
    np.testing.assert_array_equal(y, x @ W)
    dx = kernels.product(y, W.T)
    np.testing.assert_array_equal(dx, y @ W.T)
    assert y.dtype == dx.dtype == x.dtype
    assert kernels.packed_bytes(W) == (1 + backward) * W.nbytes


@relaxed
@given(factors())
def test_the_transpose_of_an_array_can_be_packed(lowered, pair):
    x, W = pair
    array = W.T.copy()
    kernels.pack(array.T, backward=True)
    np.testing.assert_array_equal(kernels.product(x, array.T), x @ W)
    np.testing.assert_array_equal(kernels.product(x @ W, array), x @ W @ W.T)
    assert not array.flags.writeable
    assert kernels.packed_bytes(array) == 2 * array.nbytes


def test_panels_are_freed_with_their_array(lowered):
    W = packed(whole_numbers(0, 6, 5))
    address = panels._address(W)
    assert address in panels._packed
    del W
    assert address not in panels._packed


def test_a_view_of_other_columns_is_not_mistaken_for_the_packed_matrix(tiled):
    W = packed(whole_numbers(0, 6, 6))
    x = whole_numbers(1, 9, 6)
    np.testing.assert_array_equal(kernels.product(x, W[:, ::-1]), x @ W[:, ::-1])
    np.testing.assert_array_equal(kernels.product(x, W[:, :4]), x @ W[:, :4])
    assert tiled["panels"] == 0


@relaxed
@given(factors(), lengths, seeds)
def test_sum_outer_matches_numpy(lowered, pair, n, seed):
    x, _ = pair
    dy = whole_numbers(seed, *x.shape[:-1], n).astype(x.dtype)
    dW = kernels.sum_outer(x, dy)
    outer = x[..., :, None] * dy[..., None, :]
    np.testing.assert_array_equal(dW, outer.reshape(-1, *outer.shape[-2:]).sum(axis=0))
    assert dW.dtype == x.dtype
    np.testing.assert_array_equal(kernels.sum_rows(dy), dy.reshape(-1, n).sum(axis=0))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 4), (7, 5), (8, 8), (9, 8), (9, 9)])
def test_rows_and_columns_that_fill_no_tile_or_panel_are_included(lowered, dtype, rows, columns):
    x, W, dy = (whole_numbers(0, *shape).astype(dtype) for shape in [(rows, 33), (33, columns), (rows, 3 * columns)])
    frozen = packed(W)
    assert len(panels.panels_of(frozen).blocks) == 9
    np.testing.assert_array_equal(kernels.product(x, frozen), x @ W)
    np.testing.assert_array_equal(kernels.product(x[:, :columns].copy(), frozen.T), x[:, :columns] @ W.T)
    np.testing.assert_array_equal(kernels.product(x[:, :5].copy(), W[:5]), x[:, :5] @ W[:5])
    np.testing.assert_array_equal(kernels.sum_outer(x[:, :2].copy(), dy), x[:, :2].T @ dy)
    np.testing.assert_array_equal(kernels.sum_outer(x[:, :5].copy(), dy), x[:, :5].T @ dy)
    np.testing.assert_array_equal(kernels.sum_outer(x[:, ::3], dy), x[:, ::3].T @ dy)
    np.testing.assert_array_equal(kernels.product(x[:, ::3], W[::3]), x[:, ::3] @ W[::3])


@pytest.mark.parametrize("dtype", REAL)
def test_tiles_and_panels_are_used_where_they_should_be(tiled, dtype):
    x, W = whole_numbers(0, 9, 5).astype(dtype), whole_numbers(1, 5, 6).astype(dtype)
    kernels.product(x, W)
    assert tiled == {"rows": 1, "panels": 0}
    kernels.product(x, packed(W, backward=False))
    assert tiled["panels"] == 1
    kernels.product(x[:1], packed(W, backward=False))
    assert tiled["panels"] == 1  # a single row is not tiled
    tall = whole_numbers(2, 33, 6).astype(dtype)
    kernels.product(whole_numbers(3, 9, 33).astype(dtype), packed(tall, backward=False))
    assert tiled["panels"] == 1 + 9  # one for each 4 of 33 rows of W


@pytest.mark.parametrize(
    ("rows", "k", "n", "used"),
    [
        *[(12, 5, 6, 1), (13, 5, 6, 0), (1, 9, 16, 0), (2, 9, 16, 1), (9, 5, 3, 0), (9, 5, 4, 1), (9, 1, 40, 0)],
        *[(9, 15, 6, 1), (9, 16, 6, 0)],
    ],
)
def test_views_are_panels_for_few_rows(tiled, few, rows, k, n, used):
    x, W = whole_numbers(0, rows, k).astype(np.float32), whole_numbers(1, k, n).astype(np.float32)
    for matrix in (W, np.asfortranarray(W)):
        for same in (x, x[None], x[:, None]):
            y = kernels.product(same, matrix)
            np.testing.assert_array_equal(y, same @ W)
            assert y.shape == (*same.shape[:-1], n)
    assert tiled["panels"] == 6 * used
    kernels.product(np.asfortranarray(x), W)
    kernels.product(x, np.repeat(np.repeat(W, 2, axis=0), 2, axis=1)[::2, ::2])
    assert tiled["panels"] == 6 * used  # only arrays as BLAS takes them


@pytest.mark.parametrize(
    ("rows", "k", "n", "tile"),
    [
        *[(8, 5, 6, 4), (8, 5, 8, 3), (8, 5, 12, 2), (8, 5, 13, 0), (2, 5, 12, 0), (3, 5, 12, 2)],
        *[(8, 6, 5, 4), (8, 6, 6, 0), (8, 2, 9, 4), (8, 2, 2, 0), (9, 1, 40, 0), (40, 9, 1, 0)],
    ],
)
def test_the_rows_of_a_tile_are_as_many_as_the_kernel_takes(lowered, monkeypatch, rows, k, n, tile):
    monkeypatch.setattr(tiles, "THIN", 5)
    x, W = whole_numbers(0, rows, k), whole_numbers(1, k, n)
    assert tiles._tile_of_rows(x, W) == tiles._tile_of_rows(x, np.asfortranarray(W)) == tile
    assert tiles._tile_of_rows(x, W.astype(np.float32)) == 0
    assert tiles._tile_of_rows(np.repeat(x, 2, axis=1)[:, ::2], W) == 0
    assert tiles._tile_of_rows(x, np.repeat(np.repeat(W, 2, axis=0), 2, axis=1)[::2, ::2]) == 0
    monkeypatch.setattr(tiles, "LIMIT", 0)
    assert tiles._tile_of_rows(x, W) == 0


@pytest.mark.parametrize(
    ("rows", "k", "n", "tile"),
    [
        *[(5, 3, 8, None), (5, 3, 9, 4), (6, 5, 9, 4), (7, 5, 9, 2), (12, 5, 9, 2), (13, 5, 9, 0)],
        *[(2, 3, 30, 4), (1, 3, 41, 0), (9, 1, 20, 0), (9, 2, 9, 4), (4, 6, 9, 0)],
    ],
)
def test_the_columns_of_a_tile_are_as_many_as_the_kernel_takes(lowered, monkeypatch, rows, k, n, tile):
    found = []

    def recorded(x, dy, choose=tiles._tile_of_columns):
        found.append(choose(x, dy))
        return found[-1]

    monkeypatch.setattr(tiles, "THIN", 5)
    monkeypatch.setattr(tiles, "_tile_of_columns", recorded)
    x, dy = whole_numbers(0, rows, k), whole_numbers(1, rows, n)
    dW = kernels.sum_outer(x, dy)
    np.testing.assert_array_equal(dW, x.T @ dy)
    assert found == [tile] * (tile is not None)  # None: so small that no tile is looked for
    for other in (dy.astype(np.float32), np.asfortranarray(dy)):
        found.clear()
        kernels.sum_outer(x, other)
        assert found in ([], [0]) or 1 in (rows, n)
    found.clear()
    monkeypatch.setattr(tiles, "LIMIT", 0)
    kernels.sum_outer(x, dy)
    assert found == []


def test_a_product_that_fits_the_kernel_is_not_cut(tiled, few):
    for rows, used in ((4, 0), (5, 1)):  # 4 x 5 x 6 is the limit
        kernels.product(whole_numbers(0, rows, 5), whole_numbers(1, 5, 6))
        assert tiled["panels"] == used


def test_the_transpose_has_panels_if_it_was_packed_for_both_directions(tiled):
    W, x, y = whole_numbers(0, 6, 5), whole_numbers(1, 9, 6), whole_numbers(2, 9, 5)
    for backward in (False, True):
        tiled["panels"] = 0
        frozen = packed(W, backward=backward)
        kernels.product(x, frozen)
        kernels.product(y, frozen.T)
        kernels.product(x[:1], frozen)  # a single row is not tiled
        kernels.product(y[:1], frozen.T)
        assert tiled["panels"] == 1 + backward


def test_matrices_that_are_not_worth_it_become_read_only_and_are_not_copied(lowered, monkeypatch):
    monkeypatch.setattr(panels, "WORTH_PACKING", 30)
    assert kernels.packed_bytes(packed(whole_numbers(0, 5, 6), backward=False)) == 8 * 30
    small = packed(whole_numbers(0, 29, 1))
    monkeypatch.setattr(tiles, "LIMIT", 0)
    slow = packed(whole_numbers(0, 6, 6))
    assert kernels.packed_bytes(small) == kernels.packed_bytes(slow) == 0
    assert not small.flags.writeable
    assert not slow.flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.longdouble, complex, object])
def test_other_dtypes_use_numpys_own_product(tiled, dtype):
    x, W = whole_numbers(0, 9, 5).astype(dtype), whole_numbers(1, 5, 6).astype(dtype)
    np.testing.assert_array_equal(kernels.product(x, W), x @ W)
    np.testing.assert_array_equal(kernels.sum_outer(x, x), x.T @ x)
    assert kernels.product(x, W).dtype == dtype
    assert tiled == {"rows": 0, "panels": 0}


def test_fractions_and_a_complex_step_pass_through_a_packed_matrix(lowered):
    W = whole_numbers(1, 5, 6)
    frozen = packed(W)
    thirds = np.full((9, 5), Fraction(1, 3))
    assert (kernels.product(thirds, frozen) == thirds @ W).all()
    step = whole_numbers(0, 9, 5) + 1e-30j
    np.testing.assert_array_equal(kernels.product(step, frozen), step @ W)


def test_a_subclass_uses_its_own_product(lowered):
    class Recorder(np.ndarray):
        def __matmul__(self, other):
            return "own"

    x = whole_numbers(0, 9, 5).view(Recorder)
    assert kernels.product(x, whole_numbers(1, 5, 6)) == "own"
    assert kernels.sum_outer(x, whole_numbers(1, 9, 6)) == "own"


def test_mixed_dtypes_match_numpy(lowered):
    x, W = whole_numbers(0, 9, 5).astype(np.float32), whole_numbers(1, 5, 6)
    assert kernels.product(x, W).dtype == np.float64
    assert kernels.product(x, packed(W, backward=False)).dtype == np.float64


@pytest.mark.parametrize("shape", [(3, 2), (5, 3, 2)], ids=str)
def test_a_sum_reuses_the_second_operand_or_the_first_if_a_vector_is_added(shape):
    a, b, bias = whole_numbers(0, *shape), whole_numbers(1, *shape), whole_numbers(2, 2)
    expected, plus_bias = a + b, a + b + bias
    assert kernels.add(a, b) is b
    np.testing.assert_array_equal(b, expected)
    assert kernels.add(b, bias) is b
    np.testing.assert_array_equal(b, plus_bias)
    np.testing.assert_array_equal(a, whole_numbers(0, *shape))
    np.testing.assert_array_equal(bias, whole_numbers(2, 2))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones(3), np.ones(3)),  # a single row and its bias, which is a parameter
        (np.ones((2, 3)), np.full((2, 3), 1e-20j)),
        (np.full((2, 3), 1e-20j), np.ones((2, 3))),
        (np.ones((2, 3), np.float32), np.ones((2, 3))),
        (np.ones((2, 1)), np.ones(3)),
        (np.ones((2, 1)), np.ones((2, 3))),
        (np.ones(3), np.ones((2, 3))),
        (1.0, np.ones((2, 3))),
    ],
)
def test_a_sum_that_fits_neither_operand_is_a_new_array(a, b):
    before = np.array(a), np.array(b)
    y = kernels.add(a, b)
    np.testing.assert_array_equal(y, before[0] + before[1])
    assert y.dtype == (before[0] + before[1]).dtype
    np.testing.assert_array_equal(a, before[0])
    np.testing.assert_array_equal(b, before[1])


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [(16, 4), (256, 8), (1024, 64), (1024, 1024), (144, 260), (2112, 96)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_row_has_the_same_bits_whatever_the_other_rows_are(monkeypatch, dtype, shape, order):
    W, x = whole_numbers(0, *shape), whole_numbers(1, 700, shape[0])
    if tiles.LIMIT:  # only the small kernel promises equal bits for numbers whose sums have to be rounded
        W, x = W + np.pi, x - np.e
    monkeypatch.setattr(tiles, "LIMIT", 1_000_000)
    W, x = W.astype(dtype, order=order), x.astype(dtype)
    factor = W if min(shape) <= tiles.THIN else packed(W, backward=False)
    np.testing.assert_allclose(kernels.product(x, factor), x @ W, rtol=1e-3)
    whole = kernels.product(x, factor)
    for start, stop in [(0, 2), (5, 8), (3, 20), (1, 34), (100, 613), (699 - 13, 700)]:
        assert kernels.product(x[start:stop].copy(), factor).tobytes() == whole[start:stop].tobytes(), (start, stop)


@relaxed
@given(factors(), st.integers(2, 9))
def test_a_product_shared_by_threads_matches_numpy(shared, pair, threads):
    x, W = pair
    shared.setattr(blas, "threads", lambda: threads)
    W = packed(W)
    y = kernels.product(x, W)
    np.testing.assert_array_equal(y, x @ W)
    np.testing.assert_array_equal(kernels.product(y, W.T), y @ W.T)


@pytest.fixture
def shared(lowered, monkeypatch):
    """Every product is worth all threads."""
    monkeypatch.setattr(panels, "WORTH_A_THREAD", 1)
    return monkeypatch


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [(1024, 1024), (2112, 288)])
def test_the_number_of_threads_does_not_change_a_bit(monkeypatch, dtype, shape):
    monkeypatch.setattr(tiles, "LIMIT", 1_000_000)
    random = np.random.default_rng(0)
    W, x = random.normal(size=shape).astype(dtype), random.normal(size=(60, shape[0])).astype(dtype)
    W = packed(W, backward=False)
    results = set()
    for threads in (1, 2, 3, 8, 64):
        monkeypatch.setattr(blas, "threads", lambda threads=threads: threads)
        results.add(kernels.product(x, W).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    ("rows", "threads", "expected"),
    [(9, 1, 1), (9, 2, 2), (9, 3, 3), (9, 4, 3), (9, 7, 6), (13, 6, 6), (9, 64, 6), (3, 64, 3), (2, 8, 3)],
)
def test_each_thread_has_panels_or_tiles_of_its_own(shared, rows, threads, expected):
    shared.setattr(blas, "threads", lambda: threads)
    layout = panels.Panels(whole_numbers(0, 5, 7))  # three panels of two columns, tiles of four rows
    parts = layout._parts(rows)
    assert len(parts) == expected
    done = np.zeros((rows, 3), int)
    for part in parts:
        done[part] += 1
    assert (done == 1).all()
    assert all(done[part].size for part in parts)
    assert all(part[0].start % layout.tile == 0 for part in parts)


def test_a_small_product_is_not_worth_a_thread(monkeypatch):
    monkeypatch.setattr(tiles, "LIMIT", 1_000_000)
    monkeypatch.setattr(blas, "threads", lambda: 8)
    layout = panels.Panels(np.ones((1024, 1024), np.float32))
    assert [len(layout._parts(rows)) for rows in (2, 7, 8, 12, 16, 32, 256)] == [1, 1, 2, 3, 4, 8, 8]


# ---------------------------------------------------------------- stacks


def test_slices_are_multiplied_by_stacks_and_matrices():
    """Two elements of two rows, and three rows; the second products are optional."""
    x, bounds = whole_numbers(0, 7, 5), [0, 4, 7]
    factors = [(whole_numbers(1, 2, 5, 3), whole_numbers(2, 2, 3, 4)), (whole_numbers(3, 5, 2), whole_numbers(4, 2, 4))]
    slices = [(x[:4].reshape(2, 2, 5), factors[0]), (x[4:], factors[1])]
    y = np.empty((7, 4))
    hs = kernels.multiply_twice(x, bounds, factors, y)
    for h, again, (rows, (A, _)) in zip(hs, kernels.multiply_twice(x, bounds, factors, None), slices, strict=True):
        np.testing.assert_array_equal(h, rows @ A)
        np.testing.assert_array_equal(again, h)
    np.testing.assert_array_equal(y, np.concatenate([(rows @ A @ B).reshape(-1, 4) for rows, (A, B) in slices]))


def test_outer_products_are_summed_by_group():
    """Stacks of 1 + 1 + 2 elements of two rows, of 2 elements of one row, and a matrix of three rows."""
    hs = [whole_numbers(0, 4, 2, 3), whole_numbers(1, 2, 1, 3), whole_numbers(2, 3, 2)]
    x, bounds, counts = whole_numbers(3, 13, 5), [0, 8, 10, 13], [np.array([1, 1, 2]), np.array([1, 1])]
    rows = kernels.outer_rows(hs, counts)
    assert rows == 3 * 3 + 2 * 3 + 2
    out = np.empty((rows, 5))
    stack, single, matrix = kernels.outer_each(hs, x, bounds, counts, out)
    first, second = hs[0].reshape(8, 3), hs[1].reshape(2, 3)
    parts = slice(0, 2), slice(2, 4), slice(4, 8)
    np.testing.assert_array_equal(stack, [first[part].T @ x[:8][part] for part in parts])
    np.testing.assert_array_equal(single, second[:, :, None] * x[8:10, None])
    np.testing.assert_array_equal(matrix, hs[2].T @ x[10:])
    np.testing.assert_array_equal(out, np.concatenate([stack.reshape(-1, 5), single.reshape(-1, 5), matrix]))


# ---------------------------------------------------------------- worker threads


def test_parts_run_at_the_same_time():
    barrier, names = threading.Barrier(3, timeout=20), []

    def part():
        barrier.wait()
        names.append(threading.current_thread().name)

    workers.run([part] * 3)
    assert len(set(names)) == 3
    assert threading.current_thread().name in names


def test_an_error_of_a_part_is_raised():
    def fail():
        raise MemoryError("here")

    with pytest.raises(MemoryError, match="here"):
        workers.run([fail, lambda: None])


def test_without_workers_the_caller_runs_every_part(monkeypatch):
    def refuse(count):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(workers, "_workers", refuse)
    names = []
    workers.run([lambda: names.append(threading.current_thread().name)] * 3)
    assert names == [threading.current_thread().name] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_workers_too():
    script = (
        "import os; from lora_np.kernels import workers\n"
        "workers.run([int, int])\n"
        "process = os.fork()\n"
        "if not process: workers.run([int, int]); os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "7\n", done.stderr


def test_a_matrix_in_a_buffer_can_be_packed(lowered):
    matrix = np.frombuffer(whole_numbers(0, 16, 12).astype(np.float32).tobytes(), np.float32)
    matrix.shape = 16, 12
    assert isinstance(matrix.base, bytes)
    kernels.pack(matrix, backward=True)
    x = whole_numbers(1, 9, 16).astype(np.float32)
    np.testing.assert_array_equal(kernels.product(x, matrix), x @ matrix)


def test_the_core_has_a_name_and_can_be_forced():
    script = "from lora_np.kernels import blas, tiles; print(blas.core_name(), tiles.LIMIT, tiles.FEW_ROWS)"

    def run(**more):
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    if blas.core_name():
        assert run(OPENBLAS_CORETYPE="Haswell")[:2] == ["Haswell", "0"]
        assert run(OPENBLAS_NUM_THREADS="1")[2] == "64"
    assert blas.SMALL_KERNELS.get(blas.core_name(), 0) == tiles.LIMIT
    assert 64 // blas.threads() == tiles.FEW_ROWS


@pytest.mark.parametrize(("threads", "rows"), [(1, 64), (4, 16), (65, 0)])
def test_few_rows_are_fewer_the_more_threads_share_the_work(monkeypatch, threads, rows):
    monkeypatch.setattr(blas, "threads", lambda: threads)
    assert rows == imported_again("lora_np.kernels.tiles").FEW_ROWS


def imported_again(name):
    """A second copy of a module."""
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_forgets_the_workers_of_its_parent(monkeypatch):
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda **named: hooks.append(named))
    copy = imported_again("lora_np.kernels.workers")
    assert hooks == [{"after_in_child": copy._forget_pool}]


def test_an_unknown_blas_uses_numpys_own_products(monkeypatch):
    monkeypatch.setattr(blas, "_function", blas._function.__wrapped__)
    monkeypatch.setattr(blas.ctypes, "CDLL", lambda path: object())
    assert blas.core_name() == ""
    assert blas.small_kernel_limit() == 0
    assert blas.threads() == 1


@pytest.mark.parametrize(
    ("symbol", "core", "limit"),
    [
        ("scipy_openblas_{}64_", "SkylakeX", 1_000_000),
        ("scipy_openblas_{}", "Cooperlake", 1_000_000),
        ("openblas_{}", "SapphireRapids", 1_000_000),
        ("openblas_{}", "Haswell", 0),
    ],
)
def test_openblas_is_asked_under_any_of_its_names(monkeypatch, symbol, core, limit):
    library = SimpleNamespace()
    setattr(library, symbol.format("get_corename"), lambda: core.encode())
    setattr(library, symbol.format("get_num_threads"), lambda: 3)
    monkeypatch.setattr(blas, "_function", blas._function.__wrapped__)
    monkeypatch.setattr(blas.ctypes, "CDLL", lambda path: library)
    assert (blas.core_name(), blas.small_kernel_limit(), blas.threads()) == (core, limit, 3)


def test_a_forked_process_makes_its_own_pool():
    first = workers._workers(1)
    workers._forget_pool()
    second = workers._workers(1)
    assert second is not first
    assert second is workers._workers(1)
    assert second.submit(lambda: 3).result() == 3
    first.shutdown()


@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=3),
    dtype=st.sampled_from([np.float32, np.float64, np.longdouble, np.complex128, np.int64]),
    step=st.sampled_from([1, 2, -1]),
    seed=seeds,
)
def test_zero_where_is_where_bit_for_bit(shape, dtype, step, seed):
    rng = np.random.default_rng(seed)
    special = [np.inf, -np.inf, np.nan, -0.0] if np.dtype(dtype).kind != "i" else [-1]
    x = rng.choice(np.array([*special, 3, -2], dtype), shape).T[::step] if shape else np.array(-2, dtype)
    condition = rng.random(x.shape) < 0.5
    kept, wanted = x.copy(), np.where(condition, 0, x)
    found = kernels.zero_where(condition, x)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.signbit(found.real), np.signbit(wanted.real))
    np.testing.assert_array_equal(x, kept)
