"""Layers one after the other."""

import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    ActivationLayer,
    ArgumentError,
    ArgumentNullError,
    DenseLayer,
    Embedding,
    FullyConnectedLayer,
    InvalidOperationError,
    MultiLoRAAdapter,
    Regularization,
    Sequential,
    StandardLoRAAdapter,
    relu,
    tanh,
)
from lora_np.run import Run
from lora_np.testing import check_gradients
from tests.kinds import batch, bits, randomised, snapshot


@pytest.fixture
def model():
    return randomised(
        Sequential({"first": DenseLayer(4, 3, tanh), "middle": FullyConnectedLayer(3, 3, relu), "last": DenseLayer(3, 2)})
    )


def test_an_example_worked_by_hand():
    first, last = DenseLayer(2, 3, relu), FullyConnectedLayer(3, 1)
    model = Sequential([first, last])
    model.set_parameters([1, 0, -1, 0, 1, 1, 0, 0, 1, 1, 2, 3, -4])
    # z = (1, 2, 2), relu the same, y = 1 + 4 + 6 - 4
    assert_array_equal(model.forward([1, 2]), [7])
    # the last gives (1, 2, 3) back, relu lets all of it through
    assert_array_equal(model.backward([1]), [-2, 5])
    assert_array_equal(model.get_parameter_gradients(), [1, 2, 3, 2, 4, 6, 1, 2, 3, 1, 2, 2, 1])


def test_the_output_is_the_composition_of_the_layers(model):
    x = batch(5, 4)
    y = x
    for layer in model.layers:
        y = layer.predict(y)
    assert_array_equal(model.predict(x), y)
    assert (model.input_size, model.output_size) == (4, 2)


def test_backward_is_the_chain_of_the_layers(model):
    x, dy = batch(5, 4), batch(5, 2)
    model.forward(x)
    dx = model.backward(dy)
    for layer in model.layers:
        x = layer.forward(x)
    for name, layer in reversed(model.children().items()):
        dy = layer.backward(dy)
        for own, gradient in layer.gradients.items():
            assert_array_equal(model.gradients[f"{name}.{own}"], gradient)
    assert_array_equal(dx, dy)


def test_the_layers_do_not_store_the_models_pass(model):
    model.forward(batch(5, 4))
    model.backward(batch(5, 2))
    for layer in model.layers:
        assert not layer.gradients
        with pytest.raises(InvalidOperationError):
            layer.backward(batch(5, layer.output_size))


def test_parameters_are_in_the_order_of_the_layers(model):
    assert list(model.named_parameters()) == [
        f"{name}.{array}" for name in ("first", "middle", "last") for array in ("weight", "bias")
    ]
    assert_array_equal(model.get_parameters(), np.concatenate([layer.get_parameters() for layer in model.layers]))


def test_the_input_gradient_of_the_first_layer_is_computed_only_on_request(model, monkeypatch):
    wanted = []
    for layer in model.layers:

        def recording(dy, cache, *, parameters=True, inputs=True, original=layer.vjp):
            wanted.append(inputs)
            return original(dy, cache, parameters=parameters, inputs=inputs)

        monkeypatch.setattr(layer, "vjp", recording)
    _, cache = model.apply(batch(5, 4), Run())
    dx, gradients = model.vjp(batch(5, 2), cache, inputs=False)
    assert dx is None
    assert len(gradients) == 6
    assert wanted == [True, True, False]


# ---------------------------------------------------------------- frozen layers


def test_frozen_layers_do_not_train_and_let_gradients_through(model):
    free = model.clone()
    model.freeze("first", "last")
    results = []
    for each in (model, free):
        results.append((each.forward(batch(5, 4)).tobytes(), each.backward(batch(5, 2)).tobytes()))
    assert results[0] == results[1]
    assert set(model.gradients) == set(model.named_parameters()) == {"middle.weight", "middle.bias"}
    before = bits(model.named_parameters(frozen=True))
    model.update_parameters(0.5)
    after = bits(model.named_parameters(frozen=True))
    assert {name for name in after if after[name] != before[name]} == {"middle.weight", "middle.bias"}


def test_freezing_replaces_what_was_frozen(model):
    model.freeze("first")
    model.freeze("last")
    assert "first.weight" in model.named_parameters()
    assert "last.weight" not in model.named_parameters()
    model.freeze()
    assert model.parameter_count == 12 + 3 + 9 + 3 + 6 + 2


def test_freezing_drops_pending_gradients(model):
    model.forward(batch(5, 4))
    model.backward(batch(5, 2))
    model.freeze("first")
    with pytest.raises(InvalidOperationError):
        model.update_parameters(0.1)


def test_an_unknown_layer_cannot_be_frozen(model):
    before = snapshot(model), list(model.named_parameters())
    with pytest.raises(ArgumentError, match="first, middle, last, got 'nobody'"):
        model.freeze("first", "nobody")
    assert (snapshot(model), list(model.named_parameters())) == before


def test_a_fully_frozen_model_has_nothing_to_train(model):
    model.freeze("first", "middle", "last")
    assert not model.supports_training
    model.forward(batch(5, 4))
    model.backward(batch(5, 2))
    model.update_parameters(0.1)


def test_penalties_of_trainable_layers_are_summed():
    layers = [randomised(DenseLayer(3, 3, regularization=Regularization(l2=0.5)), seed) for seed in range(3)]
    model = Sequential(layers, frozen=["1"])
    assert model.compute_auxiliary_loss() == layers[0].compute_auxiliary_loss() + layers[2].compute_auxiliary_loss()
    check_gradients(model, batch(4, 3), method="complex", rtol=1e-10)


def test_gradients_through_adapters_and_nested_models():
    inner = Sequential([StandardLoRAAdapter(DenseLayer(3, 4), 2), ActivationLayer(4, tanh)])
    model = randomised(Sequential({"in": DenseLayer(5, 3, tanh), "inner": inner, "out": DenseLayer(4, 2)}, frozen=["in"]))
    errors = check_gradients(model, batch(4, 5), method="complex", rtol=1e-10)
    assert set(errors) == {"input", "inner.0.lora.matrix_a", "inner.0.lora.matrix_b", "out.weight", "out.bias"}


# ---------------------------------------------------------------- access


def test_layers_by_name_and_by_position(model):
    assert len(model) == 3
    assert model["middle"] is model[1] is model.layers[1] is model.children()["middle"]
    assert model[-1] is model["last"]


def test_layers_of_a_sequence_are_named_by_position():
    model = Sequential([DenseLayer(4, 3), DenseLayer(3, 2)])
    assert list(model.children()) == ["0", "1"]
    assert model["1"] is model[1]


def test_the_layers_are_not_copied():
    layer = DenseLayer(4, 3)
    assert Sequential([layer])[0] is layer


def test_the_given_mapping_may_change_afterwards():
    layers = {"only": DenseLayer(4, 3)}
    model = Sequential(layers)
    layers.clear()
    assert len(model) == 1


def test_repr_shows_every_layer():
    inner = Sequential([DenseLayer(3, 2)])
    lines = repr(Sequential({"first": DenseLayer(4, 3, tanh), "inner": inner})).splitlines()
    assert lines == [
        "Sequential(4 -> 2, 23 parameters)",
        "  first: DenseLayer(4 -> 3, activation=tanh, 15 parameters)",
        "  inner: Sequential(3 -> 2, 8 parameters)",
        "    0: DenseLayer(3 -> 2, 8 parameters)",
    ]


def test_flops_and_activations_are_those_of_the_layers(model):
    assert model.estimate_flops() == sum(layer.estimate_flops() for layer in model.layers)
    assert model.get_activation_types() == ("tanh", "relu", "identity")


# ---------------------------------------------------------------- replacing


def test_replacing_layers(model):
    new = randomised(DenseLayer(3, 3), seed=5)
    first, _, last = model.layers
    model.replace({"middle": new})
    assert model.layers == (first, new, last)
    assert_array_equal(model.predict(batch(5, 4)), last.predict(new.predict(first.predict(batch(5, 4)))))


def test_replacing_several_may_change_the_sizes_between_them(model):
    model.replace({"first": DenseLayer(4, 7), "middle": DenseLayer(7, 3)})
    assert model.forward(batch(5, 4)).shape == (5, 2)


def test_replacing_keeps_the_frozen_names(model):
    model.freeze("first", "middle")
    model.replace({"middle": DenseLayer(3, 3)})
    assert model.frozen == {"first", "middle"}
    assert list(model.named_parameters()) == ["last.weight", "last.bias"]


def test_replacing_drops_the_pending_pass(model):
    model.forward(batch(5, 4))
    model.replace({"middle": DenseLayer(3, 3)})
    with pytest.raises(InvalidOperationError):
        model.backward(batch(5, 2))


BAD_REPLACEMENTS = {
    "unknown": (lambda: {"nobody": DenseLayer(3, 3)}, "'nobody'"),
    "does-not-fit-inside": (
        lambda: {"middle": DenseLayer(3, 5)},
        "output_size of 'middle' is 5 and the input_size of 'last' is 3",
    ),
    "another-input-size": (lambda: {"first": DenseLayer(6, 3)}, "4 -> 2, got 6 -> 2"),
    "another-output-size": (lambda: {"last": DenseLayer(3, 3)}, "4 -> 2, got 4 -> 3"),
    "another-dtype": (lambda: {"middle": DenseLayer(3, 3, dtype=np.float32)}, "float32"),
    "not-a-layer": (lambda: {"middle": np.tanh}, "'middle'"),
    "another-dtype-throughout": (
        lambda: {
            "first": DenseLayer(4, 3, dtype=np.float32),
            "middle": DenseLayer(3, 3, dtype=np.float32),
            "last": DenseLayer(3, 2, dtype=np.float32),
        },
        "float32",
    ),
}


@pytest.mark.parametrize(("layers", "message"), BAD_REPLACEMENTS.values(), ids=BAD_REPLACEMENTS)
def test_layers_that_do_not_fit_replace_nothing(model, layers, message):
    before = model.layers
    model.forward(batch(5, 4))
    with pytest.raises(ArgumentError, match=message):
        model.replace(layers())
    assert model.layers == before
    model.backward(batch(5, 2))


def test_a_layer_cannot_occur_twice(model):
    with pytest.raises(ArgumentError, match="occurs twice"):
        model.replace({"middle": model["last"]})


# ---------------------------------------------------------------- construction

SHARED = DenseLayer(3, 3)
BAD_LAYERS = {
    "empty-sequence": ([], "at least one"),
    "empty-mapping": ({}, "at least one"),
    "not-a-layer": ([DenseLayer(4, 3), np.tanh], "as '1'"),
    "sizes": ([DenseLayer(4, 3), DenseLayer(2, 3)], "output_size of '0' is 3 and the input_size of '1' is 2"),
    "dtypes": ([DenseLayer(4, 3), DenseLayer(3, 2, dtype=np.float32)], "float64.*float32"),
    "a-layer-twice": ([SHARED, SHARED], "occurs twice"),
    "dot-in-a-name": ({"a.b": DenseLayer(4, 3)}, "'a.b'"),
    "empty-name": ({"": DenseLayer(4, 3)}, "''"),
    "number-as-a-name": ({1: DenseLayer(4, 3)}, "got 1"),
    "a-number": (5, "layers"),
    "a-layer": (DenseLayer(4, 3), "layers"),
}


@pytest.mark.parametrize(("layers", "message"), BAD_LAYERS.values(), ids=BAD_LAYERS)
def test_bad_layers_are_refused(layers, message):
    with pytest.raises(ArgumentError, match=message):
        Sequential(layers)


def test_missing_layers_are_refused():
    with pytest.raises(ArgumentNullError, match="layers"):
        Sequential(None)


def test_an_unknown_frozen_name_is_refused():
    with pytest.raises(ArgumentError, match="'1'"):
        Sequential([DenseLayer(4, 3)], frozen=["1"])


# ---------------------------------------------------------------- modes and tasks inside


def test_the_model_passes_its_mode_to_its_layers(model, monkeypatch):
    seen = []
    for layer in model.layers:

        def recording(x, run, *, original=layer.apply):
            seen.append(run.training)
            return original(x, run)

        monkeypatch.setattr(layer, "apply", recording)
    model.train().forward(batch(5, 4))
    model.eval().forward(batch(5, 4))
    model.train().predict(batch(5, 4))
    assert seen == [True] * 3 + [False] * 6


def test_a_pass_is_bound_to_the_tasks_of_every_adapter_inside():
    adapters = [MultiLoRAAdapter(DenseLayer(3, 3, rng=0), "a", 1, rng=0) for _ in range(2)]
    for adapter in adapters:
        adapter.add_task("b", 1)
    model = Sequential([adapters[0], Sequential([adapters[1]])])
    for adapter in adapters:
        model.forward(batch(2, 3))
        adapter.current_task = "b"
        with pytest.raises(InvalidOperationError, match="the task has changed"):
            model.backward(batch(2, 3))


def test_deep_models():
    model = randomised(Sequential([DenseLayer(2, 2, tanh) for _ in range(40)]))
    assert len(model.walk()) == 41
    assert_allclose(model.predict(batch(3, 2)), model.clone().predict(batch(3, 2)))


def test_layers_below_the_last_that_trains_are_not_differentiated(monkeypatch):
    model = Sequential([ActivationLayer(3, tanh), DenseLayer(3, 4), DenseLayer(4, 2), DenseLayer(2, 2)], frozen=["1"])
    x, dy = np.ones((5, 3)), np.ones((5, 2))
    model.forward(x)
    whole = model.backward(dy)
    gradients = dict(model.gradients)
    asked = []
    original = DenseLayer.vjp

    def recorded(self, dy, cache, *, parameters=True, inputs=True):
        asked.append((self, parameters, inputs))
        return original(self, dy, cache, parameters=parameters, inputs=inputs)

    monkeypatch.setattr(DenseLayer, "vjp", recorded)
    model.backward(dy, need_input_grad=False)
    assert asked == [(model["3"], True, True), (model["2"], True, False)]
    assert {name: dp.tolist() for name, dp in model.gradients.items()} == {n: dp.tolist() for n, dp in gradients.items()}
    asked.clear()
    assert model.backward(dy).tolist() == whole.tolist()
    assert asked == [(model["3"], True, True), (model["2"], True, True), (model["1"], False, True)]
    model.freeze("1", "2", "3")
    model.forward(x)
    asked.clear()
    assert model.backward(dy, need_input_grad=False) is None
    assert asked == []


# ---------------------------------------------------------------- memory

ROWS, SIZE = 1000, 50


def peak(function):
    """The most memory that a call takes, in arrays of ROWS x SIZE."""
    function()  # what is made at the first call only
    tracemalloc.start()
    function()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / (8 * ROWS * SIZE)


def deep():
    return Sequential([DenseLayer(SIZE, SIZE, tanh, rng=i) for i in range(10)])


@pytest.mark.parametrize("nested", [False, True])
def test_inference_takes_the_memory_of_one_layer(nested):
    model = Sequential([deep(), DenseLayer(SIZE, SIZE, rng=0)]) if nested else deep()
    x = batch(ROWS, SIZE)
    assert peak(lambda: model.predict(x)) < 4
    assert_array_equal(model.predict(x), model.eval().forward(x))


def test_inference_of_a_mixed_batch_takes_the_memory_of_one_layer():
    model = Sequential([MultiLoRAAdapter(layer, "a", 2, rng=0) for layer in deep().layers])
    x, tasks = batch(ROWS, SIZE), ["a", None] * (ROWS // 2)
    assert peak(lambda: model.predict(x, tasks=tasks)) < 9
    assert_array_equal(model.predict(x, tasks=tasks), model.forward(x, tasks=tasks))


def test_steps_need_the_memory_of_one_pass():
    model, x, dy = deep(), batch(ROWS, SIZE), batch(ROWS, SIZE)

    def step():
        model.forward(x)
        model.backward(dy)
        model.update_parameters(1e-3)

    one = peak(step)
    assert 20 < one < 26  # the input and the output of the activation of each layer
    assert peak(lambda: [step(), step()]) < 1.1 * one


def test_a_sequential_takes_what_its_first_layer_takes():
    model = Sequential([Embedding(7, 4, rng=0), DenseLayer(4, 2, rng=1)])
    assert model.forward([[1, 2, 6], [0, 0, 3]]).shape == (2, 3, 2)
    check_gradients(model, [[1, 2, 6], [0, 0, 3]])
    assert model.estimate_activation_memory() > 0
    with pytest.raises(ArgumentError, match="input must contain integers from 0 to 6, got 7"):
        model.predict([7])


def test_with_children_adds_no_layer():
    model = Sequential([DenseLayer(3, 3, rng=0)])
    with pytest.raises(ArgumentError, match="changed must name layers among 0, got '7'"):
        model.with_children({"7": DenseLayer(3, 3, rng=1)})
