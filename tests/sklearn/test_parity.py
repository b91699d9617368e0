"""The table in docs/scikit-learn.md names everything that MLPClassifier has."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

from lora_np.sklearn import LoRAClassifier

from .conftest import blobs

PAGE = (Path(__file__).parents[2] / "docs" / "scikit-learn.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.*) \| (.*) \|$", PAGE[PAGE.index("| `MLPClassifier` |") :].split("\n\n")[0], re.MULTILINE)
NAMES = {name for theirs, _ in ROWS for name in re.findall(r"`(\w+)", theirs)}
SAME = [name for theirs, ours in ROWS if ours.startswith("the same") for name in re.findall(r"`(\w+)", theirs)]


def test_every_parameter_is_there():
    assert set(inspect.signature(MLPClassifier).parameters) <= NAMES


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_attribute_is_there():
    fitted = MLPClassifier(max_iter=2, early_stopping=True).fit(*blobs())
    assert {name for name in vars(fitted) if name.endswith("_") and not name.startswith("_")} <= NAMES


def test_what_is_the_same_is_there():
    X, y = blobs()
    fitted = LoRAClassifier(epochs=1, base_epochs=1).fit(X, y)
    assert len(SAME) > 20
    for name in SAME:
        assert name in fitted.get_params() or hasattr(fitted, name)
        assert hasattr(MLPClassifier(max_iter=1), name) or name.endswith("_")
    np.testing.assert_array_equal(fitted.classes_, [0, 1, 2])
