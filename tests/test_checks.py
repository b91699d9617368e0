"""The checks of arguments: each refuses every value of another kind, and its message names argument and value."""

import functools
import pathlib
import re
import sys

import numpy as np
import pytest

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
