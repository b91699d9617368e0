"""Checks of a program: what passes, what fails, and what is reported about programs that misbehave."""

import json
import os
import re
import shlex
import sys
import time

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.cli import main
from lora_np.conformance import Report, Verdict, ask, check_program, load_vectors
from lora_np.conformance.comparison import compare, relative_error
from lora_np.errors import ArgumentError
from tests.conformance.test_vectors import SCHEMA

CASES = load_vectors()[:3]
FIRST = CASES[0]
RIGHT = {case["name"]: case["expected"] for case in load_vectors()}

# A program that knows every answer; the inserted code may change it, using `case` and `arrays`.
PROGRAM = """
import json, sys, time
expected = json.load(open({path!r}))
for line in sys.stdin:
    case = json.loads(line)
    arrays = expected[case["name"]]
    {spoil}
    print(json.dumps({{"name": case["name"], "arrays": arrays}}), flush=True)
{end}
"""


@pytest.fixture
def program(tmp_path):
    """Build the command of such a program."""

    def build(spoil="pass", end=""):
        answers, script = tmp_path / "answers.json", tmp_path / "program.py"
        answers.write_text(json.dumps(RIGHT))
        script.write_text(PROGRAM.format(path=str(answers), spoil=spoil, end=end))
        return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"

    return build


def spoiled(program, spoil):
    """The verdict on the first case if a line of code changes the answers."""
    return check_program(program(spoil), CASES).verdicts[0]


# ---------------------------------------------------------------- programs that answer


def test_correct_answers_pass(program):
    report = check_program(program())
    assert report.ok
    assert (report.count("pass"), report.problems) == (len(RIGHT), ())
    assert all(verdict.error == 0 for verdict in report.verdicts)


def test_one_case_is_enough(program):
    assert check_program(program(), CASES[:1]).ok


def test_a_program_does_not_receive_the_expected_arrays(program):
    assert check_program(program("assert set(case) == {'name', 'kind', 'settings', 'arrays'}"), CASES).ok


def test_a_wrong_element_fails_and_is_named(program):
    verdict = spoiled(program, "arrays['grad.W'][1][0] += 0.5")
    largest = np.abs(FIRST["expected"]["grad.W"]).max()
    assert verdict == Verdict("dense-tall", "FAIL", "grad.W", pytest.approx(0.5 / largest))


@pytest.mark.parametrize(("factor", "result"), [(0.4, "pass"), (4, "FAIL")])
def test_the_tolerance_is_relative_to_the_largest_element(program, factor, result):
    assert spoiled(program, f"arrays['y'][0][1] *= 1 + {factor * 1e-12}").result == result


def test_exact_answers_pass_without_a_tolerance(program):
    assert check_program(program(), CASES, tolerance=0.0).ok


def test_a_larger_tolerance(program):
    command = program("arrays['y'][0][1] *= 1 + 1e-6")
    assert not check_program(command, CASES).ok
    assert check_program(command, CASES, tolerance=1e-5).ok


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("del arrays['y']", "y is missing"),
        ("arrays['y'] = [1.0]", r"y must have shape \(2, 2\), got \(1,\)"),
        ("arrays['y'] = [[1.0, 2.0], [3.0]]", "y must be an array of real numbers"),
        ("arrays['y'] = [['1', '2'], ['3', '4']]", "y must be an array of real numbers"),
        ("arrays['y'] = None", "y must not be None"),
    ],
)
def test_missing_and_malformed_arrays_fail(program, spoil, words):
    verdict = spoiled(program, spoil)
    assert verdict.result == "FAIL"
    assert re.match(words, verdict.detail)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nonfinite_elements_fail(program, value):
    verdict = spoiled(program, f"arrays['grad.b'][0] = float('{value}')")
    assert verdict == Verdict("dense-tall", "FAIL", "grad.b", np.inf)


def test_additional_arrays_are_ignored(program):
    assert check_program(program("arrays['further'] = 'whatever'"), CASES).ok


SKIP = "print(json.dumps({'name': case['name'], 'skip': 'not written yet'})); continue"


def test_a_case_may_be_skipped(program):
    report = check_program(program(f"if case['name'] == 'dense-wide': {SKIP}"), CASES)
    assert report.ok
    assert report.verdicts[1] == Verdict("dense-wide", "skip", "not written yet")
    assert report.count("pass") == 2


def test_skipping_everything_is_not_a_success(program):
    report = check_program(program(SKIP), CASES)
    assert not report.ok
    assert report.count("skip") == 3


def test_a_case_without_an_answer_fails(program):
    report = check_program(program("if case['name'] == 'dense-wide': continue"), CASES)
    assert report.verdicts[1] == Verdict("dense-wide", "FAIL", "no answer")
    assert not report.ok


# ---------------------------------------------------------------- programs that misbehave


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hello", "output line 1 is not JSON: hello"),
        ("[" * 100_000, "output line 1 is not JSON: [[["),
        ("3", "output line 1 is not an object with a name: 3"),
        ('{"arrays": {}}', "is not an object with a name"),
        ('{"name": "unknown", "arrays": {}}', "output line 1 does not name a case: "),
        ('{"name": "dense-tall"}', 'has neither an object "arrays" nor a string "skip"'),
        ('{"name": "dense-tall", "arrays": 3}', 'has neither an object "arrays" nor a string "skip"'),
    ],
)
def test_garbage_is_reported_and_the_rest_counts(program, line, words):
    text = f"'[' * {len(line)}" if line.startswith("[[") else repr(line)
    report = check_program(program(f"if case['name'] == 'dense-tall': print({text})"), CASES)
    assert len(report.problems) == 1
    assert words in report.problems[0]
    assert len(report.problems[0]) < 200
    assert (report.ok, report.count("pass")) == (False, 3)


def test_a_second_answer_is_a_problem(program):
    report = check_program(program("print(json.dumps({'name': case['name'], 'arrays': arrays}))"), CASES)
    assert len(report.problems) == 3
    assert "output line 2 repeats the result of a case: " in report.problems[0]


def test_output_that_is_not_text_is_a_problem(program):
    report = check_program(program(end="sys.stdout.buffer.write(b'\\xff\\xfe')"), CASES)
    assert "is not JSON" in report.problems[0]


def test_empty_lines_are_ignored(program):
    assert check_program(program("print()"), CASES).ok


def test_a_crash_is_reported_with_the_last_error_output(program):
    report = check_program(program("if case['name'] == 'dense-wide': sys.exit('out of cheese\\n')"), CASES)
    assert report.problems == ("the program exited with code 1; last error output: out of cheese",)
    assert [verdict.result for verdict in report.verdicts] == ["pass", "FAIL", "FAIL"]


def test_a_silent_crash(program):
    assert check_program(program(end="sys.exit(3)"), CASES).problems == ("the program exited with code 3",)


def test_a_program_that_hangs_is_stopped(program):
    start = time.monotonic()
    report = check_program(program("if case['name'] == 'dense-wide': time.sleep(60)"), CASES, timeout=1.5)
    assert time.monotonic() - start < 20
    assert report.problems == ("the program did not exit within 1.5 s and was stopped",)
    assert [verdict.result for verdict in report.verdicts] == ["pass", "FAIL", "FAIL"]


def ends(pid):
    """Whether the process ends soon; a zombie counts as ended."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_children_of_a_hanging_program_are_stopped_too(program, tmp_path):
    mark = tmp_path / "pid"
    child = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    check_program(program(f"__import__('subprocess').run([sys.executable, '-c', {child!r}])"), CASES, timeout=1.5)
    assert ends(int(mark.read_text()))


def test_a_program_that_reads_nothing(tmp_path):
    report = check_program(f"{shlex.quote(sys.executable)} -c pass", CASES)
    assert {verdict.detail for verdict in report.verdicts} == {"no answer"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "command must name a program, got ''"),
        (
            "no-such-program-here --fast",
            "command must name an executable program, got 'no-such-program-here': No such file",
        ),
        (os.path.dirname(__file__), f"command must name an executable program, got {os.path.dirname(__file__)!r}: "),
        ("'open", 'command must be quoted as for a POSIX shell, got "\'open": No closing quotation'),
    ],
)
def test_a_command_that_cannot_run(command, words):
    with pytest.raises(ArgumentError) as caught:
        ask(command, CASES)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": None}, "command must be a string with a program and its arguments, got None"),
        (
            {"command": ["node", "a.js"]},
            r"command must be a string with a program and its arguments, got \['node', 'a.js'\]",
        ),
        ({"timeout": 0}, "timeout must be greater than 0, got 0"),
        ({"timeout": np.nan}, "timeout must be finite"),
        ({"tolerance": -1e-9}, "tolerance must be at least 0"),
    ],
)
def test_invalid_options_are_rejected_before_anything_runs(options, words):
    with pytest.raises(ArgumentError, match=words):
        check_program(**({"command": "no-such-program-here"} | options))


def test_results_have_a_schema():
    result = SCHEMA | {"required": [], "properties": {}, "additionalProperties": True, "$ref": "#/$defs/result"}
    validator = jsonschema.Draft202012Validator(result)
    assert validator.is_valid({"name": "dense-tall", "arrays": FIRST["expected"]})
    assert validator.is_valid({"name": "dense-tall", "skip": "no"})
    assert not validator.is_valid({"name": "dense-tall"})
    assert not validator.is_valid({"name": "dense-tall", "arrays": {"y": "x"}})


# ---------------------------------------------------------------- the error


finite = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5))
def test_the_error_is_the_largest_difference_over_the_largest_element(pairs):
    found, expected = np.array(pairs).T
    largest = max(abs(value) for value in expected)
    difference = max(abs(a - b) for a, b in pairs)
    error = relative_error(found, expected) * (largest if largest > 1e-12 else 1)
    assert error == pytest.approx(difference, rel=1e-12, abs=1e-300)


def test_the_error_of_an_array_of_almost_zeros_is_absolute():
    assert relative_error(np.array([1e-20]), np.array([0.0])) == 1e-20
    assert relative_error(np.array([0.0]), np.array([7e-35])) == 7e-35
    assert relative_error(np.array([0.0]), np.array([7e-3])) == 1


def test_a_report_without_cases_is_not_a_success():
    assert not Report((), ()).ok
    assert not Report((Verdict("a", "pass", "y", 0.0),), ("a crash",)).ok
    assert compare(FIRST, None).detail == "no answer"


# ---------------------------------------------------------------- the verb


def test_the_verb_writes_the_files(tmp_path, capsys):
    assert main(["vectors", "--output", str(tmp_path / "out")]) == 0
    assert f"{len(RIGHT)} cases in vectors.json, schema.json, vectors.safetensors" in capsys.readouterr().out
    assert main(["vectors", "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"lora-np: error: {tmp_path / 'out'}: already exists; use --force to overwrite\n"
    assert main(["vectors", "--json", "--force", "--output", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == len(RIGHT)


def test_the_verb_checks_a_program(program, capsys):
    assert main(["vectors", "--check", program("arrays.pop('merged', 0)")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["case", "result", "array", "largest", "error"]
    row = next(line for line in lines if line.startswith("lora-rank-1 "))
    assert row.split() == ["lora-rank-1", "FAIL", "merged", "is", "missing"]
    assert all(len(line) == len(lines[0]) for line in lines if "pass" in line.split())  # numbers are flush right
    merged = sum("merged" in expected for expected in RIGHT.values())
    assert lines[-1] == f"{len(RIGHT) - merged} passed, {merged} failed, 0 skipped"


def test_the_verb_succeeds_if_all_cases_pass(program, capsys):
    assert main(["vectors", "--check", program()]) == 0
    assert "0 failed" in capsys.readouterr().out


def test_the_verb_reports_problems(program, capsys):
    command = program("time.sleep(60)", end="")
    assert main(["vectors", "--check", command, "--timeout", "0.5"]) == 1
    assert "\nthe program did not exit within 0.5 s and was stopped\n" in capsys.readouterr().out
    assert main(["vectors", "--check", "no-such-program-here"]) == 1
    assert "no-such-program-here" in capsys.readouterr().err


def test_the_verb_in_json(program, capsys):
    command = program("arrays['y'] = [[float('nan')] * len(row) for row in arrays['y']] if 'G' in case['arrays'] else 0")
    assert main(["vectors", "--check", command, "--json", "--tolerance", "1e-3"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert (values["ok"], values["tolerance"], values["problems"]) == (False, 1e-3, [])
    assert values["cases"][0] == {"case": "dense-tall", "result": "FAIL", "detail": "y", "error": None}


@pytest.mark.parametrize("words", [[], ["--output", "a", "--check", "b"], ["--check", "b", "--timeout", "0"]])
def test_invalid_arguments(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["vectors", *words])
    assert caught.value.code == 2
