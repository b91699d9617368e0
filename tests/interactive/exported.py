"""The models of docs/interactive as layers of lora_np, from the numbers that the page has."""

import json
from pathlib import Path

import numpy as np

from lora_np import DenseLayer, DyLoRAAdapter, MultiLoRAAdapter, relu

FOLDER = Path(__file__).parents[2] / "docs" / "interactive"
DATA = json.loads((FOLDER / "data.js").read_text(encoding="utf-8").splitlines()[2])


def digits(encoded):
    """Images and labels."""
    letters = np.array([[ord(letter) - ord("a") for letter in image] for image in encoded["images"]])
    return letters.reshape(-1, 8, 8) / 16, np.array(encoded["labels"])


IMAGES, LABELS = digits(DATA["heldOut"])
VIEWS = {
    "upright": IMAGES,
    "rotated": np.rot90(IMAGES, axes=(1, 2)),
    "mirrored": IMAGES[:, :, ::-1],
    "upside down": IMAGES[:, ::-1],
    "rotated and inverted": 1 - np.rot90(IMAGES, axes=(1, 2)),
}
TASKS = list(DATA["multilora"]["tasks"])
MAX_RANK = len(DATA["dylora"]["B"])


def dense(values):
    W, b = np.array(values["W"]), np.array(values["b"])
    layer = DenseLayer(*W.shape)
    layer.load_weights({"weight": W, "bias": b}, strict=True)
    return layer


def fill(layer, path, factors):
    for factor in "AB":
        assert layer.set_parameter(f"{path}.matrix_{factor.lower()}", np.array(factors[factor]))


def adapter(factors):
    """The hidden layer with the factors of a DyLoRA, or of a LoRA that is truncated to its first components."""
    layer = DyLoRAAdapter(dense(DATA["hidden"]), MAX_RANK, range(1, MAX_RANK + 1), factors["alpha"])
    fill(layer, "lora", factors)
    return layer


def by_values(factors):
    """The same adapter with the components of its singular value decomposition."""
    U, values, Vt = np.linalg.svd(np.array(factors["A"]) @ np.array(factors["B"]), full_matrices=False)
    return {"A": (U * values)[:, :MAX_RANK], "B": Vt[:MAX_RANK], "alpha": factors["alpha"]}


def multilora():
    alpha, tasks = DATA["multilora"]["alpha"], DATA["multilora"]["tasks"]
    layer = None
    for task, factors in tasks.items():
        rank = len(factors["B"])
        if layer is None:
            layer = MultiLoRAAdapter(dense(DATA["hidden"]), task, rank, alpha)
        else:
            layer.add_task(task, rank, alpha)
        fill(layer, f"tasks.{task}", factors)
    return layer


def logits(hidden):
    return dense(DATA["output"]).predict(relu(hidden))


def at_rank(images, rank, factors=DATA["dylora"]):
    """The logits of the first components of an adapter; rank 0 is the base alone."""
    layer, x = adapter(factors), images.reshape(-1, 64)
    if rank == 0:
        return logits(layer.base_layer.predict(x))
    layer.set_deployment_rank(rank)
    return logits(layer.predict(x))


def of_task(images, task):
    """The logits of the MultiLoRA; upright is the base alone."""
    return logits(multilora().predict(images.reshape(-1, 64), tasks=[None if task == "upright" else task] * len(images)))


def accuracy(values):
    return float((values.argmax(axis=-1) == LABELS).mean())


def probabilities(values):
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
