"""Collect the examples of the README, of the documentation and of the docstrings as tests."""

from doctest import ELLIPSIS

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

# Blocks marked python. Those marked {code-cell}, in docs/tutorials, run when the documentation is built: docs/conf.py.
markdown = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    exclude="docs/_build/*",
)
docstrings = Sybil(parsers=[DocTestParser(optionflags=ELLIPSIS)], patterns=["lora_np/**/*.py", "lora_np/*.py"])

pytest_collect_file = (markdown + docstrings).pytest()
