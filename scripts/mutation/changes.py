"""The mutants of a module: single changes of an operator, a constant, a condition, a result or a call.

Left out, because no test should depend on them: type hints, overloads, the wording of messages (whatever is inside `raise`,
an f-string or a warning), sizes of caches (`maxsize`), guards that cannot fail in correct code (`strict` of `zip`, `frozen`
of `dataclass`), `stacklevel`, `copy=False`, which only saves memory, the -1 of `reshape`, for which NumPy takes any
negative number, and the numbers and the style of pictures (sizes, positions, grids), which are judged by eye.
"""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
"""What replaces each operator."""

PICTURES = ("plot/",)
"""Where pictures are drawn: how a picture looks is judged by eye, so their numbers, and what is computed of them, stay."""

STYLE = {
    "finish",
    "grid",
    "margins",
    "set_aspect",
    "set_axis_off",
    "set_axisbelow",
    "set_facecolor",
    "set_visible",
    "tick_params",
}
"""Calls that only the look of a picture depends on."""

UNTESTED_KEYWORDS = {"maxsize", "stacklevel", "strict"}


class Mutant(NamedTuple):
    """A change: the file, the lines of its statement, the statement before and after, and its number within the file."""

    file: str
    lines: range
    before: str
    after: str
    number: int
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.lines.start}: {self.before}  ->  {self.after}"


def edits(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Every change of one node: the name of a field and its new value."""
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS and not is_text(node):
        yield "op", SWAPS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            if type(operator) in SWAPS:
                yield "ops", [*node.ops[:index], SWAPS[type(operator)](), *node.ops[index + 1 :]]
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value + 1 != node.value:
        yield "value", (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):  # `not x` becomes `not not x`
        yield "operand", ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "op", ast.UAdd()
    elif isinstance(node, ast.If):
        yield "test", ast.Constant(True)
        yield "test", ast.Constant(False)
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield "value", ast.Constant(None)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # the call is left out
        yield "value", ast.Constant(...)


def is_text(node: ast.AST) -> bool:
    """Whether an operation is on strings, as in messages."""
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else []
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in parts
    )


def is_untested(node: ast.AST) -> bool:
    """Whether nothing inside a node is changed: see the module."""
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return True
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    if isinstance(node, ast.FunctionDef):
        return any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in ("warnings.warn", "dataclass")
    if isinstance(node, ast.keyword):
        return node.arg in UNTESTED_KEYWORDS or (node.arg == "copy" and ast.unparse(node.value) == "False")
    return False


def is_look(node: ast.AST, file: str) -> bool:
    """Whether a node is a number, arithmetic or a call that only the look of a picture depends on."""
    if not file.startswith(PICTURES):
        return False
    if isinstance(node, ast.Expr):
        called = getattr(node.value, "func", None)
        return getattr(called, "attr", getattr(called, "id", None)) in STYLE
    return isinstance(node, ast.Constant | ast.BinOp | ast.UnaryOp)


def is_reshape(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape"


class Place(NamedTuple):
    """A node that may change, its statement, and whether that runs when the module is imported."""

    node: ast.AST
    statement: ast.stmt
    at_import: bool


def places(node: ast.AST, statement: ast.stmt | None = None, at_import: bool = True) -> Iterator[Place]:
    """The nodes below one that may change, in the order of the source."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        inside = at_import and not (field == "body" and isinstance(node, ast.FunctionDef | ast.Lambda))
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or is_untested(child) or (is_reshape(node) and ast.unparse(child) == "-1"):
                continue
            owner = child if isinstance(child, ast.stmt) else statement
            if owner is not None:
                yield Place(child, owner, inside)
            yield from places(child, owner, inside)


def header(statement: ast.stmt) -> str:
    """The source of a statement on one line, without the statements inside it."""
    shell = copy.copy(statement)
    for field in ("body", "orelse", "finalbody", "handlers"):
        if hasattr(shell, field):
            setattr(shell, field, [ast.Pass()] if field == "body" else [])
    return " ".join(line.strip() for line in ast.unparse(shell).splitlines() if line.strip() != "pass")


def lines_of(statement: ast.stmt) -> range:
    """The lines of a statement, without those of the statements inside it."""
    body = getattr(statement, "body", None)
    end = body[0].lineno if body and body[0].lineno > statement.lineno else (statement.end_lineno or 0) + 1
    return range(statement.lineno, end)


def changed(tree: ast.Module, file: str) -> Iterator[Mutant]:
    """Change a tree in place in every way, one after another; each change is undone when the next one is asked for."""
    number = 0
    for node, statement, at_import in list(places(tree)):
        if is_look(node, file):
            continue
        before = header(statement)
        for field, value in edits(node):
            old = getattr(node, field)
            setattr(node, field, value)
            yield Mutant(file, lines_of(statement), before, header(statement), number, at_import)
            setattr(node, field, old)
            number += 1


def mutants(package: Path, file: str) -> list[Mutant]:
    """All mutants of a file."""
    return list(changed(ast.parse((package / file).read_text(encoding="utf-8")), file))


def compiled(package: Path, mutant: Mutant) -> CodeType:
    """The code of a module with a mutant."""
    tree = ast.parse((package / mutant.file).read_text(encoding="utf-8"))
    next(found for found in changed(tree, mutant.file) if found.number == mutant.number)
    return compile(ast.fix_missing_locations(tree), str(package / mutant.file), "exec")
