"""What the interactive page computes, without the page: its JavaScript in node against lora_np on the same weights."""

import json
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest

from lora_np import ActivationLayer, Adam, Sequential, SoftmaxCrossEntropy, apply_lora, relu
from lora_np.data import load_digits
from lora_np.training.step import Descent
from tests.interactive import exported
from tests.interactive.exported import DATA, FOLDER, MAX_RANK, TASKS, VIEWS

# Scripts of a page share one scope.
SCRIPT = """
const fs = require("fs"), vm = require("vm");
for (const name of ["lora", "data", "model", "training"]) {
  vm.runInThisContext(fs.readFileSync(`${process.argv[1]}/${name}.js`, "utf8"));
}
console.log(JSON.stringify(vm.runInThisContext(fs.readFileSync(0, "utf8"))));
"""
ADAPTERS = {"dylora": DATA["dylora"], "lora": DATA["lora"], "svd": exported.by_values(DATA["lora"])}
SHIFTED = VIEWS[DATA["dylora"]["view"]]


def in_node(expression):
    """The value of an expression in the scope of the page's scripts."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    result = subprocess.run(["node", "-e", SCRIPT, str(FOLDER)], input=expression, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def page():
    return in_node(
        """(() => {
  const adapters = { dylora: DATA.dylora, lora: DATA.lora, svd: byValues(DATA.lora) };
  const each = (f) => Object.fromEntries(Object.entries(adapters).map(([name, adapter]) => [name, f(adapter)]));
  return {
    accuracies: each(accuracies), tasks: ACCURACY_OF_TASK, names: TASKS, svd: adapters.svd,
    logits: each((adapter) => accuracies(adapter).map((_, rank) => adaptedLogits(SHIFTED, adapter, rank))),
    multilora: TASKS.map((task) => taskLogits(seen(task), DIGITS.map(() => task))),
    merged: [0, 3, 8].map((rank) => mergedWeight(DATA.dylora, rank)),
    inside: insideComponent(SHIFTED[7], DATA.dylora, 2),
  };
})()"""
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_and_accuracy_at_every_rank(page, name):
    assert len(page["logits"][name]) == MAX_RANK + 1
    for rank, found in enumerate(page["logits"][name]):
        expected = exported.at_rank(SHIFTED, rank, ADAPTERS[name])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
        assert page["accuracies"][name][rank] == exported.accuracy(expected)


def test_components_are_sorted_and_orthogonal(page):
    A, B = (np.array(page["svd"][factor]) for factor in "AB")
    np.testing.assert_allclose(B @ B.T, np.eye(MAX_RANK), atol=1e-13)
    gram = A.T @ A
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-11 * gram[0, 0])
    assert (np.diff(np.diag(gram)) <= 0).all()


@pytest.mark.parametrize(
    ("A", "B"), [(np.zeros((3, 2)), np.ones((2, 4))), (np.ones((3, 2)), np.ones((2, 2))), (np.eye(2)[:, :1], np.eye(2)[:1])]
)
def test_components_of_a_product_without_full_rank(A, B):
    found = in_node(f"Lora.canonical({A.tolist()}, {B.tolist()})")
    np.testing.assert_allclose(np.array(found["A"]) @ np.array(found["B"]), A @ B, atol=1e-15)


def test_the_merged_weight(page):
    for rank, found in zip([0, 3, 8], page["merged"], strict=True):
        layer = exported.adapter(DATA["dylora"])
        if rank:
            layer.set_deployment_rank(rank)
        expected = layer.merge_to_original_layer().matrix if rank else layer.base_layer.matrix
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_the_numbers_of_a_component(page):
    layer, x = exported.adapter(DATA["dylora"]), SHIFTED[7].ravel()
    A, B = layer.lora_layer.matrix_a, layer.lora_layer.matrix_b
    np.testing.assert_allclose(page["inside"]["terms"], x * A[:, 2], atol=1e-14)
    np.testing.assert_allclose(page["inside"]["h"], x @ A[:, 2], atol=1e-13)
    np.testing.assert_allclose(page["inside"]["added"], layer.lora_layer.scaling * (x @ A[:, 2]) * B[2], atol=1e-13)


# ---------------------------------------------------------------- training

RATE, BATCH = 0.02, 32
TRAINING = """(() => {
  const inputs = TRAINING_DIGITS.map(({ pixels }) => VIEWS[DATA.dylora.view](pixels));
  const problem = { inputs, labels: TRAINING_DIGITS.map(({ label }) => label), hidden: DATA.hidden, output: DATA.output };
  const plan = { rank: 8, epochs: 2, batch: 32, rate: 0.02, seed: 7 }, run = Training.run(problem, plan), losses = [];
  const start = JSON.parse(JSON.stringify(run.lora));
  while (run.done < run.steps) losses.push(run.advance());
  const random = Training.uniform(plan.seed), orders = [], ranks = [];
  Training.newAdapter(64, HIDDEN, plan.rank, random);
  for (let step = 0; step < run.steps; step++) {
    if (step % run.perEpoch === 0) orders.push(Training.permutation(inputs.length, random));
    ranks.push(1 + Math.floor(plan.rank * random()));
  }
  return { start, losses, orders, ranks, lora: run.lora, dylora: run.dylora };
})()"""


def test_training_is_that_of_lora_np():
    """The same start, batches and ranks give the same losses and factors, for LoRA and DyLoRA."""
    recorded = in_node(TRAINING)
    images, labels = exported.digits(DATA["training"])
    x = 1 - np.rot90(images, axes=(1, 2)).reshape(-1, 64)
    batches = [np.array(order)[start : start + BATCH] for order in recorded["orders"] for start in range(0, len(x), BATCH)]
    assert len(batches) == len(recorded["losses"]) == 32
    assert min(recorded["ranks"]) < 3 < 6 < max(recorded["ranks"])
    assert [sorted(order) for order in recorded["orders"]] == [list(range(500))] * 2
    output = exported.dense(DATA["output"])
    for name in ("lora", "dylora"):
        base = Sequential({"hidden": exported.dense(DATA["hidden"]), "relu": ActivationLayer(32, relu), "output": output})
        model = apply_lora(base, lambda layer: exported.adapter(recorded["start"]), targets=["hidden"])
        branch = model["hidden"].lora_layer
        optimizer, losses = Adam(), []
        descent = Descent(model, SoftmaxCrossEntropy(), optimizer)
        for step, (batch, rank) in enumerate(zip(batches, recorded["ranks"], strict=True)):
            optimizer.learning_rate = RATE * (1 - step / len(batches))
            forward = partial(model.forward, x[batch], rank=rank if name == "dylora" else MAX_RANK)
            losses.append(descent.step(forward, labels[batch]))
        np.testing.assert_allclose([step[name] for step in recorded["losses"]], losses, rtol=1e-9)
        np.testing.assert_allclose(recorded[name]["A"], branch.matrix_a, atol=1e-9)
        np.testing.assert_allclose(recorded[name]["B"], branch.matrix_b, atol=1e-9)


def test_random_numbers_are_uniform_and_normal():
    found = in_node(
        "(() => { const u = Training.uniform(3); return { u: Array.from({ length: 20000 }, u), "
        "n: Array.from({ length: 20000 }, () => Training.normal(u)) }; })()"
    )
    u, n = np.array(found["u"]), np.array(found["n"])
    assert ((u >= 0) & (u < 1)).all()
    assert np.abs(np.histogram(u, 20, (0, 1))[0] - 1000).max() < 150
    assert abs(n.mean()) < 0.03
    assert abs(n.std() - 1) < 0.03
    assert abs((np.abs(n) < 1).mean() - 0.6827) < 0.02


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
    held_out, training = (
        {(image.tobytes(), label) for image, label in zip(*exported.digits(DATA[part]), strict=True)}
        for part in ("heldOut", "training")
    )
    assert held_out | training <= known
    assert not held_out & training
    assert (len(DATA["heldOut"]["labels"]), len(DATA["training"]["labels"])) == (300, 500)


def test_the_models_have_something_to_show(page):
    """More rank, more accuracy; LoRA is better at its rank and worse below; and each task needs its own adapter."""
    ranks = page["accuracies"]
    assert ranks["dylora"][0] < 0.3 < ranks["dylora"][2] < ranks["dylora"][4] - 0.2
    assert 0.95 < ranks["dylora"][MAX_RANK] < ranks["lora"][MAX_RANK]
    for rank in (1, 2, 3, 4, 5):
        assert ranks["dylora"][rank] > ranks["svd"][rank] > ranks["lora"][rank]
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
