"""Packing: the same results faster, and never a stale copy.

The limits are lowered, so that the small layers of the table are packed, on any processor.
"""

import copy
import io
import pickle
import threading

import numpy as np
import pytest

from lora_np import (
    SGD,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    FullyConnectedLayer,
    InvalidOperationError,
    LoRALayer,
    MeanSquaredError,
    Sequential,
    StandardLoRAAdapter,
    kernels,
    load_layer,
    save_layer,
    tanh,
)
from lora_np.kernels import panels, tiles
from lora_np.training import fit
from tests.kinds import BASES, LAYERS, batch, build, randomised


@pytest.fixture(autouse=True)
def lowered(monkeypatch):
    monkeypatch.setattr(tiles, "LIMIT", 40)
    monkeypatch.setattr(tiles, "TILE_ROWS", (3, 2))
    monkeypatch.setattr(panels, "PANEL_BYTES", 16)
    monkeypatch.setattr(panels, "SPLIT", 2)
    monkeypatch.setattr(panels, "WORTH_PACKING", 1)


def packed_layers(layer):
    own = {path: [getattr(inner, name) for name in inner.parameter_names] for path, inner in layer.walk().items()}
    return [path for path, arrays in own.items() if any(map(kernels.packed_bytes, arrays))]


def adapter(base=None, rank=2, seed=0):
    return randomised(StandardLoRAAdapter(DenseLayer(7, 5) if base is None else base, rank), seed)


@pytest.mark.parametrize("memory", ["lean", "fast", "max"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_layer_computes_the_same(name, memory):
    layer, packed = build(name).eval(), build(name).eval()
    assert packed.pack(memory) is packed
    x, dy = batch(9, layer.input_size), batch(9, layer.output_size, seed=2)
    np.testing.assert_allclose(packed.predict(x), layer.predict(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(packed.forward(x), layer.forward(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(packed.backward(dy), layer.backward(dy), rtol=1e-12, atol=1e-12)
    assert list(packed.gradients) == list(layer.gradients)
    for key, gradient in layer.gradients.items():
        np.testing.assert_allclose(packed.gradients[key], gradient, rtol=1e-11, atol=1e-11)


def test_only_weights_that_do_not_train_are_packed():
    assert packed_layers(DenseLayer(7, 5).pack()) == [""]
    assert packed_layers(FullyConnectedLayer(7, 5).pack("max")) == [""]
    assert packed_layers(DenseLayer(7, 5).pack("lean")) == []
    assert packed_layers(LoRALayer(7, 5, 2).pack("max")) == []
    assert packed_layers(adapter().pack()) == ["base"]
    assert packed_layers(StandardLoRAAdapter(DenseLayer(7, 5), 2, freeze_base_layer=False).pack()) == []
    model = Sequential(
        {
            "frozen": Sequential([DenseLayer(7, 7), DenseLayer(7, 7)]),
            "adapted": adapter(DenseLayer(7, 5)),
            "head": DenseLayer(5, 3),
        },
        frozen=["frozen"],
    )
    assert packed_layers(model.pack()) == ["frozen.0", "frozen.1", "adapted.base"]
    assert packed_layers(model.unpack()) == []


@pytest.mark.parametrize("kind", BASES)
def test_memory_is_estimated(kind):
    layer = adapter(BASES[kind](7, 5))
    frozen, trainable = (7 * 5 + 5) * 8, 2 * (7 + 5) * 8
    assert layer.estimate_memory() == {"trainable": trainable, "frozen": frozen, "packed": 0}
    assert layer.pack("fast").estimate_memory()["packed"] == 7 * 5 * 8
    assert layer.pack("max").estimate_memory()["packed"] == 2 * 7 * 5 * 8
    assert layer.pack("lean").estimate_memory()["packed"] == 0


def test_nothing_is_copied_where_packing_is_not_faster(monkeypatch):
    monkeypatch.setattr(tiles, "LIMIT", 0)
    assert adapter().pack("max").estimate_memory()["packed"] == 0
    monkeypatch.setattr(tiles, "LIMIT", 40)
    monkeypatch.setattr(panels, "WORTH_PACKING", 36)
    assert adapter().pack("max").estimate_memory()["packed"] == 0


def test_an_unknown_memory_setting_is_refused():
    with pytest.raises(ArgumentError, match=r"memory must be one of 'lean', 'fast', 'max', got 'big'"):
        adapter().pack("big")


# -------------------------------------------------------------------- every way of writing to a weight

W = batch(7, 5, seed=5)


def saved(layer):
    """A file with other values, of a layer of the same structure."""
    other = layer.clone()
    other.set_parameter("base.weight", W)
    stream = io.BytesIO()
    other.serialize(stream)
    stream.seek(0)
    return stream


WRITERS = {
    "set_parameter": lambda layer: layer.set_parameter("base.weight", W),
    "set_parameter of the base": lambda layer: layer.base_layer.set_parameter("weight", W),
    "set_parameters of the base": lambda layer: layer.base_layer.set_parameters(np.append(W, layer.base_layer.bias)),
    "update_parameters of the base": lambda layer: layer.base_layer.update_parameters(np.append(W, layer.base_layer.bias)),
    "load_weights": lambda layer: layer.load_weights({"base.weight": W}),
    "deserialize": lambda layer: layer.deserialize(saved(layer)),
    "another array": lambda layer: setattr(layer.base_layer, "weight", W.copy()),
}


@pytest.mark.parametrize("memory", ["fast", "max"])
@pytest.mark.parametrize("writer", WRITERS)
def test_no_write_leaves_a_stale_copy(writer, memory):
    layer = adapter().pack(memory)
    x, dy = batch(9, 7), batch(9, 5)
    layer.forward(x)
    WRITERS[writer](layer)
    expected = adapter()
    expected.set_parameter("base.weight", W)
    np.testing.assert_allclose(layer.predict(x), expected.predict(x), rtol=1e-12)
    layer.forward(x)
    expected.forward(x)
    np.testing.assert_allclose(layer.backward(dy), expected.backward(dy), rtol=1e-12)
    layer.base_layer.weight[0, 0] = 3.0  # unpacked, it can be written to
    assert packed_layers(layer.pack(memory)) == ["base"]


def test_a_refused_write_keeps_the_pack():
    layer = adapter().pack()
    for wrong in (np.ones((5, 7)), np.full((7, 5), "a")):
        with pytest.raises(ArgumentError):
            layer.set_parameter("base.weight", wrong)
    assert packed_layers(layer) == ["base"]


def test_writing_to_a_branch_keeps_the_pack_of_the_base():
    layer = adapter().pack()
    layer.set_parameters(np.ones(layer.parameter_count))
    layer.load_weights({"lora.matrix_b": np.ones((2, 5))})
    assert packed_layers(layer) == ["base"]


def test_a_stray_write_raises():
    layer = adapter().pack()
    with pytest.raises(ValueError, match="read-only"):
        layer.base_layer.weight += 1
    with pytest.raises(ValueError, match="read-only"):
        layer.named_parameters(frozen=True)["base.weight"][0] = 1


def test_a_packed_weight_cannot_train():
    layer = DenseLayer(7, 5).pack()
    before = layer.get_parameters()
    x = batch(9, 7)
    layer.forward(x)
    layer.backward(batch(9, 5))
    expected = r"weight of DenseLayer_\d+ is packed or memory-mapped and cannot train; call unpack\(\) first"
    with pytest.raises(InvalidOperationError, match=expected):
        layer.update_parameters(0.1)
    with pytest.raises(InvalidOperationError, match="unpack"):
        fit(layer, (x, batch(9, 5)), MeanSquaredError(), SGD(0.1), 1, 9)
    assert layer.get_parameters().tobytes() == before.tobytes()
    fit(layer.unpack(), (x, batch(9, 5)), MeanSquaredError(), SGD(0.1), 1, 9)
    assert layer.get_parameters().tobytes() != before.tobytes()


def test_a_step_that_meets_a_packed_weight_changes_nothing():
    model = Sequential([DenseLayer(7, 5), DenseLayer(5, 3)])
    model["1"].pack()
    model.forward(batch(9, 7))
    model.backward(batch(9, 3))
    before = model.get_parameters()
    for names in [list(model.gradients), list(model.gradients)[::-1]]:
        with pytest.raises(InvalidOperationError, match=r"weight of DenseLayer_\d+ is packed"):
            model.apply_updates({name: model.gradients[name] for name in names})
        assert model.get_parameters().tobytes() == before.tobytes()


def test_a_packed_adapter_trains_as_an_unpacked_one():
    plain, packed = adapter(), adapter().pack("max")
    data = batch(33, 7), batch(33, 5)
    for layer in (plain, packed):
        fit(layer, data, MeanSquaredError(), SGD(0.01), 3, 8, rng=0)
    np.testing.assert_allclose(packed.get_parameters(), plain.get_parameters(), rtol=1e-10)


def test_unfreezing_drops_the_packs():
    model = Sequential({"first": adapter(DenseLayer(7, 5)), "last": DenseLayer(5, 5)}, frozen=["first", "last"]).pack()
    assert packed_layers(model) == ["first.base", "last"]
    model.freeze("first")
    assert packed_layers(model) == ["first.base"]
    model.forward(batch(9, 7))
    model.backward(batch(9, 5))
    model.update_parameters(0.1)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), StandardLoRAAdapter.clone]
)
def test_copies_have_no_pack_and_can_be_written_to(copied):
    layer = adapter().pack("max")
    twin = copied(layer)
    assert packed_layers(twin) == []
    twin.base_layer.weight[...] = W
    assert packed_layers(layer) == ["base"]
    assert twin.predict(batch(9, 7)).tobytes() != layer.predict(batch(9, 7)).tobytes()


def test_a_saved_layer_has_no_pack(tmp_path):
    layer = adapter().pack("max")
    save_layer(layer, tmp_path / "layer.npz")
    assert packed_layers(load_layer(tmp_path / "layer.npz")) == []


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("write", [None, "set_parameter"])
def test_an_array_stays_that_of_its_layers(kind, write):
    base = BASES[kind](7, 5, tanh, rng=0)
    linear, _ = base.split_activation()
    weight, x = base.weight, batch(9, 7)
    expected = base.predict(x)
    for _ in range(2):
        linear.pack("max")
        base.pack()
        base.unpack()
        assert linear.weight is base.weight is weight
        np.testing.assert_allclose(base.predict(x), expected, rtol=1e-12)
        np.testing.assert_allclose(np.tanh(linear.predict(x)), expected, rtol=1e-12)
    linear.pack()
    if write:
        base.set_parameter("weight", np.zeros_like(weight))
    else:
        linear.unpack()
        weight[...] = 0
    for layer in (base, linear):
        assert layer.weight is weight
        np.testing.assert_array_equal(layer.unpack().forward(x), layer.activation(np.zeros((9, 5))))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("given", [True, False])
def test_arrays_in_one_memory_are_unpacked_in_any_order(order, given):
    memory = np.zeros((2, 7, 5))
    layers = [DenseLayer(7, 5), DenseLayer(7, 5)]
    for layer, part in zip(layers, memory, strict=True):
        layer.weight = part
    memory.flags.writeable = given
    for layer in [*layers, layers[0]]:
        layer.pack("max")
    for layer in [layers[number] for number in order]:
        assert not memory.flags.writeable  # the other one is packed
        weight = layer.weight
        assert layer.unpack().weight is weight
        weight[...] = 1
    assert memory.flags.writeable == given
    assert memory.all()


def test_an_array_of_which_another_layer_has_packed_a_part_becomes_a_copy():
    whole, part = DenseLayer(7, 5), DenseLayer(3, 5)
    memory, part.weight = whole.weight, whole.weight[2:5]
    whole.pack()
    part.pack()
    whole.unpack().weight[...] = 1
    assert not memory.flags.writeable
    assert not np.may_share_memory(whole.weight, memory)
    part.unpack().weight[...] = 1
    assert memory.flags.writeable


def test_an_array_that_could_not_be_written_to_is_left_as_it_was():
    layer = DenseLayer(7, 5)
    memory = layer.weight.copy()
    layer.weight = memory[...]
    layer.weight.flags.writeable = False
    protected = layer.weight
    layer.pack()
    assert not memory.flags.writeable
    layer.unpack()
    assert memory.flags.writeable
    assert not protected.flags.writeable
    assert layer.weight is not protected
    layer.weight[...] = 0
    assert memory.any()


@pytest.mark.parametrize("kind", BASES)
def test_a_packed_view_and_the_array_that_it_shows_are_read_only(kind):
    layer = BASES[kind](7, 5)
    memory = np.stack([layer.weight, layer.weight])
    layer.weight = memory[1]
    expected = layer.predict(batch(9, 7))
    assert packed_layers(layer.pack()) == [""]
    np.testing.assert_allclose(layer.predict(batch(9, 7)), expected, rtol=1e-12)
    for array in (memory, layer.weight):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert packed_layers(layer.unpack()) == []
    layer.weight[0] = 3
    assert (memory[1, 0] == 3).all()


def test_a_merge_of_a_packed_adapter_is_a_new_layer_without_a_pack():
    layer = adapter().pack("max")
    merged = layer.merge_to_original_layer()
    assert packed_layers(merged) == []
    np.testing.assert_allclose(merged.predict(batch(9, 7)), layer.predict(batch(9, 7)), rtol=1e-12)
    merged.weight[0] = 0


def test_packing_while_other_threads_predict():
    layer = randomised(DyLoRAAdapter(DenseLayer(7, 5, rng=0), 3, [1, 3], rng=0))
    x = batch(33, 7)
    expected = layer.predict(x)
    wrong, stop = [], threading.Event()

    def predict():
        while not stop.is_set():
            if not np.allclose(layer.predict(x), expected, rtol=1e-12, atol=1e-12):
                wrong.append(layer.predict(x))

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        layer.pack("max")
        layer.pack("fast")
        layer.unpack()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
