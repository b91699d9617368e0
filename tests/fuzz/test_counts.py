"""The documentation states how many inputs the fuzzers try by default."""

import re
from pathlib import Path

from .__main__ import FUZZERS

ROOT = Path(__file__).parents[2]
COUNTS = [count for _, count in FUZZERS.values()]


def numbers(text):
    return [int(number.replace(",", "")) for number in text]


def test_reliability_states_the_defaults():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page.partition("## Attacks")[2].partition("##")[0]
    assert numbers(re.findall(r"\| ([\d,]+) \|", table)) == COUNTS


def test_contributing_states_the_defaults():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"# damaged files.*", page)
    assert numbers(re.findall(r"\d[\d,]*\d", line)) == COUNTS
