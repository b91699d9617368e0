"""`Composite`: what a model of tokens keeps for its backward pass, and how far back it goes."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lora_np import ArgumentError, DenseLayer, Embedding, Run, Sequential, tanh
from lora_np.layers.composite import Composite
from tests.kinds import batch, bits, randomised

NAMES = ("table", "low", "high")


class Tokens(Composite):
    """Layers one after another, whose input has no gradient."""

    gives_input_gradient = False

    def __init__(self, layers, frozen=()):
        super().__init__(layers, 5, 2, np.float64, frozen)

    def flow(self, x, run, call):
        for name in NAMES:
            x = call(name, x)
        return x, None

    def flow_vjp(self, dy, cache, back):
        for name in reversed(NAMES):
            dy = back(name, dy)
        return dy


@pytest.fixture
def layers():
    layers = {"table": Embedding(5, 3, rng=0), "low": DenseLayer(3, 3, tanh, rng=1), "high": DenseLayer(3, 2, rng=2)}
    return {name: randomised(layer, seed) for seed, (name, layer) in enumerate(layers.items())}


@pytest.mark.parametrize("trained", [(), ("table",), ("low",), ("high",), ("table", "high"), ("low", "high")], ids=str)
def test_nothing_is_kept_below_the_lowest_layer_that_trains(layers, trained):
    frozen = [name for name in NAMES if name not in trained]
    tokens, plain, x, dy = Tokens(layers, frozen), Sequential(layers, frozen=frozen), np.array([0, 3, 3]), batch(3, 2)
    y, cache = tokens.apply(x, Run())
    dx, gradients = tokens.vjp(dy, cache)
    expected, kept = plain.apply(x, Run())
    assert_array_equal(y, expected)
    assert dx is None
    assert bits(gradients) == bits(plain.vjp(dy, kept, inputs=False)[1])
    lowest = NAMES.index(trained[0]) if trained else len(NAMES)
    assert list(cache.children) == list(NAMES[lowest:])
    assert list(kept.children) == list(NAMES)


def test_inference_keeps_nothing(layers):
    assert Tokens(layers).apply(np.array([1]), Run(keep=False))[1].children == {}


def test_replaced_layers_are_known_and_of_the_same_sizes(layers):
    tokens, other = Tokens(layers, ["table"]), randomised(DenseLayer(3, 3), 5)
    twin = tokens.with_children({"low": other})
    assert twin.children() == layers | {"low": other}
    assert tokens.children() == layers
    assert twin.frozen == {"table"}
    for changed in ({"lower": other}, {3: other}, {"high": other}, [other], ["low"], None):
        with pytest.raises(ArgumentError):
            tokens.with_children(changed)
    assert tokens.estimate_flops() == sum(layer.estimate_flops() for layer in layers.values())
