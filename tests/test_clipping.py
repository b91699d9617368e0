"""Clipping by the global norm."""

import numpy as np
import pytest

from lora_np.training.clipping import clipped

GRADIENTS = {"a": np.array([2.0, -1.0]), "b": np.array([[-4.0], [2.0]]), "empty": np.empty((0, 3))}
"""Of norm 5."""


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize(("limit", "factor"), [(2.5, 0.5), (0.05, 0.01), (5.0, 1.0), (7.0, 1.0), (0.0, 0.0)])
def test_the_norm_of_all_arrays_together_is_at_most_the_limit(limit, factor, scale):
    gradients = {name: scale * gradient for name, gradient in GRADIENTS.items()}
    found = clipped(gradients, scale * limit)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[name], factor * gradient, rtol=1e-14)


def test_zero_gradients_stay_zero():
    assert not clipped({"a": np.zeros(3)}, 1.0)["a"].any()
