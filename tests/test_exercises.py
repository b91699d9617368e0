"""Exercises: the solutions are right, the texts are open, and a mark names what is wrong."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lora_np import LayerNorm
from lora_np.cli import main
from lora_np.errors import ArgumentError
from lora_np.exercises import EXERCISES, marked, write_exercises
from lora_np.exercises.marking import SIZES, _problem, open_text, solution


def solved(folder, names=EXERCISES):
    folder.mkdir(exist_ok=True)
    for name in names:
        source = Path(solution(name).__file__).read_text(encoding="utf-8")
        (folder / f"{name}.py").write_text(source, encoding="utf-8")


def changed(folder, name, old, new):
    file = folder / f"{name}.py"
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")
    return next(mark for mark in marked(folder) if mark.file == file.name)


def test_the_solutions_are_right(tmp_path):
    solved(tmp_path)
    assert [(mark.file, mark.result, mark.detail) for mark in marked(tmp_path)] == [
        (f"{name}.py", "right", "") for name in EXERCISES
    ]
    assert next(mark for mark in marked(tmp_path) if mark.file == "lora.py").title == "LoRA on a frozen weight"


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", EXERCISES)
def test_each_solution_is_right_for_all_sizes(name, sizes):
    assert _problem(solution(name), solution(name).vjp, sizes) == ""


def test_a_gradient_is_zero_up_to_rounding_if_it_is_tiny_beside_the_others():
    def vjp(dy, x, b):
        """The gradients (dx, db)."""
        return 1e6 * dy, dy + 1e-7

    def forward(x, b):
        return 1e6 * x + b

    exercise = SimpleNamespace(forward=forward, vjp=vjp, example=lambda rng, n, *_: {"x": np.ones(n), "b": np.ones(n)})
    assert _problem(exercise, vjp, SIZES[0]) == ""
    assert _problem(exercise, lambda dy, x, b: (1e6 * dy, dy + 1e-5), SIZES[0]).startswith("db is off by")


def test_new_exercises_are_open(tmp_path):
    assert write_exercises(tmp_path / "new" / "er") == [f"{name}.py" for name in EXERCISES]
    assert {mark.result for mark in marked(tmp_path / "new" / "er")} == {"open"}


@pytest.mark.parametrize("name", EXERCISES)
def test_the_text_has_the_forward_pass_and_no_solution(name):
    names = {}
    exec(open_text(name), names)
    values = solution(name).example(np.random.default_rng(0), *SIZES[0])
    np.testing.assert_array_equal(names["forward"](**values), solution(name).forward(**values))
    assert names["vjp"].__doc__ == solution(name).vjp.__doc__
    with pytest.raises(NotImplementedError):
        names["vjp"](None, **values)
    assert "example" not in names
    assert names["__doc__"] == solution(name).__doc__
    assert "\n\n\n\n" not in open_text(name)


def test_the_normalization_is_that_of_the_package():
    x = np.random.default_rng(0).normal(scale=1e-3, size=(4, 5))
    np.testing.assert_allclose(solution("layer_norm").forward(x, np.ones(5), np.zeros(5)), LayerNorm(5).predict(x))


def test_existing_files_are_kept(tmp_path):
    (tmp_path / "lora.py").write_text("mine", encoding="utf-8")
    assert "lora.py" not in write_exercises(tmp_path)
    assert (tmp_path / "lora.py").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("name", "old", "new", "detail"),
    [
        ("lora", "dx = dy @ W.T + dh @ A.T", "dx = dy @ W.T", "dx is off by"),
        ("lora", "return dx, dA, dB", "return 3 * dx, dA, dB", "dx is off by 200.0% of its largest element, for n = 3"),
        ("lora", "dA = x.T @ dh", "dA = (x.T @ dh).T", "dA has the shape (2, 4) instead of (4, 2), for n = 3, d_in = 4"),
        ("lora", "return dx, dA, dB", "return dx, dA", "vjp must return 3 gradients, (dx, dA, dB), got tuple of length 2"),
        ("lora", "return dx, dA, dB", "return dx", "vjp must return 3 gradients, (dx, dA, dB), got ndarray"),
        ("dylora", "dB[:k] =", "dB[:] =", "dB is off by"),
        ("dylora", "dB[:k] = s * (x @ A[:, :k]).T @ dy", "dB[0] = s * (x @ A[:, 0]) @ dy", "dB is off by"),
        ("dylora", "return dx, dA, dB", "return dx, dA, (1 + 1.3e-9) * dB", "dB is off by"),
        ("multilora", "dA[task] = x[own].T @ dh[own]", "dA[task] = x.T @ dh", "dA is off by"),
        ("dora", "dV = (m / c) * (G - U * dm)", "dV = (m / c) * G", "dA is off by"),
        ("vera", "dx = dy @ W.T", "dx = dy @ Wt", "NameError in line 13: "),
        ("layer_norm", " - n * (dn * n).mean(axis=1, keepdims=True)", "", "dx is off by"),
        ("attention", "def vjp(", "def vpj(", "the file has no function vjp"),
        ("attention", "return dS @ K / root", "return dS @@ K / root", "SyntaxError in line 24: "),
        ("dense", "dx = dy @ W.T", "dx = dy @ W", "ValueError in line "),
        ("dense", "dx = dy @ W.T", "dx = dy @ W.T * float('nan')", "dx is off by nan"),
    ],
)
def test_a_mark_names_what_is_wrong(name, old, new, detail, tmp_path):
    solved(tmp_path)
    mark = changed(tmp_path, name, old, new)
    assert mark.result == "wrong"
    assert detail in mark.detail


def test_arguments_may_be_overwritten_by_a_vjp(tmp_path):
    solved(tmp_path)
    assert changed(tmp_path, "lora", "return dx, dA, dB", "x[:] = 0; return dx, dA, dB").result == "right"


def test_a_folder_without_exercises_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"folder must have one of dense\.py, lora\.py, "):
        list(marked(tmp_path))


def test_the_command_writes_and_marks(tmp_path, capsys):
    folder = str(tmp_path / "work")
    assert main(["exercises", folder]) == 0
    first = capsys.readouterr().out
    assert first.startswith("Written to ")
    assert "0 of 8 exercises right." in first
    solved(tmp_path / "work", ["lora"])
    changed(tmp_path / "work", "lora", "return dx, dA, dB", "return dx, dB, dA")
    assert main(["exercises", folder]) == 1
    assert "\nlora.py: dA has the shape" in capsys.readouterr().out
    solved(tmp_path / "work")
    assert main(["exercises", folder]) == 0
    assert capsys.readouterr().out.endswith("\n\n8 of 8 exercises right.\n")
    assert main(["exercises", folder, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["written"] == []
    assert {exercise["result"] for exercise in answer["exercises"]} == {"right"}
