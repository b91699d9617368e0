"""Refused calls, one for each rule that only odd arguments meet; `tests/fuzz/calls.py` tries many more."""

import dataclasses

import numpy as np
import pytest

from lora_np import ArgumentError, DenseLayer, Draw, DyLoRAAdapter, MultiLoRAAdapter, apply_lora, load_layer, save_layer
from tests.kinds import batch, snapshot


def multilora():
    adapter = MultiLoRAAdapter(DenseLayer(5, 3, rng=0), "a", 1, rng=0)
    adapter.add_task("b", 2)
    return adapter


def dylora():
    return DyLoRAAdapter(DenseLayer(5, 3, rng=0), 2, [1, 2], rng=0)


REFUSED = {
    "save to a number": (multilora, lambda layer: save_layer(layer, 3), "file must be a path or a binary stream, got 3"),
    "load from a list": (multilora, lambda layer: load_layer([]), r"file must be a path or a binary stream, got \[\]"),
    "a rank of unequal parts": (
        dylora,
        lambda layer: layer.predict(batch(2, 5), rank=[[1], [1, 2]]),
        "rank must be an integer",
    ),
    "tasks on a draw": (dylora, lambda layer: layer.forward(batch(2, 5), tasks=["x", "y"]), "tasks must be None"),
    "a mapping to numbers": (
        multilora,
        lambda layer: layer.load_weights({"w": np.ones(3)}, mapping=len),
        "mapping must return a name or None, got 1 for 'w'",
    ),
    "a mode without a truth value": (multilora, lambda layer: layer.train(np.ones(2)), "is_training must be True or False"),
    "targets without a length": (
        multilora,
        lambda layer: apply_lora(DenseLayer(5, 3, rng=0), DyLoRAAdapter, targets=np.array(1), max_rank=1, active_ranks=[1]),
        "targets must be a regular expression or a sequence of names",
    ),
}


@pytest.mark.parametrize(("build", "call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_call_names_the_argument_and_changes_nothing(build, call, message):
    layer = build()
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=rf"\A{message}"):
        call(layer)
    assert snapshot(layer) == before


def test_the_current_task_is_read_again_if_it_is_gone():
    class Vanishing(dict):
        """Tasks of which the first one looked up is being removed."""

        def get(self, name, default=None):
            adapter._current_task = "b"
            return None if name == "a" else super().get(name, default)

    adapter = multilora()
    adapter._tasks = Vanishing(adapter._tasks)
    assert adapter.lora_layer is adapter._tasks["b"]


def test_the_children_of_many_tasks_are_a_mapping():
    children = multilora().children()
    assert list(children) == ["base", "tasks.a", "tasks.b"]
    assert [type(layer).__name__ for layer in children.values()] == ["DenseLayer", "LoRALayer", "LoRALayer"]
    assert len(children) == 3
    with pytest.raises(KeyError, match="lora"):
        children["lora"]


def test_a_draw_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Draw(0.5).quantile = 0.25
