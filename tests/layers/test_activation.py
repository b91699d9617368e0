"""An activation as a separate layer."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lora_np import Activation, ActivationLayer, ArgumentError, NotSupportedError, relu, sigmoid, softmax
from lora_np.functions.activations import ACTIVATIONS
from lora_np.testing import check_gradients
from tests.kinds import batch


def test_an_example_worked_by_hand():
    layer = ActivationLayer(3, relu)
    assert_array_equal(layer.forward([[1, -2, 3], [-4, 5, -6]]), [[1, 0, 3], [0, 5, 0]])
    assert_array_equal(layer.backward([[7, 8, 9], [1, 2, 3]]), [[7, 0, 9], [0, 2, 0]])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_trap_8_the_derivative_is_taken_at_the_input(activation):
    layer = ActivationLayer(4, activation)
    errors = check_gradients(layer, batch(5, 4), method="complex", rtol=1e-9 if activation.name == "gelu_exact" else 1e-10)
    assert set(errors) == {"input"}


def test_there_is_nothing_to_train():
    layer = ActivationLayer(3, relu)
    assert layer.parameter_count == 0
    assert not layer.supports_training
    assert layer.get_parameters().shape == layer.get_parameter_gradients().shape == (0,)
    assert layer.get_weights() is layer.get_biases() is None
    layer.update_parameters(0.1)


def test_softmax_rows_sum_to_one():
    np.testing.assert_allclose(ActivationLayer(4, softmax).predict(batch(2, 3, 4)).sum(axis=-1), np.ones((2, 3)))


def test_an_activation_may_return_its_argument():
    straight_through = Activation("straight_through", lambda z: z, lambda dy, z: dy * (np.abs(z.real) < 1))
    layer = ActivationLayer(2, straight_through)
    layer.forward([0.5, 5])[...] = 0
    assert_array_equal(layer.backward([1, 1]), [1, 0])


@pytest.mark.parametrize("activation", ["relu", None, np.tanh, 3], ids=repr)
def test_a_value_that_is_not_an_activation_is_refused(activation):
    with pytest.raises(ArgumentError, match=r"^activation must be an Activation"):
        ActivationLayer(3, activation)


@pytest.mark.parametrize("size", [0, -1, 1.5, None, True], ids=repr)
def test_a_bad_size_is_refused(size):
    with pytest.raises(ArgumentError, match=f"size.*{size}"):
        ActivationLayer(size, relu)


def test_description():
    layer = ActivationLayer(3, sigmoid)
    assert layer.estimate_flops() == 3 * sigmoid.operations
    assert layer.estimate_activation_memory() == 8 * 6
    assert layer.get_activation_types() == ("sigmoid",)
    assert "function=sigmoid" in repr(layer)


def test_a_custom_activation_cannot_be_saved(tmp_path):
    layer = ActivationLayer(3, Activation("cube", lambda z: z**3, lambda dy, z: 3 * z * z * dy))
    check_gradients(layer, batch(2, 3))
    with pytest.raises(NotSupportedError, match="'cube'"):
        layer.serialize(tmp_path / "layer.npz")
    assert not list(tmp_path.iterdir())
