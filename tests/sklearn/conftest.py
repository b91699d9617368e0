"""Data and bases for the tests of the estimators."""

import os

import numpy as np
import pytest

from lora_np import Adam, DenseLayer, Sequential, SoftmaxCrossEntropy, fit, relu

# Without this, scikit-learn skips its checks of array API inputs; SciPy reads it only once.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

CENTRES = np.array([[3.0, 0.0, 1.0, 0.0], [-3.0, 1.0, 0.0, 2.0], [0.0, -3.0, -1.0, 1.0]])


def blobs(rows=90, seed=0):
    """Points around three centres, and the index of each one's centre."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    return CENTRES[labels] + 0.5 * random.standard_normal((rows, 4)), labels


def network(outputs=3, **keywords):
    """An untrained base for the blobs."""
    return Sequential([DenseLayer(4, 6, relu, rng=0, **keywords), DenseLayer(6, outputs, rng=1, **keywords)])


@pytest.fixture(scope="session")
def base():
    """A base trained on the blobs."""
    model = network()
    fit(model, blobs(), SoftmaxCrossEntropy(), Adam(0.03), 10, 16, rng=0)
    return model
