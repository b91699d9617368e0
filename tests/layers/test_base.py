"""What `Layer` gives to a layer of one's own, and what belongs to no kind in particular."""

import gc
import weakref

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lora_np import (
    Adam,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    Layer,
    LoRAAdapterBase,
    LowRankLayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    tanh,
)
from lora_np.base import listeners, pending, training_mode
from lora_np.testing import check_gradients
from tests.kinds import batch, randomised


class Scale(Layer):
    """``y = factor · x``: the least that a layer must write."""

    parameter_names = ("factor",)

    def __init__(self, size):
        super().__init__(size, size)
        self.factor = np.full(size, 2.0)

    def apply(self, x, run):
        return self.factor * x, (x,)

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        (x,) = cache
        gradients = {"factor": (dy * x).reshape(-1, self.input_size).sum(axis=0)} if parameters else {}
        return (self.factor * dy if inputs else None), gradients

    def estimate_flops(self):
        return self.input_size


class Views(Layer):
    """A layer that gives views of its arguments."""

    def __init__(self, size):
        super().__init__(size, size)

    def apply(self, x, run):
        return x[:], (x,)

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        return dy[:], {}

    def estimate_flops(self):
        return 0


def test_a_custom_layer_supports_the_whole_api():
    layer = Scale(3)
    x, dy = batch(4, 3), batch(4, 3, seed=2)
    check_gradients(layer, x, method="complex", rtol=1e-10)
    assert_array_equal(layer.forward(x), 2 * x)
    assert_array_equal(layer.backward(dy), 2 * dy)
    layer.update_parameters(1.0)
    assert_array_equal(layer.get_parameters(), 2 - (dy * x).sum(axis=0))
    assert repr(layer) == "Scale(3 -> 3, 3 parameters)"
    assert layer.clone().layer_name.startswith("Scale_")


def test_a_custom_layer_can_be_adapted_frozen_and_routed():
    adapter = randomised(StandardLoRAAdapter(Scale(3), 2, freeze_base_layer=False))
    assert set(check_gradients(adapter, batch(4, 3), rtol=1e-10)) == {
        "input",
        "base.factor",
        "lora.matrix_a",
        "lora.matrix_b",
    }
    assert_array_equal(Scale(3).forward(batch(2, 3), tasks=[None, None]), 2 * batch(2, 3))


def test_a_layer_without_a_config_cannot_be_saved(tmp_path):
    for layer in (Scale(3), Sequential([Scale(3)])):
        with pytest.raises(NotSupportedError, match="Scale cannot be saved"):
            layer.serialize(tmp_path / "layer.npz")
    assert not list(tmp_path.iterdir())


def test_views_never_leave_the_layer():
    layer, x, dy = Views(3), batch(4, 3), batch(4, 3, seed=2)
    y = layer.forward(x)
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(layer.predict(x), x)
    assert not np.shares_memory(layer.backward(dy), dy)


@pytest.mark.parametrize("abstract", [Layer, LowRankLayer, LoRAAdapterBase])
def test_abstract_classes_are_not_built(abstract):
    with pytest.raises(TypeError, match="abstract"):
        abstract(3, 2)


class Named(Scale):
    """The same, with its cache by name."""

    def apply(self, x, run):
        y = self.factor * x
        return y, {"x": x, "again": [x[:], y], "other": (x.copy(),), "rows": len(x)}


def test_memory_counts_the_arrays_of_any_cache_once():
    # x and y of 3 elements each, and a copy of x; a view of x is x
    assert Scale(3).estimate_activation_memory() == 8 * 6
    assert Named(3).estimate_activation_memory() == 8 * 9


class Halves(LowRankLayer):
    """A low-rank layer that does not say anything about dropout."""

    parameter_names = ("factor",)

    def __init__(self, size):
        super().__init__(size, size, 1, -1.0, "max")
        self.factor = np.full((size, 1), 0.5)

    def apply(self, x, run, *, rank=None, trained_from=0):
        x, mask = self.dropped(x, run)
        assert mask is None
        return x @ self.merge_weights(), x

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        dF = (cache.T @ dy + dy.T @ cache) @ self.factor
        return dy @ self.merge_weights(), {"factor": dF}

    def merge_weights(self, *, rank=None):
        return self.factor @ self.factor.T

    def estimate_flops(self):
        return 4 * self.input_size


def test_a_custom_low_rank_layer_has_no_dropout_unless_it_asks_for_it():
    layer = Halves(3)
    assert layer.dropout == 0
    assert not listeners(layer)
    check_gradients(layer, batch(4, 3), training=True)


class Crossed(Scale):
    """A layer in which the path of one child is that of another's child."""

    def children(self):
        return {"a": Sequential({"b": DenseLayer(2, 2)}), "a.b": Scale(2)}


def test_of_children_whose_names_overlap_the_one_with_the_parameter_is_found():
    layer = Crossed(2)
    assert layer.get_parameter_shape("a.b.weight") == (2, 2)
    assert layer.get_parameter_shape("a.b.factor") == (2,)
    assert layer.get_parameter_shape("a.b.other") is None


# ---------------------------------------------------------------- structure


def test_walking_through_a_model():
    dense, base = DenseLayer(3, 3), DenseLayer(3, 2)
    adapter = StandardLoRAAdapter(base, 1)
    inner = Sequential({"a": adapter})
    model = Sequential([dense, inner])
    assert model.walk() == {
        "": model,
        "0": dense,
        "1": inner,
        "1.a": adapter,
        "1.a.base": base,
        "1.a.lora": adapter.lora_layer,
    }
    assert list(inner.walk("x")) == ["x", "x.a", "x.a.base", "x.a.lora"]
    assert dense.walk() == {"": dense}


def test_names_of_layers_are_numbered():
    first, second = DenseLayer(3, 2), DenseLayer(3, 2)
    numbers = [int(layer.layer_name.removeprefix("DenseLayer_")) for layer in (first, second)]
    assert numbers[1] == numbers[0] + 1


def test_arrays_by_name():
    layer = randomised(DenseLayer(3, 2))
    assert layer.get_parameter_names() == ("weight", "bias")
    assert layer.named_parameter_count == 2
    assert layer.get_parameter_shape("weight") == (3, 2)
    assert layer.get_parameter_shape("nobody") is layer.try_get_parameter("nobody") is None
    layer.try_get_parameter("weight")[...] = 0
    assert layer.weight.all()
    assert layer.set_parameter("nobody", [1.0]) is False
    assert layer.set_parameter("bias", [1, 2]) is True
    assert_array_equal(layer.bias, [1, 2])


# ---------------------------------------------------------------- training_mode


@pytest.fixture
def model():
    model = Sequential([DenseLayer(3, 3), DyLoRAAdapter(DenseLayer(3, 2), 2, [1, 2])])
    model[1].eval()
    return model


def modes(model):
    return [layer.is_training for layer in model.walk().values()]


@pytest.mark.parametrize("mode", [True, False])
def test_training_mode_sets_the_mode_of_a_block(model, mode):
    before = modes(model)
    assert set(before) == {True, False}
    with training_mode(model, mode):
        assert set(modes(model)) == {mode}
    assert modes(model) == before


def test_training_mode_restores_the_modes_after_an_error(model):
    before = modes(model)
    with pytest.raises(KeyError), training_mode(model, False):
        raise KeyError
    assert modes(model) == before


def test_training_mode_blocks_can_be_nested(model):
    with training_mode(model, False):
        with training_mode(model, True):
            assert all(modes(model))
        assert not any(modes(model))


@pytest.mark.parametrize("mode", [1, "yes", np.True_])
def test_a_mode_is_stored_as_a_bool(model, mode):
    model.is_training = mode
    assert model.is_training is True


# ---------------------------------------------------------------- memory


def test_an_error_in_a_pass_keeps_the_previous_pass(monkeypatch):
    layer = randomised(DenseLayer(3, 2, tanh))
    layer.forward(batch(4, 3))
    expected = layer.backward(batch(4, 2))
    monkeypatch.setattr(layer, "apply", None)
    with pytest.raises(TypeError):
        layer.forward(batch(2, 3))
    assert_array_equal(layer.backward(batch(4, 2)), expected)


@pytest.mark.parametrize("step", ["update_parameters", "apply_updates"])
def test_a_step_consumes_the_pass_because_its_arrays_are_stale(step):
    layer = randomised(DenseLayer(3, 2, tanh))
    y = layer.forward(batch(4, 3))
    cache = [weakref.ref(array) for array in layer._pass.cache]
    layer.backward(np.ones_like(y))
    layer.update_parameters(0.1) if step == "update_parameters" else layer.apply_updates({"bias": np.ones(2)})
    assert [array() for array in cache] == [None, None]
    with pytest.raises(InvalidOperationError, match="needs a forward pass first; a step consumes it"):
        layer.backward(np.ones_like(y))


def test_a_refused_step_keeps_the_pass():
    layer = randomised(DenseLayer(3, 2))
    layer.forward(batch(4, 3))
    expected = layer.backward(batch(4, 2))
    with pytest.raises(ArgumentError):
        layer.apply_updates({"bias": np.ones(3)})
    with pytest.raises(ArgumentError):
        layer.update_parameters("fast")
    assert_array_equal(layer.backward(batch(4, 2)), expected)


def test_an_error_in_backward_keeps_the_previous_gradients(monkeypatch):
    layer = randomised(DenseLayer(3, 2, tanh))
    layer.forward(batch(4, 3))
    layer.backward(batch(4, 2))
    expected = layer.gradients["weight"].copy()
    monkeypatch.setattr(layer, "vjp", None)
    with pytest.raises(TypeError):
        layer.backward(batch(4, 2))
    assert_array_equal(layer.gradients["weight"], expected)


def test_closing_releases_the_input(monkeypatch):
    layer, inputs = DenseLayer(3, 2), []
    original = layer.apply

    def applied(x, run):
        inputs.append(weakref.ref(x))
        return original(x, run)

    monkeypatch.setattr(layer, "apply", applied)
    layer.forward(batch(4, 3))
    assert inputs[0]() is not None
    layer.close()
    gc.collect()
    assert inputs[0]() is None


def test_a_context_is_closed_after_an_error():
    def fails_inside(layer):
        with layer:
            layer.forward(batch(4, 3))
            raise KeyError

    layer = DenseLayer(3, 2)
    with pytest.raises(KeyError):
        fails_inside(layer)
    with pytest.raises(InvalidOperationError):
        layer.backward(batch(4, 2))


def test_a_reset_reaches_the_layers_inside():
    model = Sequential([DenseLayer(3, 3), DenseLayer(3, 2)])
    model[1].forward(batch(4, 3))
    model.reset_state()
    with pytest.raises(InvalidOperationError):
        model[1].backward(batch(4, 2))


def test_the_view_of_the_gradients_cannot_be_written_to():
    layer = DenseLayer(3, 2)
    layer.forward(batch(4, 3))
    layer.backward(batch(4, 2))
    with pytest.raises(TypeError):
        layer.gradients["weight"] = np.zeros((3, 2))


def test_clearing_the_gradients_clears_the_trained_parts():
    adapter = DyLoRAAdapter(DenseLayer(3, 2), 2, [1, 2])
    adapter.forward(batch(4, 3), rank=1)
    adapter.backward(batch(4, 2))
    rows, columns = slice(0, 1), slice(None)
    assert pending(adapter).parts == {"lora.matrix_a": (columns, rows), "lora.matrix_b": (rows, columns)}
    adapter.clear_gradients()
    with pytest.raises(InvalidOperationError, match="a step needs gradients; call backward first"):
        pending(adapter)


def test_trained_parts_have_the_path_of_their_layer():
    inner = DyLoRAAdapter(DenseLayer(3, 2), 2, [1, 2])
    adapter = StandardLoRAAdapter(inner, 1, freeze_base_layer=False)
    for layer, path in [(inner, "lora"), (adapter, "base.lora"), (Sequential({"a": adapter}), "a.base.lora")]:
        layer.forward(batch(4, 3), rank=1)
        layer.backward(batch(4, 2))
        assert list(pending(layer).parts) == [f"{path}.matrix_a", f"{path}.matrix_b"]


def test_a_frozen_base_with_ranks_has_no_gradients_and_the_branch_learns_at_any_rank():
    adapter = randomised(StandardLoRAAdapter(DyLoRAAdapter(DenseLayer(3, 2), 2, [1, 2]), 1))
    for rank in (1, 2):
        check_gradients(adapter, batch(4, 3), rank=rank, active_only=True)
        adapter.forward(batch(4, 3), rank=rank)
        adapter.backward(batch(4, 2))
        assert list(adapter.gradients) == ["lora.matrix_a", "lora.matrix_b"]
        assert list(Adam().updates(adapter)) == ["lora.matrix_a", "lora.matrix_b"]


def test_an_update_may_be_given_the_layers_own_arrays():
    layer = randomised(DenseLayer(3, 2))
    before = layer.get_parameters()
    layer.apply_updates(layer.named_parameters())
    assert_array_equal(layer.get_parameters(), 2 * before)


def test_gradients_of_frozen_arrays_are_skipped():
    layer = Scale(3)
    layer.frozen = frozenset({"factor"})  # its vjp does not look at it
    for step in (lambda: layer.update_parameters(0.1), lambda: layer.apply_updates(Adam().updates(layer))):
        layer.forward(batch(4, 3))
        layer.backward(batch(4, 3))
        assert "factor" in layer.gradients
        step()
        assert_array_equal(layer.factor, [2, 2, 2])


def test_a_task_that_has_changed_since_the_pass_is_refused_by_backward_and_by_a_step():
    layer = MultiLoRAAdapter(DenseLayer(3, 2), "a", 1, rng=0)
    layer.add_task("b", 1)
    layer.forward(batch(4, 3))
    layer.backward(batch(4, 2))
    layer.current_task = "b"
    for call in (lambda: layer.backward(batch(4, 2)), lambda: layer.update_parameters(0.1), lambda: pending(layer)):
        with pytest.raises(InvalidOperationError, match="the task has changed"):
            call()
    layer.current_task = "a"
    layer.update_parameters(0.1)


def test_a_single_vector_has_no_tasks():
    layer = MultiLoRAAdapter(DenseLayer(3, 3), "a", 1, rng=0)
    for call in (layer.forward, layer.predict):
        with pytest.raises(ArgumentError, match=r"input must have shape \(rows, \.\.\., 3\)"):
            call(batch(3), tasks=["a"] * 3)


def test_repr_counts_all_parameters_and_those_that_train():
    assert repr(DenseLayer(3, 2)).endswith("(3 -> 2, 8 parameters)")
    assert repr(StandardLoRAAdapter(DenseLayer(3, 2), 1)).endswith(" 5 of 13 parameters train)")
    assert repr(StandardLoRAAdapter(DenseLayer(3, 2), 1, freeze_base_layer=False)).endswith(", 13 parameters)")


def test_a_vector_may_be_the_memory_of_the_layers_own_arrays():
    layer, memory = Scale(2), np.arange(4.0)
    layer.parameter_names = "first", "last"
    layer.first, layer.last = memory[:2], memory[2:]
    layer.set_parameters(memory[::-1])
    assert_array_equal(layer.get_parameters(), [3, 2, 1, 0])


def test_arrays_can_be_swapped():
    layer = randomised(Sequential([DenseLayer(2, 2), DenseLayer(2, 2)]))
    first, last = layer[0].weight.copy(), layer[1].weight.copy()
    layer.load_weights({"0.weight": layer[1].weight, "1.weight": layer[0].weight})
    assert_array_equal(layer[0].weight, last)
    assert_array_equal(layer[1].weight, first)
