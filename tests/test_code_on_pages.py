"""Code on the pages of the documentation fits its column, so that no line has to be scrolled."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
LANGUAGES = {"", "bash", "console", "js", "json", "python", "text", "toml", "{code-cell}"}
WIDEST = 88
WIDEST_OUTPUT = 108
"""What programs print is not wrapped."""


def blocks(text):
    """The language of each block of code, and its lines, numbered."""
    language = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            language = line[3:].partition(" ")[0] if language is None else None
        elif language in LANGUAGES:
            yield language, number, line


def too_long(text):
    lines = list(blocks(text))
    is_session = any(line.startswith(">>> ") for language, _, line in lines if language == "python")
    for language, number, line in lines:
        is_output = is_session and language == "python" and not line.startswith((">>> ", "... "))
        if len(line) > (WIDEST_OUTPUT if is_output or not language else WIDEST):
            yield f"line {number} has {len(line)} characters: {line}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_code_fits_its_column(path):
    assert list(too_long(path.read_text(encoding="utf-8"))) == []


def test_a_long_line_is_noticed():
    def page(fence, line):
        return f"# Title\n\n{'prose ' * 30}\n\n```{fence}\n{line}\n```\n\n{'prose ' * 30}\n"

    for fence in ("python", "{code-cell}", "json"):
        assert list(too_long(page(fence, "x" * WIDEST))) == []
        assert len(list(too_long(page(fence, "x" * (WIDEST + 1))))) == 1
    assert len(list(too_long(page("python", ">>> " + "x" * WIDEST)))) == 1
    assert list(too_long(page("python", ">>> x\n" + "x" * WIDEST_OUTPUT))) == []
    assert len(list(too_long(page("python", ">>> x\n" + "x" * (WIDEST_OUTPUT + 1))))) == 1
    assert len(list(too_long(page("", "x" * (WIDEST_OUTPUT + 1))))) == 1
    assert list(too_long(page("{math}", "x" * 200))) == []


def test_the_formatter_wraps_at_the_same_column():
    settings = (DOCS / "ruff.toml").read_text(encoding="utf-8")
    assert re.search(r"^line-length = (\d+)", settings, re.MULTILINE)[1] == str(WIDEST)
