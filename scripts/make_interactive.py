#!/usr/bin/env python
"""Train the small models of docs/interactive on the digits, and write their weights and some digits to data.js.

Run ``python scripts/make_interactive.py``; it takes a few seconds and requires only NumPy.
"""

import json
from pathlib import Path

import numpy as np

from lora_np import (
    Adam,
    DenseLayer,
    DyLoRAAdapter,
    MultiLoRAAdapter,
    Sequential,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    apply_lora,
    fit,
    relu,
    select_task,
)
from lora_np.data import load_digits
from lora_np.functions.initializers import he_uniform
from lora_np.training import LinearDecay

FILE = Path(__file__).parents[1] / "docs" / "interactive" / "data.js"

HIDDEN, MAX_RANK, TASK_RANK, HELD_OUT, IN_BROWSER, SEED = 32, 8, 4, 300, 500, 0
RANKS = list(range(1, MAX_RANK + 1))
VIEWS = {
    "upright": lambda images: images,
    "rotated": lambda images: np.rot90(images, axes=(1, 2)),
    "mirrored": lambda images: images[:, :, ::-1],
    "upside down": lambda images: images[:, ::-1],
}
DYLORA_VIEW = "rotated and inverted"


def shifted(images):
    """The images on which DyLoRA is trained: every pixel changes its meaning."""
    return 1 - VIEWS["rotated"](images)


def train(model, images, labels, epochs, rate, rng):
    """Train with Adam, the learning rate falling linearly to zero."""
    rows = images.reshape(len(images), -1)
    fit(model, (rows, labels), SoftmaxCrossEntropy(), Adam(rate), epochs, 16, rng=rng, schedule=LinearDecay())


def accuracy(model, images, labels):
    return float((model.predict(images.reshape(len(images), -1)).argmax(axis=-1) == labels).mean())


def short(array):
    """Nested lists with four significant digits, exactly the weights that the page uses."""
    return [short(row) for row in array] if array.ndim > 1 else [float(f"{value:.4g}") for value in array]


def factors(branch):
    return {"A": short(branch.matrix_a), "B": short(branch.matrix_b)}


def digits(images, labels):
    """Images and labels; the letters are a for 0, the background, to q for 16."""
    return {
        "images": ["".join(chr(97 + round(16 * v)) for v in image.ravel()) for image in images],
        "labels": labels.tolist(),
    }


def main():
    images, labels = load_digits()
    rng = np.random.default_rng(SEED)
    held_out, trained = np.split(rng.permutation(len(images)), [HELD_OUT])
    x, t = images[trained], labels[trained]

    base = Sequential(
        {
            "hidden": DenseLayer(64, HIDDEN, relu, initializer=he_uniform, rng=rng),
            "output": DenseLayer(HIDDEN, 10, rng=rng),
        }
    )
    train(base, x, t, 40, 0.003, rng)

    dylora = apply_lora(base, lambda layer: DyLoRAAdapter(layer, MAX_RANK, RANKS, rng=rng), targets=["hidden"])
    train(dylora, shifted(x), t, 80, 0.02, rng)

    tasks = [view for view in VIEWS if view != "upright"]

    def with_tasks(layer):
        adapter = MultiLoRAAdapter(layer, tasks[0], TASK_RANK, rng=rng)
        for task in tasks[1:]:
            adapter.add_task(task, TASK_RANK)
        return adapter

    multilora = apply_lora(base, with_tasks, targets=["hidden"])
    for task in tasks:
        select_task(multilora, task)
        train(multilora, VIEWS[task](x), t, 60, 0.005, rng)

    # With a separate generator, so that the models above do not depend on this one.
    lora = apply_lora(base, lambda layer: StandardLoRAAdapter(layer, MAX_RANK, rng=SEED), targets=["hidden"])
    train(lora, shifted(x), t, 80, 0.02, np.random.default_rng(SEED))

    data = {
        "source": "Digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0; some of its test set, "
        "a letter for each pixel: those in heldOut are held out from training; those in training are some of the others.",
        "made": "python scripts/make_interactive.py",
        "hidden": {"W": short(base["hidden"].matrix), "b": short(base["hidden"].bias), "activation": "relu"},
        "output": {"W": short(base["output"].matrix), "b": short(base["output"].bias)},
        "dylora": {"view": DYLORA_VIEW, "alpha": MAX_RANK, **factors(dylora["hidden"].lora_layer)},
        "lora": {"alpha": MAX_RANK, **factors(lora["hidden"].lora_layer)},
        "multilora": {
            "alpha": TASK_RANK,
            "tasks": {task: factors(branch) for task, branch in multilora["hidden"].task_adapters.items()},
        },
        "heldOut": digits(images[held_out], labels[held_out]),
        "training": digits(x[:IN_BROWSER], t[:IN_BROWSER]),
    }
    text = json.dumps(data, separators=(",", ":"))
    FILE.write_text(f'"use strict";\nconst DATA =\n{text}\n;\nif (typeof module !== "undefined") module.exports = DATA;\n')
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")

    x, t = images[held_out], labels[held_out]
    print(f"base: {accuracy(base, x, t):.3f} upright, {accuracy(base, shifted(x), t):.3f} {DYLORA_VIEW}")
    for rank in RANKS:
        dylora["hidden"].set_deployment_rank(rank)
        print(f"DyLoRA, rank {rank}: {accuracy(dylora, shifted(x), t):.3f}")
    for task in tasks:
        select_task(multilora, task)
        print(f"MultiLoRA, {task}: {accuracy(multilora, VIEWS[task](x), t):.3f} ({accuracy(base, VIEWS[task](x), t):.3f})")


if __name__ == "__main__":
    main()
