"""The README shows the committed results, and its links lead to files of the repository."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from lora_np.demo.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make_readme():
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "scripts" / "make_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_results(make_readme):
    assert make_readme.with_tables(README) == README, "python scripts/make_readme.py writes them"
    for table in (make_readme.demo_table(), make_readme.benchmark_table()):
        assert README.count(table) == 1


def test_a_changed_number_is_noticed(make_readme):
    changed = re.sub(r"\d\d\.\d%", "99.9%", README, count=1)
    assert changed != README
    assert make_readme.with_tables(changed) == README


def test_results_are_those_of_the_demo_as_it_is():
    results = json.loads((ROOT / "docs" / "demo.json").read_text(encoding="utf-8"))
    assert results["ok"]
    assert results["settings"] == json.loads(json.dumps(vars(Settings())))


def test_an_example_of_a_plot_has_the_results(make_readme):
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    quoted = ast.literal_eval(re.search(r"^measured = ({.*?^})", page, re.MULTILINE | re.DOTALL)[1])
    assert len(quoted) == 2
    for method, row in quoted.items():
        measured = make_readme.curves()[method]
        assert row == {rank: round(100 * measured[rank], 1) for rank in row}


def seconds(results):
    """The sum of all training times."""
    if isinstance(results, dict):
        named = [np.sum(value) for key, value in results.items() if "seconds" in key]
        return sum(named) + sum(seconds(value) for key, value in results.items() if "seconds" not in key)
    return sum(seconds(value) for value in results) if isinstance(results, list) else 0


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_demo_takes_as_long_as_it_did(page):
    (stated,) = re.findall(r"about (\d+) seconds", (ROOT / page).read_text(encoding="utf-8"))
    measured = seconds(json.loads((ROOT / "docs" / "demo.json").read_text(encoding="utf-8")))
    assert 0.8 * int(stated) < measured < 1.2 * int(stated)


def test_the_picture_shows_every_method(make_readme, tmp_path):
    pytest.importorskip("matplotlib")
    assert set(make_readme.METHODS) == set(make_readme.curves())
    make_readme.draw(make_readme.curves(), tmp_path / "readme.svg")
    for folder in (tmp_path, ROOT / "docs"):
        picture = (folder / "readme.svg").read_text(encoding="utf-8")
        assert len(picture) < 200_000
        assert all(f"<!-- {method} -->" in picture for method in make_readme.METHODS)


@pytest.mark.parametrize("target", re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", README))
def test_a_link_leads_to_a_file(target):
    assert (ROOT / target).is_file()
