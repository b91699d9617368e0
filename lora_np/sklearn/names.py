"""Activations, optimizers and scalings as parameters of estimators, which may be given by name as in scikit-learn."""

from __future__ import annotations

from typing import Any

from .._validation import finite_float
from ..errors import ArgumentError
from ..functions.activations import SHIPPED, Activation, sigmoid
from ..training.optimizers import SGD, Adam, AdamW, Momentum, Optimizer

ACTIVATIONS = SHIPPED | {"logistic": sigmoid}
"""By name; ``"logistic"`` is that of `sklearn.neural_network.MLPClassifier`."""

OPTIMIZERS = {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW}
"""By name."""


def activation_of(value: Any) -> Activation:
    """The activation that a parameter means: an Activation, or a name of one."""
    found = ACTIVATIONS.get(value) if isinstance(value, str) else value
    if not isinstance(found, Activation):
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ArgumentError(f"activation must be an Activation such as lora_np.relu, or one of {names}, got {value!r}")
    return found


def optimizer_of(value: Any, learning_rate: Any) -> Optimizer:
    """A new optimizer for a parameter: a name, or a callable that returns an optimizer for a learning rate."""
    make = OPTIMIZERS.get(value) if isinstance(value, str) else value
    optimizer = make(learning_rate) if callable(make) else None
    if not isinstance(optimizer, Optimizer):
        names = ", ".join(map(repr, OPTIMIZERS))
        raise ArgumentError(f"optimizer must be one of {names}, or return an Optimizer for a learning rate, got {value!r}")
    return optimizer


def alpha_of(value: Any) -> float:
    """The alpha of adapters, of which a negative number, or None, means the rank."""
    return -1.0 if value is None else finite_float("alpha", value)
