"""The plain adapter: LoRA with numbers worked by hand."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lora_np import ArgumentError, DenseLayer, Sequential, StandardLoRAAdapter, relu, tanh
from tests.kinds import BASES, randomised

X = np.array([[1, 2, 3], [4, 5, 6]])
G = np.array([[1, 1], [2, 0]])


@pytest.fixture
def worked(base_class, frozen):
    base = base_class(3, 2)
    base.set_parameter("weight", base.in_layout(np.array([[1, 0], [0, 1], [0, 0]])))
    base.set_parameter("bias", [1, -1])
    adapter = StandardLoRAAdapter(base, 1, alpha=3, freeze_base_layer=frozen)
    adapter.set_parameter("lora.matrix_a", [[1], [0], [2]])
    adapter.set_parameter("lora.matrix_b", [[1, -1]])
    return adapter


def test_an_example_worked_by_hand(worked):
    # x A = 7, 16; s x A B = 21 and 48 of either sign; base = (2, 1), (5, 4)
    assert_array_equal(worked.forward(X), [[23, -20], [53, -44]])
    # dh = 3 G Bᵀ = 0, 6; its dx = 0, 6 (1, 0, 2); the base's dx = G Wᵀ
    assert_array_equal(worked.backward(G), [[1, 1, 0], [8, 0, 12]])
    assert_array_equal(worked.gradients["lora.matrix_a"], [[24], [30], [36]])
    assert_array_equal(worked.gradients["lora.matrix_b"], [[117, 21]])
    assert_array_equal(worked.merge_to_original_layer().matrix, [[4, -3], [0, 1], [6, -6]])


def test_the_base_of_the_example(worked, frozen):
    worked.forward(X)
    worked.backward(G)
    if frozen:
        assert set(worked.gradients) == {"lora.matrix_a", "lora.matrix_b"}
    else:
        layout = worked.base_layer.in_layout
        assert_array_equal(layout(worked.gradients["base.weight"]), [[9, 1], [12, 2], [15, 3]])
        assert_array_equal(worked.gradients["base.bias"], [3, 1])


def test_a_step_of_the_example(worked):
    worked.forward(X)
    worked.backward(G)
    worked.update_parameters(0.5)
    assert_array_equal(worked.lora_layer.matrix_a, [[-11], [-15], [-16]])
    assert_array_equal(worked.lora_layer.matrix_b, [[-57.5, -11.5]])


@pytest.mark.parametrize(("scaling", "s"), [("max", 1.5), ("paper", 1.5), ("rslora", 1.5 * 2**0.5)])
def test_scaling_rules(scaling, s):
    adapter = StandardLoRAAdapter(DenseLayer(4, 3), 2, 3.0, scaling=scaling)
    assert adapter.lora_layer.scaling == pytest.approx(s, rel=1e-15)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ArgumentError, match=r"^scaling must be one of 'max', 'paper', 'rslora', got 'best'"):
        StandardLoRAAdapter(DenseLayer(4, 3), 2, scaling="best")


def test_the_sum_is_taken_after_the_activation_of_the_base():
    adapter = randomised(StandardLoRAAdapter(DenseLayer(3, 2, relu), 1))
    expected = adapter.base_layer.predict(X) + adapter.lora_layer.predict(X)
    assert_array_equal(adapter.predict(X), expected)


def test_any_layer_can_be_the_base():
    stack = Sequential([DenseLayer(3, 4, relu, rng=0), DenseLayer(4, 2, rng=1)])
    adapter = StandardLoRAAdapter(stack, 2, freeze_base_layer=False, rng=0)
    assert list(adapter.named_parameters()) == [
        "base.0.weight",
        "base.0.bias",
        "base.1.weight",
        "base.1.bias",
        "lora.matrix_a",
        "lora.matrix_b",
    ]
    assert_array_equal(adapter.predict(X), stack.predict(X))


def test_adapters_of_one_base_share_it(x):
    base = BASES["dense"](5, 3, rng=0)
    first, second = (StandardLoRAAdapter(base, 1, freeze_base_layer=False, rng=seed) for seed in (0, 1))
    first.forward(x)
    first.backward(np.ones((4, 3)))
    first.update_parameters(0.1)
    assert_array_equal(second.predict(x), base.predict(x))


def test_memory_counts_each_array_once():
    # float64: x 3, h 1, sum 2
    assert StandardLoRAAdapter(DenseLayer(3, 2), 1).estimate_activation_memory() == 8 * (3 + 1 + 2)
    # and of an activation what it was applied to, 2
    assert StandardLoRAAdapter(DenseLayer(3, 2, tanh), 1).estimate_activation_memory() == 8 * (3 + 2 + 1 + 2)
