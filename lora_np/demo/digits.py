"""The data: handwritten digits, split for training and testing, in several views."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from .._typing import Array
from ..data import load_digits
from .settings import Settings, Stream

View: TypeAlias = Callable[[Array], Array]
"""Maps images to transformed images, both of shape (rows, height, width)."""


def upright(images: Array) -> Array:
    """The original images, on which the base is trained."""
    return images


def rotated(images: Array) -> Array:
    """A quarter turn counterclockwise."""
    return np.rot90(images, axes=(1, 2))


def inverted(images: Array) -> Array:
    """Dark digits on a bright background."""
    return 1 - images


def mirrored(images: Array) -> Array:
    """Left and right swapped."""
    return images[:, :, ::-1]


def shifted(images: Array) -> Array:
    """Rotated and inverted: every pixel changes its meaning, which is more than a rank-1 update can correct."""
    return inverted(rotated(images))


VIEWS: Mapping[str, View] = {"rotated": rotated, "inverted": inverted, "mirrored": mirrored}
"""The tasks that share one base."""


class Rows(NamedTuple):
    """Flattened images, shape (rows, pixels), and their labels."""

    inputs: Array
    labels: Array


class Digits:
    """The digits, randomly split into training and test images."""

    def __init__(self, settings: Settings) -> None:
        self._images, self._labels = load_digits()
        order = settings.generator(Stream.SPLIT).permutation(len(self._images))
        self._test, self._train = np.split(order, [settings.test_rows])

    def training(self, view: View) -> Rows:
        """The training images in a view."""
        return self._rows(self._train, view)

    def testing(self, view: View) -> Rows:
        """The test images in a view."""
        return self._rows(self._test, view)

    def _rows(self, indices: Array, view: View) -> Rows:
        return Rows(view(self._images[indices]).reshape(len(indices), -1), self._labels[indices])
