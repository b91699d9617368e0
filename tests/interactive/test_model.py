"""What the interactive page computes, without the page: its JavaScript in node against lora_np on the same weights."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from lora_np.data import load_digits
from tests.interactive import exported
from tests.interactive.exported import DATA, FOLDER, IMAGES, LABELS, MAX_RANK, TASKS, VIEWS

# Scripts of a page share one scope.
SCRIPT = """
const fs = require("fs"), vm = require("vm");
for (const name of ["lora", "data", "model"]) vm.runInThisContext(fs.readFileSync(`${process.argv[1]}/${name}.js`, "utf8"));
const result = `({
  ranks: ACCURACY_AT_RANK, tasks: ACCURACY_OF_TASK, names: TASKS,
  dylora: ACCURACY_AT_RANK.map((_, rank) => dyloraLogits(seen(DATA.dylora.view), rank)),
  multilora: TASKS.map((task) => taskLogits(seen(task), DIGITS.map(() => task))),
})`;
console.log(JSON.stringify(vm.runInThisContext(result)));
"""


@pytest.fixture(scope="module")
def page():
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    result = subprocess.run(["node", "-e", SCRIPT, str(FOLDER)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_logits_at_every_rank(page):
    images = VIEWS[DATA["dylora"]["view"]]
    assert len(page["dylora"]) == MAX_RANK + 1
    for rank, found in enumerate(page["dylora"]):
        np.testing.assert_allclose(found, exported.at_rank(images, rank), rtol=0, atol=1e-11)


def test_accuracy_at_every_rank(page):
    images = VIEWS[DATA["dylora"]["view"]]
    assert page["ranks"] == [exported.accuracy(exported.at_rank(images, rank)) for rank in range(MAX_RANK + 1)]


def test_logits_of_every_task(page):
    assert page["names"] == ["upright", *TASKS]
    for task, found in zip(page["names"], page["multilora"], strict=True):
        np.testing.assert_allclose(found, exported.of_task(VIEWS[task], task), rtol=0, atol=1e-11)


def test_accuracy_of_every_task_on_every_view(page):
    names = ["upright", *TASKS]
    assert page["tasks"] == {
        view: {task: exported.accuracy(exported.of_task(VIEWS[view], task)) for task in names} for view in names
    }


def test_the_digits_are_those_of_the_package():
    images, labels = load_digits()
    known = {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}
    assert {(image.tobytes(), label) for image, label in zip(IMAGES, LABELS, strict=True)} <= known
    assert len(IMAGES) == 300


def test_the_models_have_something_to_show(page):
    """More rank, more accuracy; and each task needs its own adapter."""
    ranks = page["ranks"]
    assert ranks[0] < 0.3 < ranks[2] < ranks[4] - 0.2
    assert ranks[MAX_RANK] > 0.95
    for task in TASKS:
        assert page["tasks"][task][task] > 0.9
        assert max(page["tasks"][task][other] for other in page["names"] if other != task) < 0.5


def test_source_and_licence_are_named():
    for text in (DATA["source"], (FOLDER / "index.html").read_text(encoding="utf-8")):
        assert "10.24432/C50P49" in text
        assert "CC BY 4.0" in text
        assert "Alpaydin" in text


def test_it_is_small():
    assert (FOLDER / "data.js").stat().st_size < 100_000
