"""A small program as a user would write it, with types. ``tests/test_typing.py`` checks it and runs it."""

import io
from typing import Any, assert_type

import numpy as np

import lora_np
from lora_np import (
    Adam,
    DenseLayer,
    DyLoRAAdapter,
    Layer,
    MeanSquaredError,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    fit,
    merge_in_place,
    relu,
)
from lora_np.io import load_layer, save_layer
from lora_np.training import History, Progress

Array = np.ndarray[Any, np.dtype[Any]]


def report(progress: Progress) -> None:
    print(f"epoch {progress.epoch}")


def trained(model: Layer, x: Array, y: Array) -> History:
    return fit(model, (x, y), MeanSquaredError(), Adam(0.01), epochs=2, batch_size=8, rng=0, callbacks=[report])


def main() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4)), rng.normal(size=(16, 2))
    base = [DenseLayer(4, 8, relu, rng=0), DenseLayer(8, 2, rng=1)]
    model: Sequential = apply_lora(Sequential(base), DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], targets=["0"], rng=2)
    model = apply_lora(model, lambda layer: StandardLoRAAdapter(layer, rank=2, rng=3), targets=["1"])
    assert_type(apply_lora(base[1], StandardLoRAAdapter, rank=2), Layer)

    history = trained(model, x, y)
    assert_type(history.epoch_losses, list[float])
    before = model.predict(x)
    assert_type(before, Array)

    model.forward(x)
    assert_type(model.backward(before - y), Array)
    model.update_parameters(0.01)

    assert_type(merge_in_place(model), int)
    stream = io.BytesIO()
    save_layer(model, stream)
    stream.seek(0)
    loaded = load_layer(stream)
    assert_type(loaded, Layer)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))

    layer = lora_np.LoRALayer(4, 8, 2, rng=0)
    assert_type(lora_np.surgery.truncate(layer, rank=1), lora_np.LoRALayer)
    assert_type(lora_np.testing.gradient_errors(layer, np.ones((2, 4)), rng=0), dict[str, float])


if __name__ == "__main__":
    main()
