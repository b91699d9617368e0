"""One test image of each digit, and how the models classify it."""

from dataclasses import dataclass

import numpy as np

from .._typing import Array
from ..layers import Layer
from .digits import Digits, Rows, shifted, upright
from .settings import Settings


@dataclass(frozen=True)
class Samples:
    """One test image of each digit, upright and shifted."""

    labels: Array
    upright: Array
    """Images, shape (digits, height, width)."""
    shifted: Array
    """Images, shape (digits, height, width)."""
    predictions: tuple[tuple[str, bool, Array], ...]
    """The name of a model, whether its inputs are shifted, and the labels that it predicts."""


def sample(base: Layer, dylora: Layer, digits: Digits, settings: Settings) -> Samples:
    """The first test image of each digit, classified by the base, and by DyLoRA at every rank."""
    plain, moved = digits.testing(upright), digits.testing(shifted)
    _, first = np.unique(plain.labels, return_index=True)
    height = int(np.sqrt(plain.inputs.shape[-1]))

    def predicted(model: Layer, rows: Rows, rank: int | None = None) -> Array:
        return model.predict(rows.inputs[first], rank=rank).argmax(axis=-1)

    predictions = [("base", False, predicted(base, plain)), ("base", True, predicted(base, moved))]
    predictions += [(f"DyLoRA, rank {rank}", True, predicted(dylora, moved, rank)) for rank in settings.ranks]
    images = [rows.inputs[first].reshape(-1, height, height) for rows in (plain, moved)]
    return Samples(plain.labels[first], images[0], images[1], tuple(predictions))
