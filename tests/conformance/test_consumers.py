"""Programs in other languages: JavaScript passes every case, C those of the additive adapters; mistakes in either fail."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_np.conformance import check_program, load_vectors
from tests.conformance import bridge

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = ("layer_norm", "rms_norm", "rotary", "attention", "bert_block", "gpt2_block", "llama_block")
PARTS = [case for case in load_vectors() if case["kind"] in KINDS]
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


WRONG_IN_JAVASCRIPT = {
    "epsilon outside the root": ("row.length + epsilon)", "row.length) + epsilon"),
    "the mean along n": ("u[i] * (value - n[i][j] * along)", "u[i] * value"),
    "the mean of the gradient": ("x: centred(found.x)", "x: found.x"),
    "the rotation back": ("turned(G, heads, positions, base, -1)", "turned(G, heads, positions, base, 1)"),
    "interleaved pairs": ("y[n][first ? i + half : i - half]", "y[n][i ^ 1]"),
    "keys that stay rotated": ('turn(shared("k"), groups, -1)', 'shared("k")'),
    "other sequences": ("sentence[m] === sentence[n] && ", ""),
    "the mask": ("m <= n", "m < n + 2"),
    "the scale in dK": ("dk[m][j] += ds * q[n][j]", "dk[m][j] += (ds / scale) * q[n][j]"),
    "the softmax": ("(dP[i] - average)", "dP[i]"),
    "the head of a group": ("Math.floor((h * groups) / heads)", "h % groups"),
    "the sum over a group": (".reduce(add);\n    const shared", "[0];\n    const shared"),
    "GELU": ("gelu_exact", "gelu"),
    "the residual": ("add(dr2, ", "("),
    "the residual of GPT-2": ('add(da, back("ln_1", ', '(back("ln_1", '),
    "the order of query, key and value": ("beside([q, k, v])", "beside([k, q, v])"),
    "the residual of Llama": ('add(G, back("post_attention_layernorm", ', '(back("post_attention_layernorm", '),
    "the slope of the gate": ("backward.swish(times(dh, u)).z", "times(dh, u)"),
    "the gate": ("back(U, times(dh, g))", "back(U, dh)"),
}


@pytest.mark.parametrize(("right", "wrong"), WRONG_IN_JAVASCRIPT.values(), ids=WRONG_IN_JAVASCRIPT.keys())
def test_mistakes_in_transformers_are_found(node, tmp_path, right, wrong):
    copies = [tmp_path / name for name in ("docs/interactive/lora.js", "tests/conformance/consumer.js")]
    for copy in copies:
        copy.parent.mkdir(parents=True)
        shutil.copy(ROOT / copy.relative_to(tmp_path), copy)
    source = (HERE / "transformer.js").read_text(encoding="utf-8")
    assert source.count(right) == 1
    (copies[1].parent / "transformer.js").write_text(source.replace(right, wrong), encoding="utf-8")
    report = check_program(f"node {shlex.quote(str(copies[1]))}", PARTS)
    assert report.problems == ()
    assert report.count("FAIL") > 0


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
