"""The checks of arguments: each refuses every value of another kind, and its message names argument and value."""

import functools
import pathlib
import re
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lora_np import ArgumentError, ArgumentNullError
from lora_np import _validation as checks

VALUES = {
    "string": "text",
    "bytes": b"text",
    "list": [1, 2],
    "empty": [],
    "mapping": {"a": 1},
    "function": len,
    "number": 1.5,
    "true": True,
    "array": np.array([1, 2]),
}

CHECKS = {
    "text": (checks.text, {"string"}),
    "sequence": (functools.partial(checks.sequence, what="numbers"), {"list", "empty", "mapping", "array"}),
    "mapping": (checks.mapping, {"mapping"}),
    "function": (checks.function, {"function"}),
    "path": (checks.file_path, {"string", "bytes"}),
    "flag": (checks.flag, set(VALUES) - {"array"}),
}
"""Each check, and the values that it accepts."""


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_value_of_another_kind_is_refused(check, value):
    call, accepted = CHECKS[check]
    if value in accepted:
        call("thing", VALUES[value])
    else:
        with pytest.raises(ArgumentError, match=f"^thing must be .*{re.escape(repr(VALUES[value]))}$"):
            call("thing", VALUES[value])


@pytest.mark.parametrize("check", sorted(set(CHECKS) - {"flag"}))
def test_none_is_refused(check):
    with pytest.raises(ArgumentNullError, match=r"^thing must not be None$"):
        CHECKS[check][0]("thing", None)


@pytest.mark.parametrize("value", sorted(set(VALUES) - {"array"}))
def test_a_flag_is_a_truth_value(value):
    assert checks.flag("thing", VALUES[value]) is bool(VALUES[value])


def test_a_sequence_is_returned_as_a_tuple():
    assert checks.sequence("thing", iter([1, 2]), "numbers") == (1, 2)


SMALLEST = np.nextafter(0, 1)

EDGES = [
    (checks.file_path, ["a", b"a"], ["", b"", "a\0b"]),
    (checks.positive_float, [SMALLEST, 1], [0, -1, np.inf, np.nan]),
    (checks.non_negative_float, [0, SMALLEST], [-SMALLEST, np.inf, np.nan]),
    (checks.fraction, [0, 0.5, np.nextafter(1, 0)], [-SMALLEST, 1, 1.5]),
    (lambda name, rank: checks.rank_within(rank, 3, 4, name), [1, 3], [0, 4]),
    (lambda name, rank: checks.rank_within(rank, 4, 3, name), [1, 3], [0, 4]),
    (functools.partial(checks.ascending_ranks, max_rank=4), [[1], [4], [1, 4]], [[], [0], [5], [3, 5], [2, 2], [3, 2]]),
    (functools.partial(checks.one_of, choices=("a", "b")), ["a", "b"], ["c", "ab", 1, None, ["a"]]),
    (lambda name, size: checks.array_shape(name, size), [0, sys.maxsize // 16], [sys.maxsize // 16 + 1]),
    (checks.positive_int, [1, np.int64(2)], [0, -1, True, np.True_, 1.0, "1"]),
    (checks.finite_float, [0, -1.5, np.float32(2)], [np.inf, np.nan, True, "1", 1j, [1], [1, [2]], np.ma.array(1.0)]),
    (
        functools.partial(checks.row_weights, rows=2),
        [[0, 0.5], [1, SMALLEST]],
        [[1], [1, 1, 1], [[1], [1]], [1, -SMALLEST], [np.nan, 1], [1, np.inf]],
    ),
    (
        functools.partial(checks.last_axis, size=2),
        [np.ones(2), np.ones((3, 2))],
        [np.ones(()), np.ones(1), np.ones((2, 1)), np.ones((2, 3))],
    ),
    (functools.partial(checks.same_shape, shape=(1, 2)), [np.ones((1, 2))], [np.ones(2), np.ones((2, 2)), np.ones((1, 1))]),
]
"""Checks with the last values that they accept, and the first that they refuse."""


@pytest.mark.parametrize(("check", "accepted", "refused"), EDGES)
def test_the_edges_of_a_range(check, accepted, refused):
    for value in accepted:
        check("thing", value)
    for value in refused:
        with pytest.raises(ArgumentError, match="thing"):
            check("thing", value)


@pytest.mark.parametrize(("alpha", "expected"), [(-SMALLEST, 7), (-1, 7), (0, 0), (SMALLEST, SMALLEST), (2, 2)])
def test_a_negative_alpha_means_the_rank(alpha, expected):
    assert checks.resolved_alpha(alpha, 7) == expected


@pytest.mark.parametrize("path", ["a", b"a", pathlib.Path("a")])
def test_a_path_is_returned_as_a_string(path):
    assert checks.file_path("thing", path) == "a"


@pytest.mark.parametrize(
    "check", [checks.integer, checks.positive_int, checks.finite_float, checks.non_negative_float, checks.positive_float]
)
def test_a_number_is_returned_as_one_of_python(check):
    for value in (2, np.int64(2)):
        assert check("thing", value) == 2
        assert type(check("thing", value)) in (int, float)


def test_the_other_values_that_are_returned():
    assert checks.fraction("thing", 0.5) == 0.5
    assert checks.rank_within(2, 3, 4) == 2
    assert checks.ascending_ranks("thing", [1, 3], 3) == (1, 3)
    assert checks.one_of("thing", "a", ("a", "b")) == "a"
    assert checks.float_dtype("float32") == np.float32
    assert checks.generator(generator := np.random.default_rng(0)) is generator


def test_an_array_is_copied_only_if_it_must_be():
    array = np.arange(3, dtype=np.float32)
    assert checks.real_array("thing", array) is array
    assert checks.real_array("thing", array, np.float32) is array
    for copied in (checks.real_array("thing", array, copy=True), checks.real_array("thing", array, np.float64)):
        assert not np.shares_memory(copied, array)
        assert_array_equal(copied, array)
    assert copied.dtype == np.float64


def test_only_a_numpy_array_with_a_mask_is_masked():
    class Column:
        """Like a column of a data frame, whose method is called the same."""

        def mask(self):
            raise AssertionError

        def __array__(self, dtype=None, copy=None):
            return np.ones(2)

    assert_array_equal(checks.real_array("thing", Column()), [1, 1])
    with pytest.raises(ArgumentError, match="masked"):
        checks.real_array("thing", np.ma.array([1.0, 2.0]))


def test_the_first_wrong_weight_is_named():
    with pytest.raises(ArgumentError, match=r"got -1\.0$"):
        checks.row_weights("thing", [0, 0.5, -1, np.nan], 4)


def test_the_layers_of_a_block_share_its_limit():
    with checks.allocation_limit(7):
        checks.array_shape("thing", 2, 3)
        with pytest.raises(ArgumentError, match=r"than the file, 1$"):
            checks.array_shape("thing", 2)
        checks.array_shape("thing", 1)
    checks.array_shape("thing", 8)


@pytest.mark.parametrize("dtype", ["float16", int, "no dtype", [1]], ids=repr)
def test_a_dtype_of_other_numbers_is_refused(dtype):
    with pytest.raises(ArgumentError, match=r"^dtype must be float32 or float64, got"):
        checks.float_dtype(dtype)


def test_no_array_is_a_null_error():
    with pytest.raises(ArgumentNullError, match=r"^thing must not be None$"):
        checks.real_array("thing", None)
