"""What a release states in several places is the same in all of them."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

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


# ---------------------------------------------------------------- the address of the repository

REPOSITORY = "https://example.org/owner/lora_np"


@pytest.fixture(scope="module")
def hatch_build():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_become_absolute(hatch_build):
    text = "[a](docs/a.md#part) ![b](docs/b.svg) [c](#here) [d](https://example.org/d) `[e]`(f) [two\nlines](g/h.md)"
    assert hatch_build.absolute(text, REPOSITORY) == (
        f"[a]({REPOSITORY}/blob/main/docs/a.md#part) ![b]({REPOSITORY}/raw/main/docs/b.svg) [c](#here) "
        f"[d](https://example.org/d) `[e]`(f) [two\nlines]({REPOSITORY}/blob/main/g/h.md)"
    )


@pytest.mark.parametrize("repository", ["", REPOSITORY, f"{REPOSITORY}/"])
def test_metadata_depend_on_the_address(hatch_build, repository):
    metadata = {}
    hatch_build.AddressHook(str(ROOT), {"repository": repository}).update(metadata)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata["readme"]["content-type"] == "text/markdown"
    if repository:
        assert set(metadata["urls"].values()) >= {REPOSITORY, f"{REPOSITORY}/issues"}
        assert f"]({REPOSITORY}/blob/main/docs/lora-in-60-lines.md)" in metadata["readme"]["text"]
        assert f"]({REPOSITORY}/raw/main/docs/readme.svg)" in metadata["readme"]["text"]
        assert not re.search(r"\]\((docs|lora_np|[A-Z]+\.md)", metadata["readme"]["text"])
    else:
        assert metadata["urls"] == {}
        assert metadata["readme"]["text"] == readme


def test_the_citation_names_the_repository_if_there_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    named = re.findall(r"^repository-code: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == ([repository] if repository else [])
