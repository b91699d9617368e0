"""Conversion of fitted `MLPClassifier` and `MLPRegressor` networks of scikit-learn to models, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.validation import check_is_fitted

from .._typing import Array
from ..errors import ArgumentError, NotSupportedError
from ..functions.activations import Activation, identity, relu, sigmoid, tanh
from ..layers import ActivationLayer, AffineLayer, DenseLayer, Layer, Sequential
from ..models.adapting import merge_in_place
from ..models.finding import has_adapters
from .onetask import LoRAClassifier, LoRARegressor

ACTIVATIONS = {"identity": identity, "logistic": sigmoid, "tanh": tanh, "relu": relu}
"""By their names in scikit-learn."""


class Dense(NamedTuple):
    """``activation(x W + b)``."""

    weight: Array
    bias: Array
    activation: Activation


def from_sklearn(mlp: Any) -> Sequential:
    """Convert a fitted network of scikit-learn to a model, for example as the base of an estimator.

    Parameters
    ----------
    mlp : MLPClassifier or MLPRegressor
        Fitted. Its arrays are copied.

    Returns
    -------
    Sequential
        Dense layers ``"hidden1"``, ``"hidden2"`` and so on, and ``"output"``, which is linear. The outputs are those of
        `mlp` before its output activation: values; one logit per label if samples can have several labels; otherwise one
        logit per class, whose softmax equals ``mlp.predict_proba``. A binary classifier has only the logit z of the second
        class, so the logits are (0, z).

    Raises
    ------
    ArgumentError
        If `mlp` is neither an MLPClassifier nor an MLPRegressor.
    NotFittedError
        If `mlp` is not fitted.
    NotSupportedError
        If the outputs of `mlp` are not linear, as with the Poisson loss.

    Examples
    --------
    >>> from lora_np.data import load_digits
    >>> from lora_np.sklearn import LoRAClassifier, from_sklearn
    >>> from sklearn.neural_network import MLPClassifier
    >>> images, labels = load_digits()
    >>> X = images.reshape(-1, 64)
    >>> mlp = MLPClassifier(32, max_iter=1000, random_state=0).fit(X[:500], labels[:500])
    >>> LoRAClassifier(from_sklearn(mlp), random_state=0).fit(X[500:], labels[500:]).score(X, labels) > 0.95
    True
    """
    if not isinstance(mlp, MLPClassifier | MLPRegressor):
        raise ArgumentError(f"mlp must be an MLPClassifier or an MLPRegressor, got {mlp!r}")
    check_is_fitted(mlp, "coefs_")
    if mlp.out_activation_ == "exp":
        raise NotSupportedError("mlp must have linear outputs, got the exponential of the Poisson loss")
    weights, biases = list(mlp.coefs_), list(mlp.intercepts_)
    if isinstance(mlp, MLPClassifier) and mlp.n_outputs_ == 1:
        weights[-1], biases[-1] = (np.insert(array, 0, 0, axis=-1) for array in (weights[-1], biases[-1]))
    names = [*(f"hidden{number}" for number in range(1, len(weights))), "output"]
    layers = {
        name: DenseLayer.from_arrays(np.array(weight, order="C"), np.array(bias))
        for name, weight, bias in zip(names, weights, biases, strict=True)
    }
    for name in names[:-1]:
        layers[name].activation = ACTIVATIONS[mlp.activation]
    return Sequential(layers)


def to_sklearn(model: Any, classes: Any = None) -> MLPClassifier | MLPRegressor:
    """Convert a model to a fitted network of scikit-learn that makes the same predictions.

    Adapters are merged into the weights, at the current task and at the deployment rank; the model is not changed.
    Consecutive linear layers are multiplied.

    Parameters
    ----------
    model : LoRAClassifier, LoRARegressor or Layer
        A fitted estimator, or a network that consists of dense layers and activations.
    classes : array-like, shape (classes,), optional
        For a layer whose outputs are logits: the label of each output, ascending. Without classes, outputs are values.

    Returns
    -------
    MLPClassifier or MLPRegressor
        Fitted, with the default parameters apart from `hidden_layer_sizes` and `activation`. Its `partial_fit` continues
        with a new optimizer.

    Raises
    ------
    ArgumentError
        If an argument has the wrong type, or if `classes` does not fit the outputs.
    NotFittedError
        If an estimator is not fitted.
    NotSupportedError
        If the model contains other layers, its outputs are not linear, or its activations differ or are unknown to
        scikit-learn.
    """
    network, labels = _network_and_labels(model, classes)
    has_indicators = getattr(model, "multilabel_", False)
    *hidden, last = _dense_layers(network)
    if last.activation != identity:
        raise NotSupportedError(f"the last layer of model must be linear, got the activation {last.activation.name}")
    weights, biases = [*(layer.weight for layer in hidden), last.weight], [*(layer.bias for layer in hidden), last.bias]
    if labels is not None and len(labels) == 2 and not has_indicators:
        weights[-1], biases[-1] = np.diff(last.weight), np.diff(last.bias)
    sizes = tuple(len(layer.bias) for layer in hidden)
    parameters = {"hidden_layer_sizes": sizes, "activation": _common_activation(hidden)}
    if labels is None:
        targets = np.zeros((1, network.output_size) if network.output_size > 1 else 1)
    else:
        targets = np.eye(len(labels), dtype=int) if has_indicators else labels
    mlp = _untrained(network, targets, parameters, labels)
    for theirs, ours in zip(mlp.coefs_ + mlp.intercepts_, weights + biases, strict=True):
        theirs[...] = ours
    if hasattr(model, "feature_names_in_"):
        mlp.feature_names_in_ = model.feature_names_in_
    return mlp


def _network_and_labels(model: Any, classes: Any) -> tuple[Layer, Array | None]:
    """The network without adapters, and its classes; None for values."""
    if isinstance(model, LoRAClassifier | LoRARegressor):
        if classes is not None:
            raise ArgumentError(f"classes must be omitted for an estimator, got {classes!r}")
        check_is_fitted(model, "model_")
        network, classes = model.model_, getattr(model, "classes_", None)
    else:
        network = model
    if not isinstance(network, Layer):
        raise ArgumentError(f"model must be a LoRAClassifier, a LoRARegressor or a layer, got {model!r}")
    labels = None if classes is None else np.unique(classes)
    if labels is not None and not np.array_equal(labels, classes):
        raise ArgumentError(f"classes must be distinct and ascending, got {classes!r}")
    if labels is not None and not len(labels) == network.output_size > 1:
        raise ArgumentError(f"classes must be those of {network.output_size} outputs, and at least 2, got {classes!r}")
    if has_adapters(network):
        network = Sequential([network.clone()])
        merge_in_place(network)
    return network, labels


def _dense_layers(model: Layer) -> list[Dense]:
    """The dense layers that compute the function of a model."""
    found: list[Dense] = []
    for layer in _in_order(model):
        is_linear = bool(found) and found[-1].activation == identity
        if isinstance(layer, AffineLayer):
            weight, bias = layer.matrix, np.zeros(layer.output_size) if layer.bias is None else layer.bias
            if is_linear:
                first = found.pop()
                bias = first.bias @ weight + bias  # (mid,) @ (mid, out) -> (out,)
                weight = first.weight @ weight  # (in, mid) @ (mid, out) -> (in, out)
            found.append(Dense(weight, bias, layer.activation))
        elif isinstance(layer, ActivationLayer) and is_linear:
            found[-1] = found[-1]._replace(activation=layer.activation)
        else:
            raise NotSupportedError(
                f"model must consist of dense layers, each followed by at most one activation, got {layer!r}"
            )
    return found


def _in_order(model: Layer) -> list[Layer]:
    """The layers of nested Sequentials in the order of application."""
    return [inner for layer in model.layers for inner in _in_order(layer)] if isinstance(model, Sequential) else [model]


def _common_activation(hidden: list[Dense]) -> str:
    """The name of the activation that all hidden layers have."""
    used = {layer.activation for layer in hidden} or {relu}
    names = [name for name, activation in ACTIVATIONS.items() if used == {activation}]
    if not names:
        found = ", ".join(sorted(activation.name for activation in used))
        raise NotSupportedError(f"model must have one of {', '.join(ACTIVATIONS)} in all hidden layers, got {found}")
    return names[0]


def _untrained(network: Layer, targets: Array, parameters: dict[str, Any], labels: Array | None) -> Any:
    """A network of scikit-learn that has seen some targets, so that it counts as fitted, with arbitrary weights."""
    rows = np.zeros((len(targets), network.input_size), network.dtype)
    if labels is None:
        mlp = MLPRegressor(**parameters, random_state=0).partial_fit(rows, targets)
    else:
        mlp = MLPClassifier(**parameters, random_state=0).partial_fit(rows, targets, classes=labels)
    mlp.random_state = None
    mlp.n_iter_, mlp.t_, mlp.loss_curve_, mlp.best_loss_ = 0, 0, [], np.inf
    vars(mlp).pop("_optimizer", None)  # with the moments of the step above
    return mlp
