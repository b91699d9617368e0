"""What every layer promises, adapters included."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import ArgumentError, InvalidOperationError, Layer, NotSupportedError, load_layer
from lora_np.base import listeners, parameter_of
from lora_np.run import Run
from lora_np.testing import check_gradients, numerical_gradient
from tests.kinds import batch, bits, build, randomised, snapshot

COPIES = {
    "clone": lambda layer: layer.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "file": lambda layer: load_layer(saved(layer)),
}


def saved(layer):
    file = io.BytesIO()
    layer.serialize(file)
    file.seek(0)
    return file


def backward(layer, x, dy):
    """One pass: the output, the input gradient, and a copy of the parameter gradients."""
    y = layer.forward(x)
    dx = layer.backward(dy)
    return y, dx, bits(layer.gradients)


def flat_gradient(layer, x, dy):
    backward(layer, x, dy)
    return layer.get_parameter_gradients()


def all_arrays(layer):
    return layer.named_parameters(frozen=True)


# ---------------------------------------------------------------- gradients


def leaves_gradients_out(layer):
    """Whether one rank trains one block of components, and leaves the rest of the true gradient out."""
    return any(getattr(listener, "mode", "full") == "frozen" for listener in listeners(layer).values())


def test_gradients_are_those_of_the_function(layer, x):
    check_gradients(layer, x, method="complex", active_only=leaves_gradients_out(layer), rtol=1e-10)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 3)])
def test_gradients_with_other_leading_axes(layer, shape):
    x = batch(*shape, layer.input_size, seed=3)  # with which no relu is zero for every row
    check_gradients(layer, x, method="complex", directions=True, active_only=leaves_gradients_out(layer), rtol=1e-10)


def test_gradients_that_are_not_requested_are_not_returned(layer, x, dy):
    _, cache = layer.apply(x, Run())
    dx, gradients = layer.vjp(dy, cache)
    no_dx, same_gradients = layer.vjp(dy, cache, inputs=False)
    same_dx, no_gradients = layer.vjp(dy, cache, parameters=False)
    assert no_dx is None
    assert no_gradients == {}
    assert_array_equal(same_dx, dx)
    assert bits(same_gradients) == bits(gradients)


def test_an_input_gradient_that_nobody_needs_is_not_given(layer, x, dy):
    layer.eval()
    _, _, gradients = backward(layer, x, dy)
    layer.forward(x)
    assert layer.backward(dy, need_input_grad=False) is None
    assert bits(layer.gradients) == gradients
    assert sorted(layer.gradients) == sorted(layer.vjp(dy, layer.apply(x, Run())[1])[1])


def test_a_parameter_is_found_by_name(layer):
    for frozen in (False, True):
        named = layer.named_parameters(frozen=frozen)
        for name in [*layer.named_parameters(frozen=True), "", ".", "weight.", "base.lora", "nothing"]:
            assert parameter_of(layer, name, frozen=frozen) is named.get(name)


def test_gradients_are_sums_over_rows(layer, x, dy):
    layer.eval()
    penalty = flat_gradient(layer, x, 0 * dy)
    together = flat_gradient(layer, x, dy) - penalty
    separate = [flat_gradient(layer, row, row_dy) - penalty for row, row_dy in zip(x, dy, strict=True)]
    assert_allclose(together, sum(separate), rtol=1e-12, atol=1e-13)


def test_a_second_backward_replaces_the_gradients(layer, x, dy):
    layer.eval()
    _, _, expected = backward(layer, x, dy)
    layer.backward(2 * dy)
    layer.backward(dy)
    assert bits(layer.gradients) == expected


def test_the_flat_gradient_is_aligned_with_the_flat_parameters(layer, x, dy):
    layer.eval()
    gradient, twin = flat_gradient(layer, x, dy), layer.clone()

    def objective(vector):
        twin.set_parameters(vector)
        return (dy * twin.predict(x)).sum() + twin.compute_auxiliary_loss()

    expected = numerical_gradient(objective, layer.get_parameters(), method="central")
    trained = gradient != 0 if leaves_gradients_out(layer) else ...
    assert_allclose(gradient[trained], expected[trained], rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- shapes and dtypes


def test_one_row_needs_no_axis(layer, x, dy):
    layer.eval()
    y, dx, _ = backward(layer, x, dy)
    row_y, row_dx, _ = backward(layer, x[0], dy[0])
    assert row_y.shape == (layer.output_size,)
    assert row_dx.shape == (layer.input_size,)
    assert_allclose(row_y, y[0], rtol=1e-12)
    assert_allclose(row_dx, dx[0], rtol=1e-12)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_a_batch_without_rows(layer, shape):
    layer.eval()
    penalty = flat_gradient(layer, batch(4, layer.input_size), np.zeros((4, layer.output_size)))
    y, dx, _ = backward(layer, np.empty((*shape, layer.input_size)), np.empty((*shape, layer.output_size)))
    assert y.shape == (*shape, layer.output_size)
    assert dx.shape == (*shape, layer.input_size)
    assert_array_equal(layer.get_parameter_gradients(), penalty)
    layer.update_parameters(0.5)


def test_float32_is_kept(name, x, dy):
    layer = build(name, np.float32).eval()
    y, dx, _ = backward(layer, x, dy)
    gradients = list(layer.gradients.values())
    flat_gradient = layer.get_parameter_gradients()
    layer.update_parameters(0.1)
    found = [y, dx, layer.predict(x), *gradients, flat_gradient, layer.get_parameters(), *all_arrays(layer).values()]
    assert {array.dtype for array in found} == {np.dtype(np.float32)}


def arrays_in(value):
    """Every array inside a cache."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from arrays_in(item)


def test_no_intermediate_array_is_wider_than_float32(name, x):
    layer = build(name, np.float32)
    _, cache = layer.apply(x.astype(np.float32), layer.new_run(x, training=True))
    assert {array.dtype for array in arrays_in(cache) if array.dtype.kind == "f"} <= {np.dtype(np.float32)}


def test_float32_and_float64_agree(name, x, dy):
    single, double = build(name, np.float32).eval(), build(name).eval()
    for found, expected in zip(backward(single, x, dy)[:2], backward(double, x, dy)[:2], strict=True):
        assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("integers", [np.int8, np.uint16, np.int64, bool])
def test_integers_are_cast(layer, integers):
    x = np.arange(2 * layer.input_size).reshape(2, -1).astype(integers)
    assert_array_equal(layer.predict(x), layer.predict(x.astype(float)))


def test_lists_are_accepted(layer, x):
    assert_array_equal(layer.predict(x.tolist()), layer.predict(x))


# ---------------------------------------------------------------- refusals

A_FEW = ["dense-tanh", "lora", "sequential-of-adapters"]

NOT_AN_INPUT = {
    "scalar": (1.0, r"\(\)"),
    "one-too-many": (np.ones((2, 6)), r"\(2, 6\)"),
    "one-too-few": (np.ones((2, 4)), r"\(2, 4\)"),
    "transposed": (np.ones((5, 2)), r"\(5, 2\)"),
    "objects": (np.array([[object()] * 5]), "object"),
    "complex": (np.ones((2, 5), complex), "complex128"),
    "strings": (np.array([["a"] * 5]), "<U1"),
    "dates": (np.zeros((2, 5), "datetime64[s]"), "datetime64"),
    "none": (None, "None"),
    "ragged": ([[1.0] * 5, [1.0]], "inhomogeneous"),
}


@pytest.mark.parametrize("method", ["predict", "forward", "__call__"])
def test_trap_7_a_wrong_feature_size_is_refused(layer, method):
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=rf"^input must have shape \(\.\.\., {layer.input_size}\), got \(2, 7\)"):
        getattr(layer, method)(np.ones((2, 7)))
    assert snapshot(layer) == before


@pytest.mark.parametrize("name", A_FEW, indirect=True)
@pytest.mark.parametrize(("value", "shown"), NOT_AN_INPUT.values(), ids=NOT_AN_INPUT)
@pytest.mark.parametrize("method", ["predict", "forward"])
def test_bad_input_is_refused(layer, x, dy, method, value, shown):
    backward(layer, x, dy)
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=rf"^input must .*{shown}"):
        getattr(layer, method)(value)
    assert snapshot(layer) == before
    layer.backward(dy)


NOT_A_GRADIENT = {
    "scalar": (1.0, r"\(\)"),
    "broadcastable": (np.ones((1, 1)), r"\(1, 1\)"),
    "fewer-rows": (np.ones((3, 2)), r"\(3, 2\)"),
    "complex": (np.ones((4, 3), complex), "complex128"),
    "objects": (np.array([[object()]]), "object"),
    "strings": (np.array([["a"]]), "<U1"),
    "none": (None, "None"),
}


@pytest.mark.parametrize("name", A_FEW, indirect=True)
@pytest.mark.parametrize(("value", "shown"), NOT_A_GRADIENT.values(), ids=NOT_A_GRADIENT)
def test_a_bad_output_gradient_is_refused(layer, x, dy, value, shown):
    backward(layer, x, dy)
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=rf"^output_gradient must .*{shown}"):
        layer.backward(value)
    assert snapshot(layer) == before


def test_the_error_shows_the_refused_and_the_expected_gradient_shape(layer, x):
    layer.forward(x)
    with pytest.raises(ArgumentError, match=rf"shape \(4, {layer.output_size}\), got \(9, 9\)"):
        layer.backward(np.ones((9, 9)))


NOT_A_RATE = [np.nan, np.inf, -np.inf, "fast", None, 1j, np.ones((2, 2)), [[1], [2, 3]]]


@pytest.mark.parametrize("name", A_FEW, indirect=True)
@pytest.mark.parametrize("rate", NOT_A_RATE, ids=repr)
def test_a_bad_learning_rate_is_refused(layer, x, dy, rate):
    backward(layer, x, dy)
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=r"^(learning_rate|parameters) must"):
        layer.update_parameters(rate)
    assert snapshot(layer) == before


NOT_PARAMETERS = [
    lambda n: np.ones(n + 1),
    lambda n: np.ones((n, 1)),
    lambda n: np.ones(n, complex),
    lambda n: [None] * max(n, 1),
    lambda n: None,
]


@pytest.mark.parametrize("name", A_FEW, indirect=True)
@pytest.mark.parametrize("wrong", NOT_PARAMETERS)
def test_bad_parameters_are_refused(layer, wrong):
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=r"^parameters must"):
        layer.set_parameters(wrong(layer.parameter_count))
    assert snapshot(layer) == before


# ---------------------------------------------------------------- memory: forward, backward, step


def test_backward_needs_a_forward(layer, dy):
    with pytest.raises(InvalidOperationError, match="forward"):
        layer.backward(dy)


@pytest.mark.parametrize("forget", ["reset_state", "close"])
def test_a_reset_forgets_the_pass_and_the_gradients(layer, x, dy, forget):
    backward(layer, x, dy)
    getattr(layer, forget)()
    assert not layer.gradients
    with pytest.raises(InvalidOperationError, match="forward"):
        layer.backward(dy)


def test_a_context_ends_with_a_reset(layer, x, dy):
    with layer as entered:
        backward(layer, x, dy)
    assert entered is layer
    assert not layer.gradients
    layer.close()
    layer.close()
    assert layer.forward(x).shape == dy.shape


def assert_no_step_is_possible(layer):
    """A step is refused; of a layer without parameters, it does nothing."""
    before = snapshot(layer)
    if layer.supports_training:
        with pytest.raises(InvalidOperationError, match="backward"):
            layer.update_parameters(0.1)
    else:
        layer.update_parameters(0.1)
    assert snapshot(layer) == before


def test_a_step_needs_gradients(layer, x):
    layer.forward(x)
    assert_no_step_is_possible(layer)


def test_a_step_uses_the_gradients_up(layer, x, dy):
    backward(layer, x, dy)
    layer.update_parameters(0.1)
    assert not layer.gradients
    assert not layer.get_parameter_gradients().any()
    assert_no_step_is_possible(layer)


def test_cleared_gradients_are_gone(layer, x, dy):
    backward(layer, x, dy)
    layer.clear_gradients()
    assert not layer.gradients
    assert_no_step_is_possible(layer)


def test_a_step_moves_exactly_what_has_a_gradient(layer, x, dy):
    backward(layer, x, dy)
    expected = {name: array.copy() for name, array in all_arrays(layer).items()}
    for name, gradient in layer.gradients.items():
        expected[name] += gradient * -0.25
    layer.update_parameters(0.25)
    assert bits(all_arrays(layer)) == bits(expected)


def test_only_trainable_parameters_have_gradients(layer, x, dy):
    backward(layer, x, dy)
    trainable = layer.named_parameters()
    assert set(layer.gradients) <= set(trainable)
    assert all(gradient.shape == trainable[name].shape for name, gradient in layer.gradients.items())


def test_the_flat_gradient_holds_every_gradient_in_order(layer, x, dy):
    backward(layer, x, dy)
    parts = [layer.gradients.get(name, np.zeros(a.shape)).ravel() for name, a in layer.named_parameters().items()]
    assert_array_equal(layer.get_parameter_gradients(), np.concatenate([np.empty(0), *parts]))


def test_predict_stores_nothing(layer, x, dy):
    layer.predict(x)
    with pytest.raises(InvalidOperationError):
        layer.backward(dy)


def test_predict_keeps_a_pending_pass(layer, x, dy):
    layer.eval()
    _, dx, gradients = backward(layer, x, dy)
    layer.forward(x)
    layer.predict(2 * x[:2])
    assert_array_equal(layer.backward(dy), dx)
    assert bits(layer.gradients) == gradients


def test_predict_draws_no_random_number(layer, x):
    layer.train()
    before = snapshot(layer)
    assert_array_equal(layer.predict(x), layer.predict(x))
    assert snapshot(layer) == before


def test_evaluation_mode_draws_no_random_number(layer, x, dy):
    layer.eval()
    before = snapshot(layer)
    first, second = layer.forward(x), layer.forward(x)
    layer.backward(dy)
    layer.clear_gradients()
    assert_array_equal(first, second)
    assert_array_equal(first, layer.predict(x))
    assert snapshot(layer) == before


def test_predict_is_safe_from_many_threads(layer):
    inputs = [batch(3, layer.input_size, seed=seed) for seed in range(40)]
    serial = [layer.predict(x).tobytes() for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        parallel = [y.tobytes() for y in pool.map(layer.predict, inputs)]
    assert parallel == serial


# ---------------------------------------------------------------- whose arrays are whose


def test_arguments_are_never_written_to(layer, x, dy):
    before = x.copy(), dy.copy()
    x.setflags(write=False)
    dy.setflags(write=False)
    layer.predict(x)
    backward(layer, x, dy)
    layer.update_parameters(0.1)
    assert_array_equal(x, before[0])
    assert_array_equal(dy, before[1])


def test_set_parameters_copies_its_argument(layer):
    vector = np.arange(layer.parameter_count, dtype=float)
    layer.set_parameters(vector)
    vector += 1
    assert_array_equal(layer.get_parameters(), vector - 1)


@pytest.mark.parametrize("spoilt", ["x", "y", "dy", "dx"])
def test_the_caller_may_overwrite_its_buffers(layer, x, dy, spoilt):
    layer.eval()
    _, expected_dx, expected = backward(layer, x.copy(), dy)
    y = layer.forward(x)
    for name, buffer in {"x": x, "y": y}.items():
        if name == spoilt:
            buffer[...] = np.nan
    dx = layer.backward(dy)
    assert_array_equal(dx, expected_dx)
    for name, buffer in {"dy": dy, "dx": dx}.items():
        if name == spoilt:
            buffer[...] = np.nan
    assert bits(layer.gradients) == expected


def test_results_never_share_memory_with_anything(layer, x, dy):
    kept = [x, dy, *all_arrays(layer).values()]
    y, dx, _ = backward(layer, x, dy)
    prediction, flat, flat_gradient = layer.predict(x), layer.get_parameters(), layer.get_parameter_gradients()
    for result in (y, dx, prediction, flat, flat_gradient, *layer.gradients.values()):
        assert not any(np.shares_memory(result, array) for array in kept)
    assert not np.shares_memory(y, prediction)


def test_arrays_keep_their_identity(layer, x, dy):
    before = all_arrays(layer)
    backward(layer, x, dy)
    layer.update_parameters(0.1)
    layer.set_parameters(layer.get_parameters() + 1)
    layer.load_weights({name: np.zeros(array.shape) for name, array in before.items()})
    after = all_arrays(layer)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert not any(array.any() for array in before.values())


# ---------------------------------------------------------------- the flat vector


def test_the_flat_vector_round_trips(layer, x):
    layer.eval()
    vector, y = layer.get_parameters(), layer.predict(x)
    layer.set_parameters(np.zeros(layer.parameter_count))
    layer.set_parameters(vector)
    assert vector.shape == (layer.parameter_count,)
    assert_array_equal(layer.get_parameters(), vector)
    assert_array_equal(layer.predict(x), y)


def test_the_flat_vector_holds_the_arrays_row_by_row(layer):
    rows = [row for array in layer.named_parameters().values() for row in np.atleast_2d(array)]
    assert_array_equal(layer.get_parameters(), np.concatenate([np.empty(0), *rows]))


def test_trap_6_the_flat_vector_is_never_stale(layer, x, dy):
    before = layer.get_parameters()
    backward(layer, x, dy)
    step = layer.get_parameter_gradients() * -0.5
    layer.update_parameters(0.5)
    assert_array_equal(layer.get_parameters(), before + step)


def test_an_array_instead_of_a_learning_rate_replaces_all_parameters(layer):
    vector = np.arange(layer.parameter_count, dtype=float)
    layer.update_parameters(vector)
    assert_array_equal(layer.get_parameters(), vector)


# ---------------------------------------------------------------- updates by name

WRONG_UPDATES = {
    "another-shape": lambda right: np.ones((*right.shape, 1)),
    "broadcastable": lambda right: np.ones(()),
    "complex": lambda right: right * 1j,
    "strings": lambda right: np.full(right.shape, "a"),
    "scalar": lambda right: 1.0,
    "none": lambda right: None,
}


@pytest.mark.parametrize("wrong", WRONG_UPDATES.values(), ids=WRONG_UPDATES)
def test_updates_are_all_or_nothing(layer, wrong):
    updates = {name: np.ones(array.shape) for name, array in layer.named_parameters().items()} or {"nobody": np.ones(2)}
    last = list(updates)[-1]
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match=last):
        layer.apply_updates(updates | {last: wrong(updates[last])})
    assert snapshot(layer) == before


def test_an_update_of_an_unknown_array_is_refused(layer):
    updates = {name: np.ones(array.shape) for name, array in layer.named_parameters().items()}
    before = snapshot(layer)
    with pytest.raises(ArgumentError, match="'nobody'"):
        layer.apply_updates(updates | {"nobody": np.ones(2)})
    assert snapshot(layer) == before


def test_updates_of_frozen_arrays_are_refused(layer):
    before = snapshot(layer)
    for name in all_arrays(layer).keys() - layer.named_parameters().keys():
        with pytest.raises(ArgumentError, match=name):
            layer.apply_updates({name: np.zeros(layer.get_parameter_shape(name))})
    assert snapshot(layer) == before


# ---------------------------------------------------------------- mode


def test_a_new_layer_is_in_training_mode(layer):
    assert all(inner.is_training for inner in layer.walk().values())


@pytest.mark.parametrize(
    "set_mode",
    [
        lambda layer, mode: layer.train(mode),
        lambda layer, mode: layer.train() if mode else layer.eval(),
        lambda layer, mode: layer.set_training_mode(mode),
        lambda layer, mode: setattr(layer, "is_training", mode),
    ],
    ids=["train(mode)", "train/eval", "set_training_mode", "is_training"],
)
def test_the_mode_reaches_every_layer_inside(layer, set_mode):
    for mode in (False, True):
        set_mode(layer, mode)
        assert {inner.is_training for inner in layer.walk().values()} == {mode}


def test_train_and_eval_return_the_layer(layer):
    assert layer.train() is layer
    assert layer.eval() is layer


# ---------------------------------------------------------------- copies and files


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_same_arrays_and_outputs(layer, x, copied):
    twin = copied(layer)
    assert type(twin) is type(layer)
    assert bits(all_arrays(twin)) == bits(all_arrays(layer))
    assert_array_equal(twin.predict(x), layer.predict(x))
    assert list(twin.named_parameters()) == list(layer.named_parameters())


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_independent(layer, x, dy, copied):
    twin = copied(layer)
    before = snapshot(layer)
    for array in all_arrays(twin).values():
        array += 1
    twin.eval()
    assert snapshot(layer) == before
    mine = list(all_arrays(layer).values())
    assert not any(np.shares_memory(array, other) for array in all_arrays(twin).values() for other in mine)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_starts_without_a_pending_pass(layer, x, dy, copied):
    backward(layer, x, dy)
    twin = copied(layer)
    assert not twin.gradients
    with pytest.raises(InvalidOperationError):
        twin.backward(dy)
    layer.backward(dy)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_trains_like_the_original(layer, x, dy, copied):
    twin = copied(layer)
    for each in (layer, twin):
        each.eval()
        backward(each, x, dy)
        each.update_parameters(0.1)
    assert bits(all_arrays(twin)) == bits(all_arrays(layer))


def test_a_clone_has_a_name_of_its_own(layer):
    names = {layer.layer_name, layer.clone().layer_name, layer.clone().layer_name}
    assert len(names) == 3
    assert all(name.startswith(type(layer).__name__ + "_") for name in names)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_brings_everything_back(name, dtype):
    layer = build(name, dtype)
    blank = randomised(layer.clone(), seed=9)
    blank.deserialize(saved(layer))
    assert bits(all_arrays(blank)) == bits(all_arrays(layer))
    assert load_layer(saved(layer)).dtype == dtype


def test_a_loaded_layer_reads_its_own_file(layer):
    file = saved(layer)
    loaded = load_layer(file)
    randomised(loaded, seed=9).deserialize(file)
    assert saved(loaded).getvalue() == file.getvalue()


def test_a_file_drops_the_pending_pass(layer, x, dy):
    backward(layer, x, dy)
    layer.deserialize(saved(layer))
    assert not layer.gradients


# ---------------------------------------------------------------- description


def test_repr_shows_type_sizes_and_parameters(layer):
    text = repr(layer)
    assert text.startswith(f"{type(layer).__name__}({layer.input_size} -> {layer.output_size}, ")
    assert f"{layer.parameter_count:,} " in text


def test_diagnostics_are_strings(layer):
    found = layer.get_diagnostics()
    assert found["layer.type"] == type(layer).__name__
    assert found["layer.input_shape"] == f"({layer.input_size},)"
    assert found["layer.output_shape"] == f"({layer.output_size},)"
    assert found["layer.parameter_count"] == str(layer.parameter_count)
    assert found["layer.supports_training"] == str(layer.parameter_count > 0)
    assert found["layer.activation"] == (", ".join(layer.get_activation_types()) or "none")
    assert all(isinstance(value, str) for value in found.values())


def test_shapes_are_those_of_a_sample(layer):
    assert layer.get_input_shape() == (layer.input_size,)
    assert layer.get_output_shape() == (layer.output_size,)


def test_estimates_are_positive_and_do_not_change_the_layer(layer):
    before = snapshot(layer)
    assert layer.estimate_flops() >= 0
    assert layer.estimate_activation_memory() >= 8 * layer.input_size
    assert layer.is_initialized
    assert isinstance(layer, Layer)
    assert snapshot(layer) == before


@pytest.mark.parametrize("wrong", [5, None, "base", ["base"], {"none": 3}])
def test_children_are_replaced_by_name_only(layer, wrong):
    before, error = snapshot(layer), ArgumentError if layer.children() else NotSupportedError
    for method in (layer.with_children, getattr(layer, "replace", layer.with_children)):
        with pytest.raises(error, match=r"changed must|does not implement"):
            method(wrong)
    assert snapshot(layer) == before
