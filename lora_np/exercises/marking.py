"""The files of the exercises, and their marks."""

from __future__ import annotations

import ast
import inspect
import runpy
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .._archive import atomic_file
from .._typing import Array
from ..errors import ArgumentError

EXERCISES = ("dense", "lora", "dylora", "multilora", "dora", "vera", "layer_norm", "attention")
"""The exercises in order."""
TOLERANCE = 1e-9
"""The largest error of a gradient, relative to its largest element."""
SIZES = ((3, 4, 5, 2), (1, 3, 2, 1), (5, 2, 3, 3), (2, 1, 4, 1))
"""Sizes (n, d_in, d_out, r) of the examples on which a `vjp` is tried."""
OPEN = "raise NotImplementedError  # write the gradients here"


class Mark(NamedTuple):
    """The result of one exercise."""

    file: str
    title: str
    result: str
    """``"right"``, ``"open"`` or ``"wrong"``."""
    detail: str


def solution(name: str) -> ModuleType:
    """The module with the solution of an exercise."""
    return import_module(f"{__package__}.{name}")


def open_text(name: str) -> str:
    """The text of an exercise: its solution without the body of `vjp`, and without the example."""
    source = inspect.getsource(solution(name))
    lines, parts = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "example":
            continue
        last = node.end_lineno
        if isinstance(node, ast.FunctionDef) and node.name == "vjp":
            last = node.body[0].end_lineno  # its docstring
        text = "\n".join(lines[node.lineno - 1 : last])
        parts.append(text + (f"\n    {OPEN}" if last != node.end_lineno else ""))
    return "\n\n\n".join(parts) + "\n"


def write_exercises(folder: Path) -> list[str]:
    """Write the exercises that are missing in a folder, and return the names of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in EXERCISES if not (folder / f"{name}.py").exists()]
    for name in missing:
        with atomic_file(folder / f"{name}.py") as file:
            file.write(open_text(name).encode())
    return [f"{name}.py" for name in missing]


def marked(folder: Path) -> Iterator[Mark]:
    """The mark of each exercise in a folder, one after another. The files are executed.

    Raises
    ------
    ArgumentError
        If the folder has no exercise.
    """
    files = [(name, folder / f"{name}.py") for name in EXERCISES if (folder / f"{name}.py").exists()]
    if not files:
        raise ArgumentError(f"folder must have one of {', '.join(f'{name}.py' for name in EXERCISES)}, got {folder}")
    for name, file in files:
        title = (solution(name).__doc__ or "").partition(":")[0]
        yield Mark(file.name, title, *_result(name, file))


def _result(name: str, file: Path) -> tuple[str, str]:
    try:
        vjp = runpy.run_path(str(file)).get("vjp")
        if not callable(vjp):
            return "wrong", "the file has no function vjp"
        for sizes in SIZES:
            problem = _problem(solution(name), vjp, sizes)
            if problem:
                return "wrong", problem
    except NotImplementedError:
        return "open", ""
    except (Exception, SystemExit) as error:
        return "wrong", f"{type(error).__name__}{_line(error, file)}: {error}"
    return "right", ""


def _line(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" in line {lines[-1]}" if lines else ""


def _problem(right: ModuleType, vjp: Callable[..., Any], sizes: tuple[int, ...]) -> str:
    """The first fault in the gradients for an example of the given sizes; an empty string if they are right."""
    rng = np.random.default_rng(sizes)
    values = right.example(rng, *sizes)
    names = _differentiated(right)
    dy = rng.normal(size=right.forward(**values).shape)
    result = vjp(dy, **{name: value.copy() if isinstance(value, np.ndarray) else value for name, value in values.items()})
    expected = [f"d{name}" for name in names]
    if not isinstance(result, tuple) or len(result) != len(names):
        length = f" of length {len(result)}" if isinstance(result, tuple) else ""
        return f"vjp must return {len(names)} gradients, ({', '.join(expected)}), got {type(result).__name__}{length}"
    where = ", ".join(f"{key} = {value}" for key, value in zip(("n", "d_in", "d_out", "r"), sizes, strict=True))
    truths = {name: _gradient(right.forward, values, name, dy) for name in names}
    least = 1e-3 * max(np.abs(truth).max() for truth in truths.values())  # a gradient may be zero up to rounding
    for (name, truth), gradient in zip(truths.items(), result, strict=True):
        if np.shape(gradient) != truth.shape:
            return f"d{name} has the shape {np.shape(gradient)} instead of {truth.shape}, for {where}"
        error = np.abs(np.asarray(gradient) - truth).max() / max(np.abs(truth).max(), least)
        if not error <= TOLERANCE:
            return f"d{name} is off by {error:.1%} of its largest element, for {where}"
    return ""


def _differentiated(right: ModuleType) -> list[str]:
    """The names of the arguments whose gradients `vjp` returns, as its docstring lists them: ``(dx, dA, dB``."""
    listed = (right.vjp.__doc__ or "").partition("(")[2].partition(")")[0]
    return [name.strip()[1:] for name in listed.split(",")]


def _gradient(forward: Callable[..., Array], values: dict[str, Any], name: str, dy: Array) -> Array:
    """The gradient of ``sum(dy * y)`` by one argument, by the complex step: exact to rounding."""
    array = values[name]
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        moved = array.astype(complex)
        moved[index] += 1e-30j
        gradient[index] = (dy * forward(**values | {name: moved})).sum().imag / 1e-30
    return gradient
