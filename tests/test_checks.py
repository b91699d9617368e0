"""The checks of arguments: each refuses every value of another kind, and its message names argument and value."""

import functools
import re

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
