"""The gradient of the input costs a product in each layer: it is not computed where it is not asked for."""

import functools

import pytest

from lora_np import DenseLayer, DoRAAdapter, StandardLoRAAdapter, VeRAAdapter
from tests.kinds import IN, OUT, RANK, randomised


def recorded(layer, monkeypatch):
    """For each call of a `vjp` in the layer: whether the gradient of the input is asked for, and whether it is given."""
    calls = []

    def recording(vjp):
        @functools.wraps(vjp)
        def call(*arguments, inputs=True, **choices):
            dx, gradients = vjp(*arguments, inputs=inputs, **choices)
            calls.append((inputs, dx is not None))
            return dx, gradients

        return call

    for kind in {type(inner) for inner in layer.walk().values()}:
        monkeypatch.setattr(kind, "vjp", recording(kind.vjp))
    return calls


@pytest.mark.parametrize("wanted", [True, False])
def test_no_part_of_an_adapter_is_asked_for_a_gradient_that_is_not_wanted(adapter, x, dy, monkeypatch, wanted):
    calls = recorded(adapter, monkeypatch)
    adapter.forward(x)
    dx = adapter.backward(dy, need_input_grad=wanted)
    assert (dx is not None) == wanted
    assert len(calls) >= 2
    assert set(calls) == {(wanted, wanted)}


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("kind", [StandardLoRAAdapter, DoRAAdapter, VeRAAdapter])
def test_nor_is_it_with_dropout(kind, frozen, x, dy, monkeypatch, wanted):
    layer = randomised(kind(DenseLayer(IN, OUT), RANK, freeze_base_layer=frozen, dropout=0.5, rng=0))
    calls = recorded(layer, monkeypatch)
    layer.forward(x)
    layer.backward(dy, need_input_grad=wanted)
    assert set(calls) == {(wanted, wanted)}
