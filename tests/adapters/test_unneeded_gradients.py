"""The gradient of the input costs a product in each layer: it is not computed where it is not asked for."""

import functools

import pytest


@pytest.fixture
def asked(adapter, monkeypatch):
    """For each call of a `vjp` in the adapter: the kind of layer, and whether the gradient of its input is asked for."""
    calls = []

    def recorded(kind, vjp):
        @functools.wraps(vjp)
        def call(*arguments, inputs=True, **choices):
            calls.append((kind.__name__, inputs))
            return vjp(*arguments, inputs=inputs, **choices)

        return call

    for kind in {type(layer) for layer in adapter.walk().values()}:
        monkeypatch.setattr(kind, "vjp", recorded(kind, kind.vjp))
    return calls


@pytest.mark.parametrize("wanted", [True, False])
def test_no_part_of_an_adapter_is_asked_for_a_gradient_that_is_not_wanted(adapter, x, dy, asked, wanted):
    adapter.forward(x)
    dx = adapter.backward(dy, need_input_grad=wanted)
    assert (dx is not None) == wanted
    assert asked
    assert {inputs for _, inputs in asked} == {wanted}
