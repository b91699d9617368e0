"""Networks of scikit-learn as models, and back."""

import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.neural_network import MLPClassifier, MLPRegressor

from lora_np import (
    ActivationLayer,
    ArgumentError,
    DenseLayer,
    FullyConnectedLayer,
    LayerNorm,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    apply_lora,
    gelu,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from lora_np.sklearn import (
    LoRAClassifier,
    LoRARegressor,
    LoRATransformer,
    MultiLoRAClassifier,
    from_sklearn,
    to_sklearn,
)

from .conftest import blobs

X, Y = blobs()
LABELS = np.array(["ash", "elm", "oak"])
QUICK = {"epochs": 2, "base_epochs": 2, "learning_rate": 0.03, "random_state": 0}
ACTIVATIONS = st.sampled_from(["identity", "logistic", "tanh", "relu"])
SIZES = st.lists(st.integers(1, 5), max_size=3).map(tuple)
RTOL = {"rtol": 1e-12, "atol": 1e-14}


def fitted(kind, y, sizes=(5, 3), activation="relu", X=X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kind(hidden_layer_sizes=sizes, activation=activation, max_iter=3, random_state=0).fit(X, y)


@pytest.mark.parametrize("classes", [2, 3])
@settings(max_examples=10, deadline=None)
@given(sizes=SIZES, activation=ACTIVATIONS)
def test_a_classifier_and_its_model_are_equal(classes, sizes, activation):
    rows = classes > Y
    mlp = fitted(MLPClassifier, LABELS[Y[rows]], sizes, activation, X[rows])
    model = from_sklearn(mlp)
    assert model.output_size == classes
    np.testing.assert_allclose(softmax(model.predict(X)), mlp.predict_proba(X), **RTOL)
    back = to_sklearn(model, mlp.classes_)
    np.testing.assert_allclose(back.predict_proba(X), mlp.predict_proba(X), **RTOL)
    np.testing.assert_array_equal(back.predict(X), mlp.predict(X))
    assert back.classes_.tolist() == mlp.classes_.tolist()


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
@settings(max_examples=10, deadline=None)
@given(sizes=SIZES, activation=ACTIVATIONS)
def test_a_regressor_and_its_model_are_equal(shape, sizes, activation):
    y = np.random.default_rng(0).standard_normal((len(X), *shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a column of values
        mlp = fitted(MLPRegressor, y, sizes, activation)
    model = from_sklearn(mlp)
    np.testing.assert_allclose(np.squeeze(model.predict(X)), mlp.predict(X), **RTOL)
    np.testing.assert_allclose(to_sklearn(model).predict(X), mlp.predict(X), **RTOL)


def test_several_labels_have_one_logit_each():
    y = np.stack([Y == 0, Y == 1, Y < 2], axis=1).astype(int)
    mlp = fitted(MLPClassifier, y)
    np.testing.assert_allclose(sigmoid(from_sklearn(mlp).predict(X)), mlp.predict_proba(X), **RTOL)


def test_the_layers_have_names_and_their_own_arrays():
    mlp = fitted(MLPClassifier, Y, X=X.astype(np.float32))
    model = from_sklearn(mlp)
    assert list(model.children()) == ["hidden1", "hidden2", "output"]
    assert model.dtype == np.float32
    before = [array.copy() for array in mlp.coefs_]
    model.set_parameters(np.zeros(model.parameter_count, np.float32))
    for now, then in zip(mlp.coefs_, before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_fitted_classifier_is_adapted_in_one_line(classes):
    rows = classes > Y
    mlp = fitted(MLPClassifier, LABELS[Y[rows]], X=X[rows])
    classifier = LoRAClassifier(from_sklearn(mlp), epochs=40, learning_rate=0.05, random_state=0)
    classifier.fit(-X[rows], LABELS[Y[rows]])
    assert not any("head" in name for name in classifier.model_.named_parameters(frozen=True))
    assert classifier.score(-X[rows], LABELS[Y[rows]]) > mlp.score(-X[rows], LABELS[Y[rows]])


@pytest.mark.parametrize("adapter", ["standard", "dylora", "dora"])
@pytest.mark.parametrize("given_base", [True, False])
def test_an_adapted_classifier_becomes_a_classifier_of_scikit_learn(adapter, given_base):
    base = from_sklearn(fitted(MLPClassifier, Y)) if given_base else None
    classifier = LoRAClassifier(base, adapter=adapter, hidden_layer_sizes=(6, 5), **QUICK).fit(X, LABELS[Y])
    if adapter == "dylora":
        classifier.set_deployment_rank(2)
    parameters = classifier.model_.get_parameters()
    mlp = to_sklearn(classifier)
    assert mlp.hidden_layer_sizes == ((5, 3) if given_base else (6, 5))
    np.testing.assert_allclose(mlp.predict_proba(X), classifier.predict_proba(X), **RTOL)
    np.testing.assert_array_equal(mlp.predict(X), classifier.predict(X))
    np.testing.assert_array_equal(classifier.model_.get_parameters(), parameters)


def test_a_task_becomes_a_classifier_of_scikit_learn():
    task = np.where(Y == 2, "b", np.tile(["a", "b"], len(Y) // 2))
    both = MultiLoRAClassifier(**QUICK).fit(X, LABELS[Y], task=task)
    for name, classes in (("a", 2), ("b", 3)):
        mlp = to_sklearn(both.merge(name))
        assert mlp.classes_.tolist() == LABELS[:classes].tolist()
        ours = both.predict_proba(X, task=[name] * len(X))[:, :classes]
        np.testing.assert_allclose(mlp.predict_proba(X), ours, **RTOL)


def test_an_adapted_regressor_becomes_a_regressor_of_scikit_learn():
    single = X.astype(np.float32)
    regressor = LoRARegressor(activation="tanh", **QUICK).fit(single, X[:, :2])
    mlp = to_sklearn(regressor)
    assert {array.dtype.name for array in mlp.coefs_} == {"float32"}
    np.testing.assert_allclose(mlp.predict(single), regressor.predict(single), rtol=1e-5, atol=1e-5)


def test_names_of_features_are_kept():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    mlp = to_sklearn(LoRAClassifier(**QUICK).fit(frame, Y))
    assert mlp.feature_names_in_.tolist() == list("abcd")
    assert mlp.predict(frame).shape == Y.shape


def test_either_kind_of_dense_layer_and_separate_activations_are_held():
    linear, activation = DenseLayer(4, 5, tanh, rng=0).split_activation()
    rest = [FullyConnectedLayer(5, 6, tanh, bias=False, rng=1), DenseLayer(6, 3, rng=2), DenseLayer(3, 2, rng=3)]
    rest[1].set_parameter("bias", np.arange(3.0))
    model = Sequential([Sequential([linear, activation]), *rest])
    mlp = to_sklearn(model)
    assert (mlp.hidden_layer_sizes, mlp.activation) == ((5, 6), "tanh")
    np.testing.assert_allclose(mlp.predict(X), model.predict(X), **RTOL)


@pytest.mark.parametrize("sequence", [True, False])
def test_adapters_of_a_layer_are_merged(sequence):
    dense = DenseLayer(4, 3, rng=0)
    model = Sequential([dense])
    model = apply_lora(model, StandardLoRAAdapter, rank=2, rng=0) if sequence else StandardLoRAAdapter(dense, 2, rng=0)
    model.set_parameters(np.random.default_rng(0).standard_normal(model.parameter_count))
    np.testing.assert_allclose(to_sklearn(model).predict(X), model.predict(X), **RTOL)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_the_converted_network_can_train_on(kind):
    model = Sequential([DenseLayer(4, 16, relu, rng=0), DenseLayer(16, 3, rng=1)])
    _, keys, *_ = np.random.get_state()  # noqa: NPY002 - what must not change
    mlp = to_sklearn(model, [0, 1, 2] if kind is MLPClassifier else None)
    np.testing.assert_array_equal(np.random.get_state()[1], keys)  # noqa: NPY002
    assert (mlp.n_iter_, mlp.t_, mlp.loss_curve_, mlp.best_loss_) == (0, 0, [], np.inf)
    targets = Y if kind is MLPClassifier else X[:, :3]
    before = mlp.score(X, targets)
    mlp.set_params(random_state=0, learning_rate_init=0.01)
    for _ in range(30):
        mlp.partial_fit(X, targets)
    assert mlp.score(X, targets) > before
    assert (len(mlp.loss_curve_), mlp.t_) == (30, 30 * len(X))


def test_a_new_optimizer_moves_by_its_learning_rate():
    model = Sequential([DenseLayer(4, 3, relu, rng=0), DenseLayer(3, 1, rng=1)])
    mlp = to_sklearn(model).partial_fit(X, X[:, 0])
    moves = np.abs(np.concatenate([(mlp.coefs_[1] - model["1"].weight).ravel(), mlp.intercepts_[1]]))
    np.testing.assert_allclose(moves[moves > 0], 0.001, rtol=1e-3)  # Adam's first step


# ---------------------------------------------------------------- what cannot be held

DENSE = DenseLayer(4, 3, relu, rng=0)


@pytest.mark.parametrize(("mlp", "error", "message"), [
    ("mlp", ArgumentError, "mlp must be an MLPClassifier or an MLPRegressor, got 'mlp'"),
    (MLPRegressor(), NotFittedError, "not fitted"),
])  # fmt: skip
def test_what_cannot_become_a_model(mlp, error, message):
    with pytest.raises(error, match=message):
        from_sklearn(mlp)


def test_exponential_outputs_cannot_become_a_model():
    mlp = fitted(partial(MLPRegressor, loss="poisson"), Y)
    with pytest.raises(NotSupportedError, match="mlp must have linear outputs, got the exponential of the Poisson loss"):
        from_sklearn(mlp)


@pytest.mark.parametrize(("model", "classes", "error", "message"), [
    ("model", None, ArgumentError, "model must be a LoRAClassifier, a LoRARegressor or a layer, got 'model'"),
    (LoRATransformer(), None, ArgumentError, "model must be a LoRAClassifier"),
    (LoRARegressor(), None, NotFittedError, "not fitted"),
    (LoRARegressor(), [0, 1], ArgumentError, r"classes must be omitted for an estimator, got \[0, 1\]"),
    (DENSE, [0, 2, 1], ArgumentError, r"classes must be distinct and ascending, got \[0, 2, 1\]"),
    (DENSE, [0, 1], ArgumentError, r"classes must be those of 3 outputs, and at least 2, got \[0, 1\]"),
    (DenseLayer(4, 1, rng=0), [0], ArgumentError, r"classes must be those of 1 outputs, and at least 2, got \[0\]"),
    (DENSE, None, NotSupportedError, "the last layer of model must be linear, got the activation relu"),
    (Sequential([DENSE, DenseLayer(3, 3, tanh, rng=0), DenseLayer(3, 1, rng=0)]), None, NotSupportedError,
     "model must have one of identity, logistic, tanh, relu in all hidden layers, got relu, tanh"),
    (Sequential([DenseLayer(4, 3, gelu, rng=0), DenseLayer(3, 1, rng=0)]), None, NotSupportedError,
     "in all hidden layers, got gelu"),
    (Sequential([ActivationLayer(4, relu), DenseLayer(4, 1, rng=0)]), None, NotSupportedError,
     "model must consist of dense layers, each followed by at most one activation, got <?ActivationLayer"),
    (Sequential([DENSE, ActivationLayer(3, relu)]), None, NotSupportedError, "each followed by at most one activation"),
    (Sequential([DenseLayer(4, 3, rng=0), LayerNorm(3)]), None, NotSupportedError, "got <?LayerNorm"),
])  # fmt: skip
def test_what_scikit_learn_cannot_hold(model, classes, error, message):
    with pytest.raises(error, match=message):
        to_sklearn(model, classes)
