"""The code that pages include from the sources is there: a quick test of what `scripts/docs` finds too."""

import ast
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
INCLUDE = re.compile(r"^```\{literalinclude\} (\S+)\n((?::\w+:.*\n)*)", re.MULTILINE)


def includes(page):
    """Pairs of a path and the name of an object in it, or None."""
    for path, options in INCLUDE.findall(page.read_text(encoding="utf-8")):
        name = re.search(r"^:pyobject: (\S+)$", options, re.MULTILINE)
        yield (page.parent / path).resolve(), name and name[1]


ALL = [(page, path, name) for page in sorted(DOCS.rglob("*.md")) for path, name in includes(page)]


def defines(source, name):
    """Whether a module defines a function, a class, or a method."""
    body = ast.parse(source).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        if not found:
            return False
        body = found[-1].body
    return True


@pytest.mark.parametrize(("page", "path", "name"), ALL, ids=lambda value: getattr(value, "name", value))
def test_included_code_is_there(page, path, name):
    assert path.is_file()
    assert name is None or defines(path.read_text(encoding="utf-8"), name)


def test_absent_code_is_noticed():
    assert len(ALL) > 100
    source = "class A:\n    def f(self): ...\n"
    assert defines(source, "A.f")
    assert not defines(source, "A.g")
    assert not defines(source, "f")
