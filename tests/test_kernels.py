"""The products against ``@`` in extended precision, over awkward shapes, layouts and types.

The limits are lowered, so that small arrays take the ways of large ones, on any processor.
"""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_np import _blas, kernels
from tests.strategies import LAYOUTS, leading_axes, seeds

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
REAL = [np.float64, np.float32]
lengths = st.sampled_from([1, 2, 3, 5, 7, 8, 9, 12, 13, 16, 17, 33])


@pytest.fixture
def lowered(monkeypatch):
    """Tiles and panels for arrays of a few elements."""
    monkeypatch.setattr(kernels, "LIMIT", 120)
    monkeypatch.setattr(kernels, "TILE_ROWS", (4, 3, 2))
    monkeypatch.setattr(kernels, "TILE_COLUMNS", (4, 2))
    monkeypatch.setattr(kernels, "PANEL_BYTES", 16)
    monkeypatch.setattr(kernels, "SPLIT", 4)
    monkeypatch.setattr(kernels, "WORTH_PACKING", 1)


@pytest.fixture
def tiled(lowered, monkeypatch):
    """A count of the products that went by tiles or panels."""
    counts = {"rows": 0, "panels": 0}

    def counting(kind, function):
        def counted(*arguments):
            counts[kind] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(kernels, "_multiply_tiles", counting("rows", kernels._multiply_tiles))
    monkeypatch.setattr(kernels, "_multiply_panels", counting("panels", kernels._multiply_panels))
    return counts


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
def test_a_product_is_the_product(lowered, pair):
    x, W = pair
    y = kernels.product(x, W)
    np.testing.assert_array_equal(y, x @ W)
    assert y.dtype == x.dtype
    assert y.shape == (*x.shape[:-1], W.shape[1])
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(y, W)


@relaxed
@given(factors(), st.booleans(), st.booleans())
def test_a_packed_product_is_the_product_both_ways(lowered, pair, forward, backward):
    x, W = pair
    packed = kernels.packed(W, forward=forward, backward=backward)
    y = kernels.product(x, packed)
    np.testing.assert_array_equal(y, x @ W)
    dx = kernels.product(y, packed.T)
    np.testing.assert_array_equal(dx, y @ W.T)
    assert y.dtype == dx.dtype == x.dtype
    assert packed.extra_bytes == (forward + backward) * W.nbytes


@relaxed
@given(factors(), lengths, seeds)
def test_a_sum_of_outer_products_is_the_sum(lowered, pair, n, seed):
    x, _ = pair
    dy = whole_numbers(seed, *x.shape[:-1], n).astype(x.dtype)
    dW = kernels.sum_outer(x, dy)
    outer = x[..., :, None] * dy[..., None, :]
    np.testing.assert_array_equal(dW, outer.reshape(-1, *outer.shape[-2:]).sum(axis=0))
    assert dW.dtype == x.dtype
    np.testing.assert_array_equal(kernels.sum_rows(dy), dy.reshape(-1, n).sum(axis=0))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 4), (7, 5), (8, 8), (9, 8), (9, 9)])
def test_what_fills_no_tile_or_panel_counts_too(lowered, dtype, rows, columns):
    x, W, dy = (whole_numbers(0, *shape).astype(dtype) for shape in [(rows, 33), (33, columns), (rows, 3 * columns)])
    packed = kernels.packed(W, forward=True, backward=True)
    assert len(packed.panels.blocks) == 9
    np.testing.assert_array_equal(kernels.product(x, packed), x @ W)
    np.testing.assert_array_equal(kernels.product(x[:, :columns].copy(), packed.T), x[:, :columns] @ W.T)
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
    kernels.product(x, kernels.packed(W, forward=True, backward=False))
    assert tiled["panels"] == 1
    kernels.product(x[:1], kernels.packed(W, forward=True, backward=False))
    assert tiled["panels"] == 1  # a single row is no tile
    tall = whole_numbers(2, 33, 6).astype(dtype)
    kernels.product(whole_numbers(3, 9, 33).astype(dtype), kernels.packed(tall, forward=True, backward=False))
    assert tiled["panels"] == 1 + 9  # one for each 4 of 33 rows of W


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.longdouble, complex, object])
def test_other_types_take_the_ordinary_way(tiled, dtype):
    x, W = whole_numbers(0, 9, 5).astype(dtype), whole_numbers(1, 5, 6).astype(dtype)
    np.testing.assert_array_equal(kernels.product(x, W), x @ W)
    np.testing.assert_array_equal(kernels.sum_outer(x, x), x.T @ x)
    assert kernels.product(x, W).dtype == dtype
    assert tiled == {"rows": 0, "panels": 0}


def test_fractions_and_a_complex_step_pass_through_a_packed_matrix(lowered):
    W = whole_numbers(1, 5, 6)
    packed = kernels.packed(W, forward=True, backward=True)
    thirds = np.full((9, 5), Fraction(1, 3))
    assert (kernels.product(thirds, packed) == thirds @ W).all()
    step = whole_numbers(0, 9, 5) + 1e-30j
    np.testing.assert_array_equal(kernels.product(step, packed), step @ W)


def test_a_subclass_takes_its_own_way(lowered):
    class Recorder(np.ndarray):
        def __matmul__(self, other):
            return "own"

    x = whole_numbers(0, 9, 5).view(Recorder)
    assert kernels.product(x, whole_numbers(1, 5, 6)) == "own"
    assert kernels.sum_outer(x, whole_numbers(1, 9, 6)) == "own"


def test_mixed_types_give_what_numpy_gives(lowered):
    x, W = whole_numbers(0, 9, 5).astype(np.float32), whole_numbers(1, 5, 6)
    assert kernels.product(x, W).dtype == np.float64
    assert kernels.product(x, kernels.packed(W, forward=True, backward=False)).dtype == np.float64


def test_a_sum_is_made_in_place_only_where_it_fits():
    total, term = np.ones(3), np.full(3, 2.0)
    assert kernels.add(term, total, room=total) is total
    assert total.tolist() == [3, 3, 3]
    assert term.tolist() == [2, 2, 2]
    wide = kernels.add(total, np.full(3, 1e-20j), room=total)
    assert wide.dtype == complex
    assert total.tolist() == [3, 3, 3]


@pytest.mark.skipif(not kernels.LIMIT, reason="no small kernel on this processor")
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [(16, 4), (256, 8), (1024, 64), (1024, 1024), (144, 260), (2112, 96)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_row_has_the_same_bits_whatever_the_other_rows_are(dtype, shape, order):
    W = np.random.default_rng(0).normal(size=shape).astype(dtype, order=order)
    factor = W if min(shape) <= kernels.THIN else kernels.packed(W, forward=True, backward=False)
    x = np.random.default_rng(1).normal(size=(700, shape[0])).astype(dtype)
    whole = kernels.product(x, factor)
    for start, stop in [(0, 2), (5, 8), (3, 20), (1, 34), (100, 613), (699 - 13, 700)]:
        assert kernels.product(x[start:stop].copy(), factor).tobytes() == whole[start:stop].tobytes(), (start, stop)


def test_the_core_has_a_name_and_can_be_forced():
    script = "from lora_np import _blas, kernels; print(_blas.core_name(), kernels.LIMIT)"

    def run(**more):
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    if _blas.core_name():
        assert run(OPENBLAS_CORETYPE="Haswell") == ["Haswell", "0"]
    assert _blas.SMALL_KERNELS.get(_blas.core_name(), 0) == kernels.LIMIT


def test_a_blas_that_does_not_say_what_it_is_gets_the_ordinary_products(monkeypatch):
    monkeypatch.setattr(_blas.ctypes, "CDLL", lambda path: object())
    assert _blas.core_name() == ""
    assert _blas.small_kernel_limit() == 0
