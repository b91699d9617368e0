"""Weights by name: what matches, what does not, and that nothing is half loaded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    ArgumentError,
    ArgumentNullError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    MultiLoRAAdapter,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    WeightLoadResult,
    WeightLoadValidation,
)


def dense(dtype=np.float64):
    return DenseLayer(3, 2, dtype=dtype, rng=0)


def standard():
    return StandardLoRAAdapter(DenseLayer(3, 2, rng=0), 1, rng=0)


def multilora():
    adapter = MultiLoRAAdapter(FullyConnectedLayer(3, 2, rng=0), "a.b", 1, rng=0)
    adapter.add_task("é", 2)
    return adapter


NAMES = {
    "dense": (dense, ["weight", "bias"]),
    "standard": (standard, ["base.weight", "base.bias", "lora.matrix_a", "lora.matrix_b"]),
    "dylora": (
        lambda: DyLoRAAdapter(dense(), 2, [1, 2], rng=0),
        ["base.weight", "base.bias", "lora.matrix_a", "lora.matrix_b"],
    ),
    "multilora": (
        multilora,
        [
            "base.weight",
            "base.bias",
            "tasks.a.b.matrix_a",
            "tasks.a.b.matrix_b",
            "tasks.é.matrix_a",
            "tasks.é.matrix_b",
        ],
    ),
    "dora": (
        lambda: DoRAAdapter(dense(), 1, rng=0),
        ["magnitude", "base.weight", "base.bias", "lora.matrix_a", "lora.matrix_b"],
    ),
    "vera": (
        lambda: VeRAAdapter(dense(), 1, rng=0),
        ["base.weight", "base.bias", "lora.vector_d", "lora.vector_b", "lora.projection_a", "lora.projection_b"],
    ),
    "sequential": (
        lambda: Sequential({"encoder": standard(), "head": DenseLayer(2, 1, rng=0)}),
        [
            "encoder.base.weight",
            "encoder.base.bias",
            "encoder.lora.matrix_a",
            "encoder.lora.matrix_b",
            "head.weight",
            "head.bias",
        ],
    ),
}

each = pytest.mark.parametrize(("build", "names"), NAMES.values(), ids=NAMES.keys())


def perfect(layer, seed=1):
    """A random weight for every array of a layer."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(a.shape) for name, a in layer.named_parameters(frozen=True).items()}


def state(layer):
    return {name: array.tobytes() for name, array in layer.named_parameters(frozen=True).items()}


def assert_holds(layer, weights):
    for name, weight in weights.items():
        np.testing.assert_array_equal(layer.named_parameters(frozen=True)[name], weight)


# ---------------------------------------------------------------- one array by name


@each
def test_names_are_those_of_all_arrays_frozen_ones_included(build, names):
    layer = build()
    assert layer.get_parameter_names() == tuple(names)
    assert layer.named_parameter_count == len(names)


@each
def test_an_array_is_read_as_a_copy(build, names):
    layer = build()
    before = state(layer)
    for name in names:
        copied = layer.try_get_parameter(name)
        np.testing.assert_array_equal(copied, layer.named_parameters(frozen=True)[name])
        assert layer.get_parameter_shape(name) == copied.shape
        copied += 1
    assert state(layer) == before


@each
def test_an_array_is_replaced_in_place(build, names):
    layer = build()
    arrays, weights = layer.named_parameters(frozen=True), perfect(layer)
    assert all(layer.set_parameter(name, weight.tolist()) is True for name, weight in weights.items())
    assert_holds(layer, weights)
    assert all(array is arrays[name] for name, array in layer.named_parameters(frozen=True).items())


@pytest.mark.parametrize("name", ["other", "base", "lora.matrix_c", "", "base.weight.x", "tasks.a.b"])
def test_an_unknown_name_gives_nothing_and_sets_nothing(name):
    layer = multilora()
    before = state(layer)
    assert layer.try_get_parameter(name) is None
    assert layer.get_parameter_shape(name) is None
    assert layer.set_parameter(name, np.ones(1)) is False
    assert state(layer) == before


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.ones(3), ArgumentError, r"bias must have shape \(2,\), got \(3,\)"),
        (np.ones((1, 2)), ArgumentError, r"bias must have shape \(2,\), got \(1, 2\)"),
        (1.0, ArgumentError, r"bias must have shape \(2,\), got \(\)"),
        (["a", "b"], ArgumentError, "bias must be an array of real numbers"),
        ([1j, 0], ArgumentError, "bias must be an array of real numbers"),
        (None, ArgumentNullError, "bias must not be None"),
    ],
    ids=["length", "axes", "scalar", "text", "complex", "none"],
)
def test_a_value_that_does_not_fit_is_refused(value, error, words):
    layer = dense()
    before = state(layer)
    with pytest.raises(error, match=words):
        layer.set_parameter("bias", value)
    assert state(layer) == before


def test_a_value_is_cast_to_the_dtype_of_the_layer():
    layer = dense(np.float32)
    layer.set_parameter("bias", [1, 2])
    assert layer.bias.dtype == np.float32
    np.testing.assert_array_equal(layer.bias, [1, 2])


# ---------------------------------------------------------------- what validation finds


@each
def test_the_layers_own_names_match_completely(build, names):
    for given_names in (names, build().named_parameters(frozen=True)):
        found = build().validate_weights(given_names)
        assert found == WeightLoadValidation(matched=names)
        assert found.is_valid
        assert found.is_complete


def test_validation_sorts_names_into_matched_unmatched_and_missing():
    found = standard().validate_weights(["lora.matrix_a", "other", "base.bias"])
    assert found.matched == ["lora.matrix_a", "base.bias"]
    assert found.unmatched_weights == ["other"]
    assert found.missing_parameters == ["base.weight", "lora.matrix_b"]
    assert found.is_valid
    assert not found.is_complete


def test_names_may_come_from_any_iterable():
    assert dense().validate_weights(iter(["weight", "bias"])).is_complete


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer: layer.try_get_parameter(5), "name must"),
        (lambda layer: layer.get_parameter_shape(None), "name must"),
        (lambda layer: layer.set_parameter(["bias"], np.ones(2)), "name must"),
        (lambda layer: layer.load_weights([np.ones(2)]), "weights must"),
        (lambda layer: layer.load_weights({"bias": np.ones(2)}, {"bias": "bias"}), "mapping must"),
        (lambda layer: layer.validate_weights(["bias"], "bias"), "mapping must"),
        (lambda layer: layer.validate_weights([5]), "each name of a weight must"),
    ],
    ids=["get", "shape", "set", "weights", "mapping", "mapping of names", "names"],
)
def test_arguments_of_another_type_are_refused(call, message):
    layer = dense()
    before = layer.get_parameters()
    with pytest.raises(ArgumentError, match=f"^{message}"):
        call(layer)
    np.testing.assert_array_equal(layer.get_parameters(), before)


@pytest.mark.parametrize("names", ["weight", 5, None], ids=repr)
def test_names_are_several(names):
    with pytest.raises(ArgumentError, match="names must"):
        dense().validate_weights(names)


def test_shapes_are_compared_where_there_are_arrays():
    found = dense().validate_weights({"weight": np.ones((2, 3)), "bias": np.ones(2)})
    assert found.shape_mismatches == [("weight", (3, 2), (2, 3))]
    assert found.matched == ["weight", "bias"]
    assert not found.is_valid
    assert not found.is_complete


def test_validation_maps_names_and_leaves_out_those_mapped_to_none():
    mapping = {"w": "weight", "b": "bias", "step": None, "x": "other"}.get
    found = dense().validate_weights(["w", "step", "x", "b"], mapping)
    assert found == WeightLoadValidation(matched=["weight", "bias"], unmatched_weights=["x"])


def test_validation_of_nothing_finds_everything_missing():
    assert dense().validate_weights([]) == WeightLoadValidation(missing_parameters=["weight", "bias"])


def test_validation_writes_nothing():
    layer = standard()
    before = state(layer)
    layer.validate_weights(perfect(layer))
    assert state(layer) == before


# ---------------------------------------------------------------- loading


@each
@pytest.mark.parametrize("strict", [False, True])
def test_all_arrays_are_replaced_frozen_ones_too(build, names, strict):
    layer = build()
    arrays, weights = layer.named_parameters(frozen=True), perfect(layer)
    result = layer.load_weights(weights, strict=strict)
    assert result == WeightLoadResult(success=True, loaded_parameters=names)
    assert (result.loaded_count, result.failed_count, result.skipped_count) == (len(names), 0, 0)
    assert result.error_message is None
    assert_holds(layer, weights)
    assert all(array is arrays[name] for name, array in layer.named_parameters(frozen=True).items())


def test_what_is_not_given_stays():
    layer = standard()
    kept = layer.base_layer.get_weights()
    result = layer.load_weights({"lora.matrix_b": np.ones((1, 2))})
    assert result.success
    assert result.loaded_parameters == ["lora.matrix_b"]
    np.testing.assert_array_equal(layer.base_layer.weight, kept)


def test_a_weight_without_a_parameter_is_skipped():
    layer = dense()
    result = layer.load_weights({"bias": [1, 2], "other": [3], "more": object()})
    assert result == WeightLoadResult(success=True, loaded_parameters=["bias"], skipped_count=2)


def test_a_mapping_renames_and_none_leaves_out():
    layer = dense()
    result = layer.load_weights({"b": [1, 2], "weight": np.ones((9, 9))}, {"b": "bias"}.get)
    assert result == WeightLoadResult(success=True, loaded_parameters=["bias"], skipped_count=1)
    np.testing.assert_array_equal(layer.bias, [1, 2])


BAD = {
    "length": (np.ones(3), "expected shape (2,), got (3,)"),
    "a scalar": (1.0, "expected shape (2,), got ()"),
    "text": (["a", "b"], "real numbers"),
    "complex": ([1j, 0], "real numbers"),
    "objects": ([object(), None], "real numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "real numbers"),
    "none": (None, "must not be None"),
}

each_bad = pytest.mark.parametrize(("value", "words"), BAD.values(), ids=BAD.keys())


@each_bad
def test_a_weight_that_does_not_fit_fails_and_the_others_load(value, words):
    layer = dense()
    kept = layer.get_biases()
    result = layer.load_weights({"bias": value, "weight": np.ones((3, 2))})
    assert not result.success
    assert result.loaded_parameters == ["weight"]
    assert [name for name, _ in result.failed_parameters] == ["bias"]
    assert (result.loaded_count, result.failed_count, result.skipped_count) == (1, 1, 0)
    assert words in result.failed_parameters[0][1]
    assert words in result.error_message
    assert "bias" in result.error_message
    np.testing.assert_array_equal(layer.bias, kept)


@each_bad
def test_strict_loads_nothing_where_one_weight_does_not_fit(value, words):
    layer = dense()
    before = state(layer)
    result = layer.load_weights({"weight": np.ones((3, 2)), "bias": value}, strict=True)
    assert not result.success
    assert result.loaded_count == 0
    assert result.failed_count == 1
    assert words in result.error_message
    assert state(layer) == before


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": np.ones((3, 2))}, "bias: no weight given"),
        ({"weight": np.ones((3, 2)), "bias": np.ones(2), "other": np.ones(1)}, "other: no such parameter"),
        ({}, "weight: no weight given; bias: no weight given"),
    ],
    ids=["missing", "unmatched", "nothing"],
)
def test_strict_loads_nothing_unless_all_names_match(weights, message):
    layer = dense()
    before = state(layer)
    result = layer.load_weights(weights, strict=True)
    assert not result.success
    assert result.loaded_parameters == []
    assert result.error_message == message
    assert state(layer) == before


def test_strict_allows_weights_that_the_mapping_leaves_out():
    layer = dense()
    weights = perfect(layer) | {"step": 3}
    result = layer.load_weights(weights, lambda name: None if name == "step" else name, strict=True)
    assert result == WeightLoadResult(success=True, loaded_parameters=["weight", "bias"], skipped_count=1)


@pytest.mark.parametrize("strict", [False, True])
def test_a_second_weight_for_a_parameter_fails(strict):
    layer = dense()
    before = state(layer)
    weights = {"weight": np.ones((3, 2)), "bias": [1, 2], "bias_2": [3, 4]}
    result = layer.load_weights(weights, lambda name: name.removesuffix("_2"), strict=strict)
    assert not result.success
    assert result.failed_parameters == [("bias", "a second weight, 'bias_2', maps to it")]
    if strict:
        assert state(layer) == before
    else:
        assert_holds(layer, {"bias": [1, 2]})


def test_a_failing_weight_leaves_room_for_a_second_one():
    layer = dense()
    result = layer.load_weights({"x": [1, 2, 3], "y": [1, 2]}, lambda name: "bias")
    assert result.loaded_parameters == ["bias"]
    assert result.failed_count == 1
    np.testing.assert_array_equal(layer.bias, [1, 2])


def test_a_weight_is_copied():
    layer, weight = dense(), np.ones(2)
    layer.load_weights({"bias": weight})
    weight += 1
    np.testing.assert_array_equal(layer.bias, [1, 1])


def test_weights_are_cast_to_the_dtype_of_the_layer():
    layer = dense(np.float32)
    layer.load_weights({"bias": np.array([1, 2], np.int8), "weight": np.full((3, 2), 0.1)}, strict=True)
    assert {array.dtype for array in layer.named_parameters().values()} == {np.dtype(np.float32)}
    assert_holds(layer, {"bias": [1, 2], "weight": np.full((3, 2), 0.1, np.float32)})


names = st.sampled_from(["weight", "bias", "other"])
shapes = st.sampled_from([(3, 2), (2,), (2, 3), ()])


@given(weights=st.dictionaries(names, shapes.map(np.ones)))
def test_strict_loading_succeeds_exactly_where_validation_finds_nothing_wrong(weights):
    layer = dense()
    found = layer.validate_weights(weights)
    result = layer.load_weights(weights, strict=True)
    assert result.success == (found.is_complete and not found.unmatched_weights)


@given(weights=st.dictionaries(names, shapes.map(np.ones)))
def test_loading_agrees_with_validation(weights):
    layer = dense()
    found = layer.validate_weights(weights)
    result = layer.load_weights(weights)
    misfits = [name for name, _, _ in found.shape_mismatches]
    assert result.loaded_parameters == [name for name in found.matched if name not in misfits]
    assert [name for name, _ in result.failed_parameters] == misfits
    assert result.skipped_count == len(found.unmatched_weights)


def test_weights_of_one_adapter_load_into_another_kind():
    source, target = standard(), DyLoRAAdapter(DenseLayer(3, 2, rng=5), 1, [1], rng=5)
    source.lora_layer.matrix_b[...] = 1.0
    assert target.load_weights(source.named_parameters(frozen=True), strict=True).success
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(target.predict(x), source.predict(x))


def test_arrays_of_the_layer_itself_may_change_places():
    layer = Sequential([DenseLayer(2, 2, rng=0), DenseLayer(2, 2, rng=1)])
    first, second = (inner.get_weights() for inner in layer.layers)
    live = {name: array for name, array in layer.named_parameters().items() if name.endswith("weight")}
    layer.load_weights(live, {"0.weight": "1.weight", "1.weight": "0.weight"}.get)
    assert_holds(layer, {"0.weight": second, "1.weight": first})


class CountedName(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedName.compared += 1
        return str.__eq__(self, other)


def test_the_work_grows_with_the_number_of_names_and_not_with_its_square():
    layer = Sequential([DenseLayer(1, 1) for _ in range(50)])
    names = [CountedName(name) for name in layer.named_parameters()]
    assert layer.validate_weights(names).is_complete
    assert 0 < CountedName.compared <= 10 * len(names)
