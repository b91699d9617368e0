"""Every name in a table of the README can be used exactly as it is written there.

Cells hold phrases between semicolons: names, ``module: names``, ``command: verbs``, or names of methods "on every layer".
A bare name is imported from lora_np. Anything else is refused, so that no name goes unchecked.
"""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import lora_np
from lora_np.cli import VERBS

ROOT = Path(__file__).parents[1]

COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]

CODE = r"`[^`]+`"
PHRASE = re.compile(rf"(?:(?P<owner>{CODE}(?: or {CODE})*): )?(?P<names>{CODE}(?: {CODE})*)(?P<methods> on every layer)?")


def claims(markdown):
    """What the tables say of the names in them: pairs (kind, code)."""
    cells = [cell for line in markdown.splitlines() if line.startswith("|") for cell in line.split("|") if "`" in cell]
    return [claim for cell in cells for phrase in cell.split(";") for claim in phrase_claims(phrase.strip())]


def phrase_claims(phrase):
    match = PHRASE.fullmatch(phrase)
    if match is None:
        raise ValueError(f"cannot read {phrase!r}")
    owners, names = (re.findall("`(.+?)`", match[group] or "") for group in ("owner", "names"))
    if match["methods"] and not owners:
        return [("method", name) for name in names]
    if not owners:
        return [(kind(name), f"from lora_np import {name}" if name.isidentifier() else name) for name in names]
    if {kind(owner) for owner in owners} == {"command"}:
        return [("command", owner) for owner in owners] + [("verb", name) for name in names]
    return [("import", f"from {owner} import {name}") for owner in owners for name in names]


def kind(code):
    """``lora_np.io`` and ``fit`` are Python; what has a space or a hyphen is a command."""
    return "import" if all(part.isidentifier() for part in code.split(".")) else "command"


def check(claim):
    """Raise an exception if the claim is wrong."""
    kind, code = claim
    if kind == "import":
        exec(code, {"lora_np": lora_np})
    elif kind == "method":
        assert callable(getattr(lora_np.Layer, code))
    elif kind == "verb":
        assert code in VERBS
    elif code.startswith("python -m "):
        assert importlib.util.find_spec(f"{code.removeprefix('python -m ')}.__main__")
    else:
        assert code in COMMANDS


README = claims((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("claim", README, ids=": ".join)
def test_a_name_in_the_readme(claim):
    check(claim)


def test_all_kinds_of_names_are_read():
    assert {kind for kind, _ in README} == {"import", "method", "command", "verb"}
    codes = {code for _, code in README}
    assert {"from lora_np import DenseLayer", "from lora_np.io import load_peft", "pack", "truncate"} <= codes
    assert len(README) > 80


@pytest.mark.parametrize(
    "cell",
    [
        "`DenseLayers`",
        "`DenseLayer` `sigmoids`",
        "`lora_np.surgery`: `truncate` `shrink`",
        "`lora_np.surgeries`: `truncate`",
        "`save_layer`; `lora_np.io`: `load_pefts`",
        "`lora_np.testing.check_gradient`",
        "`lora_np.testing.check_gradients` `gradient_errors`",
        "`pack` `shrink` on every layer",
        "`lora-np`: `demo` `shrink`",
        "`lora-mp`: `demo`",
        "`lora-np` or `python -m lora_mp`: `demo`",
        "`python -m benchmark`",
        "the layer `DenseLayer`",
        "`DenseLayer`, `Sequential`",
        "`lora_np.surgery`:`truncate`",
        "`lora_np.surgery`: `pack` on every layer",
        "`pack` on each layer",
    ],
)
def test_a_wrong_name_is_noticed(cell):
    with pytest.raises((ImportError, AttributeError, AssertionError, ValueError)):
        [check(claim) for claim in claims(f"| label | {cell} |")]
