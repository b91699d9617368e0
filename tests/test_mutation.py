"""The mutation tester finds the planted holes of a small package, and nothing else."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

PACKAGE = """
from functools import cache

LIMIT = 3
NAME = 1
UNUSED = 1
KIND = int | str

@cache
def doubled(x: int = 1 + 1) -> int:
    return 2 * x

def clipped(x):
    if x > LIMIT:
        return LIMIT
    return x

def untested(x):
    if x < 0:
        raise ValueError(f"{x + 1}")
    return x

def shifted(x):
    def shift(y):
        return x + y
    return shift

def count(n):
    while n > 0:
        n -= 1
    return n
"""

TESTS = """
import pytest
from small.code import NAME, clipped, count, doubled, shifted

runs = []

def test_that_fails_when_it_is_repeated():
    runs.append(clipped(1))
    assert len(runs) == 1

@pytest.mark.parametrize("value", [object()], ids=repr)
def test_whose_name_changes(value):
    assert clipped(8) == 3

def test_name():
    assert NAME == 1

def test_doubled():
    assert doubled(5) == 10

def test_clipped():
    assert clipped(7) == 3

def test_default():
    assert doubled() == 4

def test_shifted():
    assert shifted(2)(3) == 5

def test_count():
    assert count(3) == 0
"""

PROGRAM = """
import json, sys
from pathlib import Path
from mutation.changes import mutants
from mutation.trials import trials
found = mutants(Path("small"), "code.py")
print(json.dumps([[t.mutant.before, t.mutant.after, t.caught, t.too_long]
                  for t in trials(Path("small").resolve(), ["test_small.py", "test_other.py"], found, limit=LIMIT)]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Statement before and after: whether the mutant was caught and whether it took too long."""
    if not hasattr(os, "fork"):
        pytest.skip("the mutation tester requires os.fork")
    tmp_path = tmp_path_factory.mktemp("mutation")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "__init__.py").touch()
    (tmp_path / "small" / "code.py").write_text(PACKAGE)
    (tmp_path / "test_small.py").write_text(TESTS)
    (tmp_path / "test_other.py").write_text("def test_nothing():\n    pass\n")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("LIMIT", "5.0")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(tmp_path)])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return {(before, after): (caught, late) for before, after, caught, late in json.loads(run.stdout)}


def test_holes_are_found_and_nothing_else(outcomes):
    survived = {pair for pair, (caught, _) in outcomes.items() if not caught}
    assert survived == {
        ("UNUSED = 1", "UNUSED = 2"),
        ("if x > LIMIT:", "if True:"),  # nothing below the limit is tested
        ("if x > LIMIT:", "if x >= LIMIT:"),  # equivalent
        ("return x", "return None"),  # of `clipped` below the limit, and of `untested`
        ("if x < 0:", "if True:"),
        ("if x < 0:", "if False:"),
        ("if x < 0:", "if x <= 0:"),
        ("if x < 0:", "if x < 1:"),
    }
    assert not any("raise" in before for before, _ in outcomes)


def test_code_that_runs_at_import_is_tried(outcomes):
    assert outcomes["LIMIT = 3", "LIMIT = 4"] == (True, False)
    assert outcomes["KIND = int | str", "KIND = int & str"] == (True, False)  # one file of tests cannot be collected
    assert outcomes["NAME = 1", "NAME = 2"] == (True, False)  # its test reaches no line of a function
    assert outcomes["@cache def doubled(x: int=1 + 1) -> int:", "@cache def doubled(x: int=1 - 1) -> int:"][0]


def test_a_closure_that_loses_its_variable_is_tried(outcomes):
    assert outcomes["return x + y", "return None"] == (True, False)


def test_an_endless_loop_ends(outcomes):
    assert outcomes["n -= 1", "n -= 2"] == (True, False)
    assert outcomes["n -= 1", "n += 1"] == (True, True)


def test_equivalent_mutants_have_a_reason():
    root = SCRIPTS.parent
    listed = tomllib.loads((root / "tests" / "equivalent_mutants.toml").read_text(encoding="utf-8"))["mutant"]
    for one in listed:
        assert {"file", "before", "reason"} <= one.keys() <= {"file", "before", "after", "reason"}
        assert (root / "lora_np" / one["file"]).exists()
