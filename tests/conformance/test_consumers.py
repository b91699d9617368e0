"""Programs in other languages: JavaScript passes every case, C those of the additive adapters, and mistakes in C fail."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_np.conformance import check_program, load_vectors
from tests.conformance import bridge

HERE = Path(__file__).parent
PYTHON = shlex.quote(sys.executable)


def compiled(source, target):
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", str(source), "-o", str(target), "-lm"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return f"{PYTHON} {shlex.quote(str(HERE / 'bridge.py'))} {shlex.quote(str(target))}"


@pytest.fixture
def node():
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    return f"node {shlex.quote(str(HERE / 'consumer.js'))}"


@pytest.fixture
def gcc():
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")


def test_javascript_passes_every_case(node):
    report = check_program(node)
    assert report.ok, report
    assert report.count("pass") == len(load_vectors())


def test_c_passes_dense_lora_dylora_and_multilora(gcc, tmp_path):
    report = check_program(compiled(HERE / "consumer.c", tmp_path / "consumer"))
    assert report.ok, report
    skipped = {verdict.case for verdict in report.verdicts if verdict.result == "skip"}
    assert skipped == {case["name"] for case in load_vectors() if bridge.unsupported(case)}
    assert report.count("pass") > 45


WRONG = {
    "the scaling": ("alpha / t->rank", "alpha / (t->rank + 1)"),
    "the frozen mode": ("if (k < from) continue;", ""),
    "the layout": ("j * in + i", "j + i * out"),
    "the order of update and gradient": ("t->dA[i * t->rank + k] += dh", "t->dA[i * t->rank + k] += 2 * dh"),
    "rows without a task": ("if (owner[n] < 0) continue;", "if (owner[n] < 0) owner[n] = 0;"),
}


@pytest.mark.parametrize(("right", "wrong"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_in_the_program_are_found(gcc, tmp_path, right, wrong):
    source = (HERE / "consumer.c").read_text(encoding="utf-8")
    assert right in source
    (tmp_path / "wrong.c").write_text(source.replace(right, wrong), encoding="utf-8")
    report = check_program(compiled(tmp_path / "wrong.c", tmp_path / "wrong"))
    assert report.count("FAIL") > 0
    assert not report.ok
