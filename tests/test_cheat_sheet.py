"""The defaults on the cheat sheet are those of the signatures."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import lora_np
from lora_np.training import shared_rank

PAGE = Path(__file__).parents[1] / "docs" / "cheat-sheet.md"
ROWS = re.findall(r"^\| `(\w+)\((\w+)=\)` \| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
NAMES = {"float64": np.float64, "shared_rank": shared_rank}


def test_the_table_is_read():
    assert len(ROWS) > 8


@pytest.mark.parametrize(("owner", "argument", "value"), ROWS, ids=".".join)
def test_a_default(owner, argument, value):
    default = inspect.signature(getattr(lora_np, owner)).parameters[argument].default
    expected = NAMES[value] if value in NAMES else eval(value)
    assert (type(default), default) == (type(expected), expected)
