"""BF16: rounding against distances in float64, for every number of the format."""

import numpy as np
import pytest

from lora_np.kernels.bfloat16 import narrow, widen

FINITE = np.arange(0x7F7F, dtype=np.uint16)
"""The numbers from 0 up to the one before the largest: each has a finite upper neighbour."""


def widened(stored):
    out = np.empty(stored.shape, np.float32)
    widen(stored, out)
    return out


def narrowed(values):
    out, scratch = np.empty(values.shape, np.uint16), np.empty(values.shape, np.uint32)
    narrow(values, out, scratch)
    return out


def test_every_number_survives():
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    values = widened(every)
    np.testing.assert_array_equal(narrowed(values)[~np.isnan(values)], every[~np.isnan(values)])
    assert np.isnan(widened(narrowed(values))[np.isnan(values)]).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("direction", [-np.inf, 0, np.inf])
def test_rounding_is_to_the_nearest_and_of_ties_to_even(sign, direction):
    """The numbers between two neighbours: in the middle, and next to it on either side."""
    lower, upper = (widened(FINITE + step).astype(float) for step in (0, 1))
    middle = ((lower + upper) / 2).astype(np.float32)
    values = np.nextafter(middle, np.float32(direction)) if direction else middle
    to_lower, to_upper = values - lower, upper - values
    even = np.where(FINITE % 2 == 0, lower, upper)
    expected = np.where(to_lower == to_upper, even, np.where(to_lower < to_upper, lower, upper))
    np.testing.assert_array_equal(widened(narrowed(sign * values)), sign * expected)


def test_a_number_beyond_the_largest_is_infinite():
    largest = np.array([np.finfo(np.float32).max, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(widened(narrowed(largest)), [np.inf, np.inf, np.nan])


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], ids=hex)
def test_not_a_number_stays_so_whatever_its_bits(bits):
    """The payload would be lost, or carry into the sign."""
    values = np.array([0, bits, 0], np.uint32)
    values[[0, 2]] = np.ones(2, np.float32).view(np.uint32)
    np.testing.assert_array_equal(widened(narrowed(values.view(np.float32))), [1, np.nan, 1])
    assert narrowed(values.view(np.float32))[1] == 0x7FC0  # the quiet NaN of other libraries
