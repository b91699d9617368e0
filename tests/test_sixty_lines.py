"""The page "LoRA in 60 lines" is as short as it says, and its code computes what it says."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "lora-in-60-lines.md"
CELL = re.compile(r"```\{code-cell\}\n(?::tags: \[(\w+)\]\n)?(.*?)```", re.DOTALL)
CELLS = [(tag or "lora", code) for tag, code in CELL.findall(PAGE.read_text(encoding="utf-8"))]


def lines(tag):
    return [line for kind, code in CELLS if kind == tag for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize(("tags", "most"), [(["lora", "check"], 60), (["dylora"], 20), (["multilora"], 20)])
def test_it_is_as_short_as_its_title(tags, most):
    assert 0 < sum(len(lines(tag)) for tag in tags) <= most


def test_lines_are_short_enough_to_read():
    assert max(len(line) for _, code in CELLS for line in code.splitlines()) <= 90


@pytest.fixture(scope="module")
def page():
    """The variables of the page after all of its cells, and what they printed."""
    names, printed = {}, []
    names["print"] = lambda *values: printed.append(" ".join(map(str, values)))
    for _, code in CELLS:
        exec(code, names)
    return names, printed


def percentages(printed, start):
    (line,) = [line for line in printed if line.startswith(start)]
    return [float(number) / 100 for number in re.findall(r"([\d.]+)%", line)]


def test_the_gradients_are_right(page):
    _, printed = page
    slopes = [line.split() for line in printed if re.match(r"[WbAB][12]:", line)]
    assert len(slopes) == 8
    for _, by_differences, by_gradient in slopes:
        assert float(by_differences) == pytest.approx(float(by_gradient), abs=1e-6)
        assert float(by_gradient) != 0


def test_lora_learns_and_can_be_merged(page):
    _, printed = page
    upright, turned = percentages(printed, "base:")
    assert upright > 0.93
    assert turned < 0.3
    assert percentages(printed, "LoRA:")[0] > 0.93
    assert any(line.startswith("LoRA:") and line.endswith("by 680 numbers") for line in printed)
    assert percentages(printed, "merged:") == percentages(printed, "LoRA:")


def test_dylora_is_good_at_every_rank(page):
    _, printed = page
    cut, nested = percentages(printed, "LoRA, cut"), percentages(printed, "DyLoRA")
    assert len(cut) == len(nested) == 4
    assert all(dynamic > truncated + 0.1 for dynamic, truncated in zip(nested[:3], cut[:3], strict=True))
    assert nested[3] > 0.93


def test_mixed_tasks_are_as_one_by_one(page):
    names, printed = page
    assert "as in a pass per task: True" in printed
    assert all(np.shares_memory(arrays["W1"], names["p"]["W1"]) for arrays in names["tasks"].values())
    assert percentages(printed, "mixed batch:")[0] > 0.9
