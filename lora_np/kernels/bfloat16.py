"""Conversion between float32 and BF16, the upper half of float32, in given buffers."""

from __future__ import annotations

import numpy as np

from .._typing import Array

SIXTEEN, ONE = np.uint32(16), np.uint32(1)
HALF = np.uint32(0x7FFF)
"""Half a unit in the last kept place, minus one bit."""

NAN = np.uint16(0x7FC0)


def widen(stored: Array, out: Array) -> None:
    """Write the values of BF16 numbers, given as uint16, to a contiguous float32 array of the same shape."""
    bits = out.view("<u4")
    np.copyto(bits, stored)
    np.left_shift(bits, SIXTEEN, out=bits)


def narrow(values: Array, out: Array, scratch: Array) -> None:
    """Round float32 numbers to the nearest BF16, ties to even.

    Parameters
    ----------
    values : array of float32, contiguous
    out : array of uint16, of the same shape
    scratch : array of uint32, contiguous, of the same shape
    """
    bits = values.view("<u4")
    # HALF, plus one bit if the last kept place is odd, carries exactly when rounding up is due.
    np.right_shift(bits, SIXTEEN, out=scratch)
    np.bitwise_and(scratch, ONE, out=scratch)
    np.add(scratch, HALF, out=scratch)
    np.add(scratch, bits, out=scratch)
    np.right_shift(scratch, SIXTEEN, out=scratch)
    np.copyto(out, scratch, casting="same_kind")
    with np.errstate(over="ignore", invalid="ignore"):
        may_have_nan = np.isnan(values.sum())  # faster than a test of each value
    if may_have_nan:
        out[np.isnan(values)] = NAN
