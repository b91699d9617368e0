"""What a release states in several places is the same in all of them."""

import re
from pathlib import Path

import lora_np

ROOT = Path(__file__).parents[1]


def test_the_citation_names_the_version():
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert version == lora_np.__version__


def test_the_citation_names_the_authors_of_the_package():
    (names,) = re.findall(
        r'^authors = \[{ name = "(.+)" }\]$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert f"  - name: {names}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert names in (ROOT / "LICENSE").read_text(encoding="utf-8")
