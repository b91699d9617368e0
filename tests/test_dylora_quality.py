"""The study of DyLoRA's quality: what it measures, and that the page shows the committed results."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tokenizers")  # of the extra text, which the sets of sentences import

from benchmarks.dylora_quality import page, study
from benchmarks.dylora_quality.study import Plan
from benchmarks.dylora_quality.ways import BALANCED, LORA, QUARTER, RANKS, SORTED, STEP, SVD, WAYS

DOCS = Path(__file__).parents[1] / "docs"
WITH_RESET = "a rank per row, optimizer reset"


@pytest.fixture(scope="module")
def results():
    return json.loads((DOCS / "dylora-quality/results.json").read_text(encoding="utf-8"))["results"]


def test_the_page_shows_the_results(results):
    text = (DOCS / "dylora-quality.md").read_text(encoding="utf-8")
    assert page.filled(text, results) == text


def test_a_page_without_a_place_for_a_table_is_refused(results):
    with pytest.raises(ValueError, match="one part named 'pairs', got 0"):
        page.filled("# Page", results)


def test_charts_of_equal_results_are_equal_and_small(results, tmp_path):
    page.draw(results, tmp_path / "a")
    page.draw(results, tmp_path / "b")
    drawn = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert drawn == ["gains.svg", "ranks.svg", "warmup.svg"]
    for name in drawn:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert 10_000 < len(content) < 60_000


def test_differences_are_paired():
    found = {"a": {"scores": [[1, 3], [5, 5]]}, "b": {"scores": [[0, 0], [3, 5]]}}
    assert page.difference(found, "a", "b") == (1.5, 0.5)
    worse = {"a": {"scores": [[0, 0], [0, 0]]}, "b": {"scores": [[1, 1], [1, 1]]}}
    assert page.overall({"one": found, "two": worse}, "a", "b") == (0.25, 0.25, -1.0)


def test_what_is_measured_is_kept_and_not_measured_again(tmp_path, monkeypatch):
    path, plan, said = tmp_path / "results.json", Plan(epochs=1, seeds=2, choice_seeds=1), []
    monkeypatch.setattr(study, "RATES", (0.006, 0.024))
    ways = [STEP, SORTED, BALANCED, LORA, QUARTER, SVD, WITH_RESET]
    study.study(path, tmp_path, ["digits"], ways[:2], plan, said.append)
    first = json.loads(path.read_text())["results"]["digits, 1 epochs"]
    study.study(path, tmp_path, ["digits"], ways, plan, said.append)
    found = json.loads(path.read_text())["results"]["digits, 1 epochs"]
    assert len(said) == len(ways)
    assert {way: found[way] for way in first} == first
    for way, result in found.items():
        assert result["cost"] == WAYS[way].cost
        assert np.shape(result["scores"]) == np.shape(result["losses"]) == (2, len(RANKS))
        assert np.shape(result["grid"]) == (2, len(RANKS))
        assert set(result["rates"]) <= {0.006, 0.024}
    scores = {way: result["scores"] for way, result in found.items()}
    assert len({json.dumps(each) for each in scores.values()}) >= len(ways) - 1  # with one epoch, a quarter is all of it
    study.study(path, tmp_path, ["digits"], ways, plan, said.append)
    assert len(said) == len(ways)


def test_costs_are_those_of_all_trainings():
    assert (WAYS[STEP].cost, WAYS[LORA].cost, WAYS[QUARTER].cost, WAYS[SVD].cost) == (1, 4, 1, 1)
