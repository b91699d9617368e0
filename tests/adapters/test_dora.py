"""DoRA: magnitude and direction, with and without the gradient of the norm."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    ActivationLayer,
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    LoRALayer,
    Sequential,
    StandardLoRAAdapter,
    relu,
    tanh,
)
from lora_np.testing import check_gradients, gradient_errors, numerical_gradient
from tests.kinds import IN, OUT, RANK, batch, randomised


@pytest.fixture
def worked(base_class, frozen):
    """V = W + A B = [[3, 0, 5], [4, 2, 12]] has the norms 5, 2 and 13; with m = 2 n, every c is 2."""
    base = base_class(2, 3)
    base.set_parameter("weight", base.in_layout(np.array([[2, 1, 3], [4, 2, 12]])))
    base.set_parameter("bias", [1, 0, -1])
    adapter = DoRAAdapter(base, 1, alpha=1, freeze_base_layer=frozen)
    adapter.set_parameter("lora.matrix_a", [[1], [0]])
    adapter.set_parameter("lora.matrix_b", [[1, -1, 2]])
    adapter.set_parameter("magnitude", [10, 4, 26])
    return adapter


def test_an_example_worked_by_hand(worked):
    # u = x V = (7, 2, 17)
    assert_array_equal(worked.forward([1, 1]), [15, 4, 33])
    # du = c G = (50, 2, 0); dc = G u = (175, 2, 0); through the norm, columns of V times -14, -1 and 0
    assert_array_equal(worked.backward([25, 1, 0]), [150, 204])
    assert_array_equal(worked.gradients["magnitude"], [35, 1, 0])
    assert_array_equal(worked.gradients["lora.matrix_a"], [[6], [-6]])
    assert_array_equal(worked.gradients["lora.matrix_b"], [[8, 2, 0]])
    assert_array_equal(worked.merge_to_original_layer().matrix, [[6, 0, 10], [8, 4, 24]])


def test_the_example_with_a_constant_norm(worked):
    worked.norm_gradient = False
    worked.forward([1, 1])
    assert_array_equal(worked.backward([25, 1, 0]), [150, 204])
    assert_array_equal(worked.gradients["magnitude"], [35, 1, 0])
    assert_array_equal(worked.gradients["lora.matrix_a"], [[48], [48]])
    assert_array_equal(worked.gradients["lora.matrix_b"], [[50, 2, 0]])


@pytest.mark.parametrize(("norm_gradient", "weight"), [(True, [[8, 2, 0], [-6, 0, 0]]), (False, [[50, 2, 0], [50, 2, 0]])])
@pytest.mark.parametrize("frozen", [False])
def test_the_base_of_the_example(worked, norm_gradient, weight):
    worked.norm_gradient = norm_gradient
    worked.forward([1, 1])
    worked.backward([25, 1, 0])
    assert_array_equal(worked.base_layer.in_layout(worked.gradients["base.weight"]), weight)
    assert_array_equal(worked.gradients["base.bias"], [25, 1, 0])


def test_the_initial_magnitude_is_the_norms_of_the_columns(base_class):
    base = base_class(2, 3)
    base.set_parameter("weight", base.in_layout(np.array([[3, 0, 5], [4, 2, 12]])))
    adapter = DoRAAdapter(base, 1)
    assert_array_equal(adapter.magnitude, [5, 2, 13])
    assert next(iter(adapter.named_parameters())) == "magnitude"


def test_the_magnitude_alone_determines_the_length_of_the_columns(base, frozen):
    adapter = randomised(DoRAAdapter(base, RANK, freeze_base_layer=frozen))
    columns = adapter.merge_to_original_layer().matrix
    assert_allclose(np.linalg.norm(columns, axis=0), np.abs(adapter.magnitude), rtol=1e-13)


def function_with_norm_of(adapter, norms):
    """The adapter's function of its arrays, the norms held at these values."""

    def function(x, magnitude, A, B, W, b):
        V = W + adapter.lora_layer.scaling * A @ B
        return x @ V * (magnitude / norms) + b

    return function


@pytest.mark.parametrize("argument", range(6), ids=["input", "magnitude", "A", "B", "W", "b"])
def test_without_norm_gradient_the_norm_is_treated_as_a_constant(base, argument):
    adapter = randomised(DoRAAdapter(base, RANK, 3.0, False, norm_gradient=False), seed=2)
    lora, x, dy = adapter.lora_layer, batch(4, IN), batch(4, OUT, seed=3)
    norms = np.linalg.norm(base.matrix + lora.merge_weights(), axis=0)
    function = function_with_norm_of(adapter, norms)
    values = [x, adapter.magnitude, lora.matrix_a, lora.matrix_b, base.matrix, base.bias]

    assert_allclose(adapter.forward(x), function(*values), rtol=1e-12)
    dx, g = adapter.backward(dy), adapter.gradients
    found = [
        dx,
        g["magnitude"],
        g["lora.matrix_a"],
        g["lora.matrix_b"],
        base.in_layout(g["base.weight"]),
        g["base.bias"],
    ][argument]
    expected = numerical_gradient(
        lambda value: (dy * function(*values[:argument], value, *values[argument + 1 :])).sum(), values[argument]
    )
    assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_the_norm_gradient_affects_only_the_direction(base):
    x = batch(4, IN)
    adapter = randomised(DoRAAdapter(base, RANK, 3.0, False, norm_gradient=False))
    errors = gradient_errors(adapter, x, method="complex")
    wrong = {name for name, error in errors.items() if error > 1e-3}
    assert wrong == {"base.weight", "lora.matrix_a", "lora.matrix_b"}
    adapter.norm_gradient = True
    check_gradients(adapter, x, method="complex", rtol=1e-10)


def test_gradients_of_the_direction_are_orthogonal_to_it(base):
    adapter = randomised(DoRAAdapter(base, RANK, freeze_base_layer=False))
    adapter.forward(batch(4, IN))
    adapter.backward(batch(4, OUT))
    V = base.matrix + adapter.lora_layer.merge_weights()
    along = (V * base.in_layout(adapter.gradients["base.weight"])).sum(axis=0)
    assert_allclose(along, 0, atol=1e-12)


def test_a_column_of_zeros_stays_zero_and_finite(base, x, dy):
    base.matrix[:, 1] = 0
    adapter = DoRAAdapter(base, RANK, freeze_base_layer=False, rng=0)
    y = adapter.forward(x)
    assert_array_equal(y[:, 1], np.full(4, base.bias[1]))
    assert np.isfinite(adapter.backward(dy)).all()
    assert all(np.isfinite(gradient).all() for gradient in adapter.gradients.values())
    adapter.update_parameters(0.1)
    assert adapter.magnitude[1] == 0
    assert not base.matrix[:, 1].any()
    assert not adapter.merge_to_original_layer().matrix[:, 1].any()


def test_a_tiny_column_is_not_treated_as_zero(base, x):
    base.weight *= 1e-120
    adapter = DoRAAdapter(base, RANK, rng=0)
    assert_allclose(adapter.predict(x), base.predict(x), rtol=1e-12, atol=0)


def test_one_input_has_no_direction_to_learn():
    adapter = randomised(DoRAAdapter(DenseLayer(1, 3), 1))
    adapter.forward(batch(4, 1))
    adapter.backward(batch(4, 3))
    assert_allclose(adapter.gradients["lora.matrix_a"], 0, atol=1e-13)
    assert np.abs(adapter.gradients["magnitude"]).min() > 1e-3


def test_rslora_scaling():
    assert DoRAAdapter(DenseLayer(4, 3), 2, 3.0, scaling="rslora").lora_layer.scaling == pytest.approx(3 / 2**0.5)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (DenseLayer(IN, OUT, relu), "activation relu"),
        (Sequential([DenseLayer(IN, OUT)]), "Sequential"),
        (ActivationLayer(IN, tanh), "ActivationLayer"),
        (LoRALayer(IN, OUT, 1), "LoRALayer"),
        (StandardLoRAAdapter(DenseLayer(IN, OUT), 1), "StandardLoRAAdapter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unsupported_base_is_refused(base, reason):
    with pytest.raises(ArgumentError, match=rf"^base_layer must be a linear DenseLayer.*{reason}"):
        DoRAAdapter(base, 1)


def test_diagnostics_show_the_norm_gradient():
    assert DoRAAdapter(DenseLayer(4, 3), 2).get_diagnostics()["dora.norm_gradient"] == "True"
    assert DoRAAdapter(DenseLayer(4, 3), 2, norm_gradient=False).get_diagnostics()["dora.norm_gradient"] == "False"


def test_a_base_without_a_bias_that_trains():
    base = DenseLayer(3, 2, bias=False, rng=0)
    adapter = randomised(DoRAAdapter(base, 1, freeze_base_layer=False, rng=1))
    check_gradients(adapter, np.arange(6.0).reshape(2, 3) - 2)
    assert "base.bias" not in adapter.named_parameters()
