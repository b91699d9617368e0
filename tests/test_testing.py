"""The gradient checker passes what is right, and finds each wrong gradient that is planted."""

import copy

import numpy as np
import pytest

from lora_np import (
    ActivationLayer,
    ArgumentError,
    ArgumentNullError,
    BertModel,
    Composite,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    GradientError,
    Layer,
    LoRALayer,
    MultiLoRAAdapter,
    Regularization,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    apply_lora,
    find,
    gelu_exact,
    relu,
    softmax,
    tanh,
)
from lora_np.base import prefixed
from lora_np.run import Run
from lora_np.testing import check_gradients, gradient_errors
from tests.kinds import randomised

X = np.random.default_rng(0).standard_normal((3, 4))


def dylora(**keywords):
    return DyLoRAAdapter(DenseLayer(4, 3, rng=0), 3, [1, 2, 3], rng=0, **keywords)


def multilora(**keywords):
    adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=0), "a", 2, rng=0, **keywords)
    adapter.add_task("b", 1)
    return adapter


BUILDERS = {
    "dense": lambda: DenseLayer(4, 3, tanh, rng=0),
    "dense with a penalty": lambda: DenseLayer(4, 3, regularization=Regularization(l1=0.5, l2=0.25), rng=0),
    "fully connected": lambda: FullyConnectedLayer(4, 3, gelu_exact, rng=0),
    "activation": lambda: ActivationLayer(4, softmax),
    "lora": lambda: LoRALayer(4, 3, 2, 3.0, rng=0),
    "standard": lambda: StandardLoRAAdapter(DenseLayer(4, 3, tanh, rng=0), 2, rng=0),
    "standard on a trained base": lambda: StandardLoRAAdapter(DenseLayer(4, 3, tanh, rng=0), 2, 0.5, False, rng=0),
    "dylora": dylora,
    "multilora": multilora,
    "dora": lambda: DoRAAdapter(FullyConnectedLayer(4, 3, rng=0), 2, freeze_base_layer=False, rng=0),
    "vera": lambda: VeRAAdapter(DenseLayer(4, 3, rng=0), 2, rng=0),
    "stack": lambda: Sequential([DenseLayer(4, 5, relu, rng=0), StandardLoRAAdapter(DenseLayer(5, 3, rng=1), 2, rng=0)]),
}


def filled(build):
    """A layer whose every array is random: where B = 0, the gradient of A would be zero."""
    layer, random = build(), np.random.default_rng(1)
    for array in layer.named_parameters(frozen=True).values():
        array[...] = random.standard_normal(array.shape)
    return layer


LAYERS = {name: filled(build) for name, build in BUILDERS.items()}


def with_gradients(layer):
    """The arrays that one pass gives gradients to, the input first."""
    y, cache = layer.apply(X, Run())
    return ["input", *layer.vjp(y, cache)[1]]


ARRAYS = [(name, array) for name, layer in LAYERS.items() for array in with_gradients(layer)]

MODES = {"elements": {}, "directions": {"directions": True}, "central": {"method": "central"}}

each = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
each_array = pytest.mark.parametrize(
    ("layer", "array"),
    [(LAYERS[name], array) for name, array in ARRAYS],
    ids=[f"{name}: {array}" for name, array in ARRAYS],
)


class Tampered(Layer):
    """A layer whose gradients, that of the input among them, are changed by a function of their dictionary."""

    def __init__(self, inner, change):
        super().__init__(inner.input_size, inner.output_size, inner.dtype)
        self.inner, self.change = inner, change

    def children(self):
        return {"inner": self.inner}

    def apply(self, x, run):
        return self.inner.apply(x, run)

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        dx, gradients = self.inner.vjp(dy, cache, parameters=parameters, inputs=inputs)
        changed = {"input": dx} | prefixed("inner", gradients)
        self.change(changed)
        return changed.pop("input"), changed

    def estimate_flops(self):
        return self.inner.estimate_flops()


def tampered(layer, array, function):
    """The layer with one gradient changed; the array's name in the errors, too."""
    name = array if array == "input" else f"inner.{array}"
    return Tampered(layer, lambda gradients: gradients.update({name: function(gradients[name])})), name


class Custom(Layer):
    """A weighted sum of a function of the inputs: a user's own layer."""

    parameter_names = ("weight",)

    def __init__(self, function, slope):
        super().__init__(4, 2)
        self.function, self.slope = function, slope
        self.weight = np.random.default_rng(0).standard_normal((4, 2))
        self.calls = []

    def apply(self, x, run):
        self.calls.append(x)
        return self.function(x) @ self.weight, (x,)

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        (x,) = cache
        return dy @ self.weight.T * self.slope(x), {"weight": self.function(x).T @ dy}

    def estimate_flops(self):
        return 0


NOT_ANALYTIC = {
    "abs": (np.abs, np.sign),
    "real part": (lambda x: x.real**2, lambda x: 2 * x),
    "no complex version": (lambda x: np.logaddexp(0, x), lambda x: 1 / (1 + np.exp(-x))),
}

each_not_analytic = pytest.mark.parametrize(("function", "slope"), NOT_ANALYTIC.values(), ids=NOT_ANALYTIC.keys())


# ---------------------------------------------------------------- what is right passes


@each
@each_mode
def test_right_gradients_pass(layer, mode):
    errors = check_gradients(layer, X, **mode)
    assert set(errors) == {"input", *layer.named_parameters()}
    assert max(errors.values()) < (1e-6 if mode.get("method") else 1e-10)


@each
@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4), (0, 4)], ids=str)
def test_inputs_may_have_any_leading_axes(layer, shape):
    check_gradients(layer, np.random.default_rng(2).standard_normal(shape))


@pytest.mark.parametrize("name", ["dense", "dense with a penalty", "standard", "dora", "vera", "stack"])
def test_a_float32_layer_is_checked_in_float64(name):
    def build():
        layer = BUILDERS[name]()
        for inner in layer.walk().values():
            inner.dtype = np.dtype(np.float32)
            for array in inner.parameter_names:
                setattr(inner, array, getattr(inner, array).astype(np.float32))
        return layer

    layer = filled(build)
    assert max(check_gradients(layer, X).values()) < 1e-10
    assert {array.dtype for array in layer.named_parameters(frozen=True).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("mode", ["full", "frozen"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_training_pass_at_a_given_rank_passes(mode, rank):
    layer = filled(lambda: dylora(mode=mode))
    check_gradients(layer, X, training=True, rank=rank, active_only=True)


@each_mode
def test_random_draws_are_the_same_in_every_evaluation(mode):
    for seed in range(5):
        layer = filled(lambda seed=seed: DyLoRAAdapter(DenseLayer(4, 3, rng=0), 3, [1, 2, 3], rng=seed))
        check_gradients(layer, X, training=True, **mode)


@each_not_analytic
def test_layers_that_are_not_analytic_pass_by_central_differences(function, slope):
    layer = Custom(function, slope)
    for method in ("auto", "central"):
        assert max(check_gradients(layer, X, method=method).values()) < 1e-6


@each_not_analytic
def test_the_complex_step_refuses_layers_that_are_not_analytic(function, slope):
    with pytest.raises((ArgumentError, GradientError)):
        check_gradients(Custom(function, slope), X, method="complex")


@pytest.mark.parametrize("method", ["auto", "central"])
def test_a_type_error_of_the_layer_itself_is_not_hidden(method):
    def function(x):
        if not np.array_equal(x, X):
            raise TypeError("only this input")
        return x

    with pytest.raises(TypeError, match="only this input"):
        check_gradients(Custom(function, np.ones_like), X, method=method)


def test_a_real_output_for_a_complex_input_is_named():
    class Magnitude(Tampered):
        def apply(self, x, run):
            return np.abs(x), (x,)

        def vjp(self, dy, cache, *, parameters=True, inputs=True):
            return dy * np.sign(cache[0]), {}

    layer = Magnitude(ActivationLayer(4, tanh), None)
    with pytest.raises(ArgumentError, match=r"method must be 'central' .* complex numbers to real ones"):
        check_gradients(layer, X, method="complex")
    check_gradients(layer, X)


def test_directions_need_one_evaluation_for_each_array():
    def calls(**mode):
        layer = Custom(np.sin, np.cos)
        calls = layer.calls = Calls()
        check_gradients(layer, X, method="complex", **mode)
        return calls.number

    class Calls:
        """Counts, also for copies of the layer."""

        number = 0

        def append(self, x):
            self.number += 1

        def __deepcopy__(self, memo):
            return self

    assert calls() > X.size + 8
    assert calls(directions=True) <= 8


# ---------------------------------------------------------------- what is wrong does not


@each_array
@each_mode
def test_a_gradient_that_is_off_by_a_thousandth_is_found(layer, array, mode):
    wrong, name = tampered(layer, array, lambda gradient: gradient * 1.001)
    with pytest.raises(GradientError, match=f"{name} is off by"):
        check_gradients(wrong, X, **mode)


@each_array
def test_only_the_wrong_gradient_is_named(layer, array):
    wrong, name = tampered(layer, array, lambda gradient: gradient * 1.001)
    errors = gradient_errors(wrong, X)
    assert errors.pop(name) == pytest.approx(1e-3, rel=0.1)
    assert max(errors.values(), default=0) < 1e-10


@each_array
@each_mode
def test_one_wrong_element_is_found(layer, array, mode):
    def change(gradient):
        changed = gradient.copy()
        changed.flat[-1] += 1e-3 * np.abs(gradient).max()
        return changed

    wrong, name = tampered(layer, array, change)
    with pytest.raises(GradientError, match=f"{name} is off by"):
        check_gradients(wrong, X, **mode)


@each_array
@pytest.mark.parametrize("function", [np.zeros_like, np.negative], ids=["zero", "other sign"])
def test_a_gradient_that_is_zero_or_negative_is_found(layer, array, function):
    wrong, name = tampered(layer, array, function)
    with pytest.raises(GradientError, match=f"{name} is off by"):
        check_gradients(wrong, X)


@each_array
@each_mode
def test_nan_fails(layer, array, mode):
    def change(gradient):
        changed = gradient.copy()
        changed.flat[0] = np.nan
        return changed

    wrong, name = tampered(layer, array, change)
    with pytest.raises(GradientError, match=f"{name} is off by inf"):
        check_gradients(wrong, X, **mode)


# ---------------------------------------------------------------- vacuous checks


class WrongA(Composite):
    """An adapter in which the gradient of A is wrong by a factor of 3."""

    def __init__(self, adapter):
        super().__init__({"adapter": adapter}, adapter.input_size, adapter.output_size, adapter.dtype)

    def flow(self, x, run, call):
        return call("adapter", x), None

    def flow_vjp(self, dy, cache, back):
        return back("adapter", dy)

    def vjp(self, dy, cache, **choices):
        dx, gradients = super().vjp(dy, cache, **choices)
        return dx, {name: 3 * dp if name.endswith("matrix_a") else dp for name, dp in gradients.items()}


def with_a_wrong_gradient():
    return WrongA(StandardLoRAAdapter(DenseLayer(4, 3, rng=0), 2, rng=1))


@each_mode
def test_a_check_in_which_the_gradient_is_zero_is_vacuous(mode):
    new = with_a_wrong_gradient()  # its B is zero, so A has no gradient, right or wrong
    with pytest.raises(
        GradientError, match=r"nothing was checked for adapter\.lora\.matrix_a, because the gradient is zero"
    ):
        check_gradients(new, X, **mode)
    errors = check_gradients(new, X, allow_vacuous=True, **mode)
    assert [name for name, error in errors.items() if np.isnan(error)] == ["adapter.lora.matrix_a"]
    assert np.isnan(gradient_errors(new, X, **mode)["adapter.lora.matrix_a"])


@pytest.mark.parametrize("allow_vacuous", [True, False])
def test_the_same_bug_is_found_once_the_check_is_not_vacuous(allow_vacuous):
    with pytest.raises(GradientError, match=r"adapter\.lora\.matrix_a is off by 0\.67"):
        check_gradients(randomised(with_a_wrong_gradient()), X, allow_vacuous=allow_vacuous)


def test_zero_where_the_gradient_is_not_zero_is_wrong_and_not_vacuous():
    layer = DenseLayer(4, 3, rng=0)
    layer.vjp = lambda dy, cache, **_: (dy @ layer.weight.T, {"weight": np.zeros((4, 3)), "bias": dy.sum(0)})
    assert gradient_errors(DenseLayer(4, 3, rng=0), X)["weight"] < 1e-12
    with pytest.raises(GradientError, match="weight is off by 1"):
        check_gradients(layer, X, allow_vacuous=True)


def test_tasks_without_rows_and_inputs_without_rows_are_not_vacuous():
    adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=0), "a", 2, rng=1)
    adapter.add_task("b", 1)
    randomised(adapter)
    errors = check_gradients(adapter, X, tasks=["a"] * len(X))
    assert errors["tasks.b.matrix_a"] == 0  # `vjp` returns no gradient for it, and there is none
    assert set(check_gradients(adapter, np.empty((0, 4))).values()) == {0.0}


def test_sequence_models_are_checked_with_a_task_and_a_rank_for_each_sentence():
    sizes = {"vocab_size": 11, "max_position_embeddings": 5, "type_vocab_size": 1}
    heights = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    encoder = BertModel.new(sizes | heights | {"hidden_act": "gelu"}, dtype=float, rng=0)
    ids = np.array([[3, 5, 7, -1], [1, 2, -1, -1], [4, 4, 9, 10]])
    ranked = randomised(apply_lora(encoder, DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], rng=1))
    assert max(check_gradients(ranked, ids, rank=[1, 2, 1], directions=True, allow_vacuous=True).values()) < 1e-9
    tasked = randomised(apply_lora(encoder, MultiLoRAAdapter, default_task_name="a", default_rank=1, rng=1))
    for adapter in find(tasked, MultiLoRAAdapter).values():
        adapter.add_task("b", 2)
    randomised(tasked)
    errors = check_gradients(tasked, ids, tasks=["b", None, "a"], directions=True, allow_vacuous=True)
    assert sum(".b." in name for name, error in errors.items() if 0 < error < 1e-9) > 4


@each_array
def test_a_gradient_of_the_wrong_shape_is_found(layer, array):
    wrong, name = tampered(layer, array, lambda gradient: gradient[np.newaxis])
    with pytest.raises(GradientError, match=f"the gradient of {name} has shape"):
        check_gradients(wrong, X)


@each_array
@each_mode
def test_a_missing_gradient_is_found(layer, array, mode):
    if array == "input":
        wrong, name = tampered(layer, array, np.zeros_like)
    else:
        name = f"inner.{array}"
        wrong = Tampered(layer, lambda gradients: gradients.pop(name))
    with pytest.raises(GradientError, match=f"{name} is off by 1"):
        check_gradients(wrong, X, **mode)


@pytest.mark.parametrize("name", ["dense", "stack"])
def test_a_dropped_input_gradient_is_found(name):
    wrong, _ = tampered(LAYERS[name], "input", lambda gradient: None)
    with pytest.raises(GradientError, match="input"):
        check_gradients(wrong, X)


@pytest.mark.parametrize("extra", ["inner.base.weight", "inner.other", "other"])
def test_a_gradient_of_an_array_that_does_not_train_is_found(extra):
    wrong = Tampered(LAYERS["standard"], lambda gradients: gradients.update({extra: np.ones((4, 3))}))
    with pytest.raises(GradientError, match=f"returns gradients for arrays that do not train: {extra}"):
        check_gradients(wrong, X)


def test_an_array_called_input_does_not_hide_behind_the_input():
    class Named(Layer):
        parameter_names = ("input",)

        def __init__(self):
            super().__init__(4, 4)
            self.input = np.ones(4)

        def apply(self, x, run):
            return x * self.input, ()

        def vjp(self, dy, cache, *, parameters=True, inputs=True):
            return dy * self.input, {"input": np.full(4, 7.0)}

        def estimate_flops(self):
            return 4

    with pytest.raises((ArgumentError, GradientError), match="input"):
        check_gradients(Named(), X[0])


@pytest.mark.parametrize("array", ["tasks.b.matrix_a", "tasks.b.matrix_b"])
def test_a_gradient_of_a_task_that_is_not_present_is_found(array):
    layer = LAYERS["multilora"]
    wrong = Tampered(layer, lambda g: g.update({f"inner.{array}": 1e-3 * layer.named_parameters()[array]}))
    with pytest.raises(GradientError, match=f"{array} is off by"):
        check_gradients(wrong, X)


def test_a_small_gradient_beside_a_large_one_is_checked_too():
    layer = filled(lambda: StandardLoRAAdapter(DenseLayer(4, 3, rng=0), 2, 1e-6, freeze_base_layer=False, rng=0))
    check_gradients(layer, X)
    wrong, name = tampered(layer, "lora.matrix_a", np.zeros_like)
    with pytest.raises(GradientError, match=f"{name} is off by"):
        check_gradients(wrong, X)


def test_a_forgotten_penalty_is_found():
    layer = LAYERS["dense with a penalty"]
    wrong, name = tampered(layer, "weight", lambda dW: dW - layer.regularization.gradient(layer.weight))
    with pytest.raises(GradientError, match=f"{name} is off by"):
        check_gradients(wrong, X)


def test_a_norm_treated_as_a_constant_is_found():
    layer = filled(lambda: DoRAAdapter(DenseLayer(4, 3, rng=0), 2, norm_gradient=False, rng=0))
    with pytest.raises(GradientError, match=r"lora\.matrix_a is off by .*lora\.matrix_b is off by"):
        check_gradients(layer, X)


@each_not_analytic
def test_wrong_gradients_of_layers_that_are_not_analytic_are_found(function, slope):
    with pytest.raises(GradientError, match="input is off by"):
        check_gradients(Custom(function, lambda x: 1.001 * slope(x)), X)


@pytest.mark.parametrize("array", ["input", "lora.matrix_a", "lora.matrix_b"])
def test_wrong_gradients_of_a_random_training_pass_are_found(array):
    wrong, name = tampered(LAYERS["dylora"], array, lambda gradient: 1.001 * gradient)
    with pytest.raises(GradientError, match=f"{name} is off by"):
        check_gradients(wrong, X, training=True)


# ---------------------------------------------------------------- the trained part alone


def frozen_mode():
    """A pass that trains component 2 of 3 alone, though component 1 takes part."""
    return filled(lambda: dylora(mode="frozen"))


@each_mode
def test_without_active_only_a_gradient_left_out_on_purpose_is_an_error(mode):
    with pytest.raises(GradientError, match=r"lora\.matrix_a"):
        check_gradients(frozen_mode(), X, training=True, rank=2, **mode)


@each_mode
def test_active_only_compares_the_trained_part(mode):
    check_gradients(frozen_mode(), X, training=True, rank=2, active_only=True, **mode)


@each_mode
@pytest.mark.parametrize("array", ["lora.matrix_a", "lora.matrix_b"])
def test_active_only_still_finds_an_error_in_the_trained_part(array, mode):
    wrong, name = tampered(frozen_mode(), array, lambda gradient: 1.001 * gradient)
    with pytest.raises(GradientError, match=f"{name} is off by"):
        check_gradients(wrong, X, training=True, active_only=True, **mode)


@each_mode
@pytest.mark.parametrize("array", ["lora.matrix_a", "lora.matrix_b"])
def test_active_only_requires_exact_zeros_elsewhere(array, mode):
    wrong, name = tampered(frozen_mode(), array, lambda gradient: gradient + 1e-300)
    with pytest.raises(GradientError, match=f"{name} is off by inf"):
        check_gradients(wrong, X, training=True, active_only=True, **mode)


# ---------------------------------------------------------------- the layer, and the arguments


@each
@pytest.mark.parametrize("mode", [*MODES.values(), {"training": True}], ids=[*MODES.keys(), "training"])
def test_the_layer_is_not_modified(layer, mode):
    layer = copy.deepcopy(layer).eval()
    output = layer.forward(X)
    dx = layer.backward(np.ones_like(output))
    expected = copy.deepcopy(layer)
    gradients = {name: gradient.copy() for name, gradient in layer.gradients.items()}
    objects = layer.named_parameters(frozen=True)
    check_gradients(layer, X, **mode)
    assert not any(inner.is_training for inner in layer.walk().values())
    for name, array in expected.named_parameters(frozen=True).items():
        assert layer.named_parameters(frozen=True)[name] is objects[name]
        assert objects[name].tobytes() == array.tobytes()
    assert {name: g.tobytes() for name, g in layer.gradients.items()} == {n: g.tobytes() for n, g in gradients.items()}
    np.testing.assert_array_equal(layer.backward(np.ones_like(output)), dx)
    np.testing.assert_array_equal(layer.train().forward(X), expected.train().forward(X))  # the random draws too


def test_arguments_are_not_modified():
    x, dy = X.copy(), np.ones((3, 3))
    x.flags.writeable = dy.flags.writeable = False
    check_gradients(LAYERS["dense"], x, output_gradient=dy)


def test_rtol_is_the_largest_error_to_accept():
    wrong, _ = tampered(LAYERS["dense"], "weight", lambda gradient: 1.001 * gradient)
    check_gradients(wrong, X, rtol=2e-3)
    with pytest.raises(GradientError, match=r"rtol 0\.0005"):
        check_gradients(wrong, X, rtol=5e-4)


def test_rtol_may_be_stricter_than_the_default():
    with pytest.raises(GradientError, match=r"complex step, rtol 1e-20"):
        check_gradients(LAYERS["stack"], X, method="complex", rtol=1e-20)


def test_the_message_names_layer_and_step():
    wrong, _ = tampered(LAYERS["dense"], "bias", np.zeros_like)
    with pytest.raises(GradientError, match=f"{wrong.layer_name}: wrong gradients .central step"):
        check_gradients(wrong, X, method="central")


def test_a_gradient_error_is_an_assertion_error():
    assert issubclass(GradientError, AssertionError)


def test_gradient_errors_does_not_raise():
    wrong, name = tampered(LAYERS["dense"], "bias", np.zeros_like)
    assert gradient_errors(wrong, X)[name] == pytest.approx(1)
    assert gradient_errors(LAYERS["dense"], X) == check_gradients(LAYERS["dense"], X)


@pytest.mark.parametrize("function", [check_gradients, gradient_errors])
def test_inference_is_the_default(function):
    layer = filled(dylora)
    assert function(layer, X) == function(layer, X, training=False) != function(layer, X, training=True, rank=1)


def test_the_output_gradient_may_be_given():
    # With G = 0 in all but the first output, a wrong gradient of the others goes unseen.
    layer = LAYERS["dense"]
    wrong, name = tampered(layer, "bias", lambda gradient: gradient * [1, 2, 2])
    check_gradients(wrong, X, output_gradient=np.array([1.0, 0, 0]) * np.ones((3, 1)))
    with pytest.raises(GradientError, match=name):
        check_gradients(wrong, X, output_gradient=np.ones((3, 3)))


def test_the_seed_determines_the_random_numbers():
    def errors(**keywords):
        return gradient_errors(tampered(LAYERS["dense"], "weight", np.tanh)[0], X, directions=True, **keywords)

    assert errors(rng=1) == errors(rng=1) == errors(rng=np.random.default_rng(1))
    assert errors(rng=1) != errors(rng=2)
    assert errors() == errors(rng=0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input": None}, ArgumentNullError, "input must not be None"),
        ({"input": np.ones((3, 5))}, ArgumentError, r"input must have shape \(\.\.\., 4\), got \(3, 5\)"),
        ({"input": X * 1j}, ArgumentError, "input must be an array of real numbers"),
        ({"output_gradient": np.ones((3, 2))}, ArgumentError, r"output_gradient must have shape \(3, 3\), got \(3, 2\)"),
        ({"output_gradient": "ones"}, ArgumentError, "output_gradient must be an array of real numbers"),
        ({"method": "forward"}, ArgumentError, "method must be one of 'auto', 'complex', 'central', got 'forward'"),
        ({"method": None}, ArgumentError, "method must be one of"),
        ({"rng": "seed"}, ArgumentError, "rng must be a seed"),
        ({"rtol": np.nan}, ArgumentError, "rtol must be finite, got nan"),
        ({"rtol": -1e-9}, ArgumentError, "rtol must be at least 0"),
        ({"rtol": "1e-6"}, ArgumentError, "rtol must be a real number"),
    ],
    ids=["none", "size", "complex", "shape", "text", "method", "no method", "rng", "nan", "negative", "text for rtol"],
)
def test_bad_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        check_gradients(LAYERS["dense"], **({"input": X} | arguments))
