"""The house stands: imports go down only and never in a circle, and no file, function or class outgrows its room."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_np

ROOT = Path(__file__).parents[1]

PACKAGE = ROOT / "lora_np"
FILES = sorted(PACKAGE.rglob("*.py"))
SMALL_ROOMS = {"base", "layers", "adapters"}

LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def test_the_import_contracts_hold():
    pytest.importorskip("importlinter")
    result = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_a_broken_contract_would_be_noticed(tmp_path):
    pytest.importorskip("importlinter")
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "low.py").write_text("import house.high\n")
    (package / "high.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_package = "house"\n'
        '[[tool.importlinter.contracts]]\nname = "down"\ntype = "layers"\nlayers = ["house.high", "house.low"]\n'
    )
    result = subprocess.run([sys.executable, "-c", LINT], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "1 broken" in result.stdout


def circles(graph):
    """Groups of modules that import each other, directly or not (Tarjan 1972)."""
    order, lowest, stack, found = {}, {}, [], []

    def visit(module):
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for imported in graph[module]:
            if imported not in order:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in stack:
                lowest[module] = min(lowest[module], order[imported])
        if lowest[module] == order[module]:
            group = {stack.pop()}
            while module not in group:
                group.add(stack.pop())
            if len(group) > 1:
                found.append(group)

    for module in graph:
        if module not in order:
            visit(module)
    return found


def test_circles_are_found():
    assert circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a", "d"]}) == [{"b", "c"}]


def test_there_is_no_import_circle_even_for_type_checkers():
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("lora_np")
    imports = {module: sorted(graph.find_modules_directly_imported_by(module)) for module in sorted(graph.modules)}
    assert len(imports) > 100
    assert circles(imports) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_or_function_is_too_long(path):
    text = path.read_text(encoding="utf-8")
    limit = 220 if path.parent.name in SMALL_ROOMS else 400
    assert len(text.splitlines()) <= limit
    assert {name: lines for name, lines in function_lengths(text).items() if lines > 40} == {}


def function_lengths(text):
    """The lines of code of each function: without its docstring, comments and blank lines."""
    lines, lengths = text.splitlines(), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            docstring = range(first.lineno, first.end_lineno + 1) if ast.get_docstring(node, clean=False) else ()
            own = [lines[i - 1].strip() for i in range(node.lineno, node.end_lineno + 1) if i not in docstring]
            lengths[node.name] = sum(bool(line) and not line.startswith("#") for line in own)
    return lengths


def test_a_function_is_measured_by_its_code():
    text = 'def f(x):\n    """A\n    docstring."""\n\n    # a comment\n    y = x\n    return y\n'
    assert function_lengths(text) == {"f": 3}


def test_the_layer_is_small():
    lines = (PACKAGE / "base" / "layer.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    public = {name for name in dir(lora_np.Layer) if not name.startswith("_")}
    parity = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"\| `(\w+)", parity))
    assert len(documented & public) > 40
    assert len(public - documented) <= 12, sorted(public - documented)
