"""Collect the examples of the README, of the documentation and of the docstrings as tests."""

from doctest import ELLIPSIS

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

markdown = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS), SkipParser()],
    patterns=["README.md", "docs/*.md"],
)
docstrings = Sybil(parsers=[DocTestParser(optionflags=ELLIPSIS)], patterns=["lora_np/**/*.py", "lora_np/*.py"])

pytest_collect_file = (markdown + docstrings).pytest()
