"""Gradient checks for layers: the shipped ones, and your own.

Examples
--------
>>> import numpy as np
>>> from lora_np import DenseLayer, tanh
>>> from lora_np.testing import check_gradients
>>> errors = check_gradients(DenseLayer(4, 3, tanh, rng=0), np.random.default_rng(0).normal(size=(5, 4)))
>>> sorted(errors)
['bias', 'input', 'weight']
>>> max(errors.values()) < 1e-12
True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import numpy as np

from ._typing import RNG, Array, Generator, Gradients, Parts
from ._validation import generator, non_negative_float, one_of, real_array, same_shape
from .base import Layer, listeners, trained_parts
from .errors import ArgumentError, GradientError
from .functions.numerical import numerical_gradient
from .run import Run

__all__ = ["check_gradients", "gradient_errors", "numerical_gradient"]

Method: TypeAlias = Literal["auto", "complex", "central"]

TOLERANCES = {"complex": 1e-9, "central": 1e-6}
SMALL = 1e-5  # below this share of the largest gradient, a gradient may be nothing but rounding


class _NotAnalyticError(ArithmeticError):
    """A layer loses the imaginary part of complex numbers, so that no complex step can pass through it."""


def check_gradients(
    layer: Layer,
    input: Any,
    *,
    output_gradient: Any = None,
    training: bool = False,
    tasks: Iterable[str | None] | None = None,
    rank: Any = None,
    method: Method = "auto",
    directions: bool = False,
    active_only: bool = False,
    rtol: float | None = None,
    rng: RNG = 0,
) -> dict[str, float]:
    """Compare every gradient of a layer's `vjp` with its numerical value.

    Parameters
    ----------
    layer : Layer
        It is copied, and checked in float64 whatever its dtype. Give its arrays values that are not zero: where B = 0, the
        gradient of A is zero, and a check of it sees nothing.
    input : array, shape (..., input_size)
    output_gradient : array, shape (..., output_size), optional
        dL/dy; random if left out.
    training : bool, default False
        Whether to check the training pass. What is random in it is drawn once, for all evaluations.
    tasks, rank
        As in `Layer.forward`.
    method : {"auto", "complex", "central"}, default "auto"
        ``"complex"``: the complex step, exact to rounding, for layers whose `apply` is analytic. ``"central"``: central
        differences. ``"auto"``: the complex step, and central differences where that fails.
    directions : bool, default False
        Whether to take the derivative along one random direction of each array instead of along each element: one
        evaluation for each array, for large layers.
    active_only : bool, default False
        Whether to compare only the part of each array that the pass trains, for passes that omit a part of the
        true gradient on purpose; elsewhere the gradient must then be exactly zero.
    rtol : float, optional
        The largest error to accept, relative to the largest element of the array's gradient; 1e-9 for the complex step and
        1e-6 for central differences if left out.
    rng : seed or numpy.random.Generator, default 0
        For the output gradient and the directions.

    Returns
    -------
    dict of float
        The relative error of each array, and of ``"input"``.

    Raises
    ------
    GradientError
        An error is too large, a gradient has another shape than its array, or it belongs to no trainable array; the message
        names all such arrays.
    """
    errors, used = _measure(layer, input, output_gradient, training, tasks, rank, method, directions, active_only, rng)
    limit = TOLERANCES[used] if rtol is None else non_negative_float("rtol", rtol)
    # Not "error > limit": a NaN is no pass.
    wrong = [f"{name} is off by {error:.2g}" for name, error in errors.items() if not error <= limit]
    if wrong:
        raise GradientError(f"{layer.layer_name}: of its gradients ({used} step, rtol {limit:g}), {', '.join(wrong)}")
    return errors


def gradient_errors(
    layer: Layer,
    input: Any,
    *,
    output_gradient: Any = None,
    training: bool = False,
    tasks: Iterable[str | None] | None = None,
    rank: Any = None,
    method: Method = "auto",
    directions: bool = False,
    active_only: bool = False,
    rng: RNG = 0,
) -> dict[str, float]:
    """The relative error of each gradient of a layer: `check_gradients` without the verdict.

    The parameters are those of `check_gradients`.

    Returns
    -------
    dict of float
        By array, and ``"input"``: the largest absolute error over the largest element of the gradient.
    """
    return _measure(layer, input, output_gradient, training, tasks, rank, method, directions, active_only, rng)[0]


def _measure(
    layer: Layer,
    input: Any,
    output_gradient: Any,
    training: bool,
    tasks: Iterable[str | None] | None,
    rank: Any,
    method: Method,
    directions: bool,
    active_only: bool,
    rng: RNG,
) -> tuple[dict[str, float], str]:
    """The errors, and the kind of step that they were found with."""
    one_of("method", method, ("auto", "complex", "central"))
    random = generator(rng)
    twin = _with_dtype(layer, np.dtype(float))
    x = twin.check_input(input, copy=True)
    shape = (*x.shape[:-1], layer.output_size)
    dy = random.standard_normal(shape) if output_gradient is None else real_array("output_gradient", output_gradient, float)
    same_shape("output_gradient", dy, shape)
    seed = int(random.integers(2**32))
    run = twin.new_run(x, tasks=tasks, rank=rank, training=training)
    analytic, parts = _analytic(twin, x, dy, run)

    def errors(step: Literal["complex", "central"]) -> dict[str, float]:
        numeric = _Numeric(layer, x, dy, run, step)
        return _errors(analytic, parts if active_only else {}, numeric, np.random.default_rng(seed), directions)

    if method == "central":
        return errors("central"), "central"
    try:
        found = errors("complex")
    except _NotAnalyticError as error:
        if method == "complex":
            raise ArgumentError(f"method must be 'central' for {layer.layer_name}: {error}") from error
        return errors("central"), "central"
    if method == "auto" and not max(found.values()) <= TOLERANCES["complex"]:
        other = errors("central")
        if max(other.values()) <= TOLERANCES["central"]:
            return other, "central"
    return found, "complex"


def _analytic(twin: Layer, x: Array, dy: Array, run: Run) -> tuple[Gradients, Parts]:
    """The gradients of the layer's own vjp, zero for trainable arrays that got none, with the input's first."""
    _, cache = twin.apply(x, run)
    dx, gradients = twin.vjp(dy, cache)
    if dx is None:
        raise GradientError(f"{twin.layer_name} gives no gradient of its input")
    trainable = twin.named_parameters()
    if "input" in trainable:
        raise ArgumentError(
            f"no array may be called 'input', as one of {twin.layer_name} is: that is the input's name here"
        )
    arrays = {"input": x} | trainable
    unknown = [name for name in gradients if name not in arrays]
    if unknown:
        raise GradientError(f"{twin.layer_name} gives gradients to arrays that do not train: {', '.join(unknown)}")
    complete = {"input": dx} | {
        name: gradients.get(name, np.zeros_like(a)) for name, a in arrays.items() if name != "input"
    }
    for name, gradient in complete.items():
        if gradient.shape != arrays[name].shape:
            raise GradientError(
                f"{twin.layer_name}: the gradient of {name} has shape {gradient.shape}, and the array {arrays[name].shape}"
            )
    return complete, trained_parts(listeners(twin), run)


class _Numeric:
    """The scalar ``Σ dy · apply(x) + auxiliary loss`` as a function of one array of a layer at a time."""

    def __init__(self, layer: Layer, x: Array, dy: Array, run: Run, step: Literal["complex", "central"]) -> None:
        self.layer = _with_dtype(layer, np.dtype(complex if step == "complex" else float))
        self.x, self.dy, self.run, self.step = x, dy, run, step

    def gradient(self, name: str, direction: Array | None) -> Array:
        """The derivative by each element of an array, or by the length of a step along a direction."""
        point = self.x if name == "input" else self.layer.named_parameters()[name].real.copy()
        objective = self._of_input if name == "input" else self._of_array(name)
        if direction is None:
            gradient = numerical_gradient(objective, point, method=self.step)
        else:
            gradient = numerical_gradient(lambda t: objective(point + t * direction), np.zeros(()), method=self.step)
        objective(point)  # leaves the array as it was
        return gradient

    def _of_input(self, x: Array) -> Any:
        try:
            y, _ = self.layer.apply(x, self.run)
        except TypeError as error:
            if self.step == "central":
                raise
            raise _NotAnalyticError(f"its apply() takes no complex numbers: {error}") from error
        if self.step == "complex" and np.iscomplexobj(x) and not np.iscomplexobj(y):
            raise _NotAnalyticError("its apply() turns complex numbers into real ones")
        return (self.dy * y).sum() + self.layer.compute_auxiliary_loss()

    def _of_array(self, name: str) -> Callable[[Array], Any]:
        array = self.layer.named_parameters()[name]
        x = self.x.astype(array.dtype)

        def objective(value: Array) -> Any:
            array[...] = value
            return self._of_input(x)

        return objective


def _errors(analytic: Gradients, parts: Parts, numeric: _Numeric, random: Generator, directions: bool) -> dict[str, float]:
    scale = max(float(np.abs(gradient).max(initial=0)) for gradient in analytic.values())
    errors = {}
    for name, gradient in analytic.items():
        part = parts.get(name, (...,))
        outside = gradient.copy()
        outside[part] = 0
        direction = None
        if directions:
            direction = np.zeros(gradient.shape)
            direction[part] = random.standard_normal(gradient[part].shape)
        expected = numeric.gradient(name, direction)
        if direction is not None:
            found: Array = (gradient * direction).sum()
            size = float(np.linalg.norm(gradient[part]))
        else:
            found, expected = gradient[part], expected[part]
            size = float(np.abs(found).max(initial=0))
        size = max(size, float(np.abs(expected).max(initial=0)), SMALL * scale)
        difference = float(np.abs(found - expected).max(initial=0))
        errors[name] = np.inf if outside.any() else (difference / size if size else 0.0)
    return errors


def _with_dtype(layer: Layer, dtype: np.dtype[Any]) -> Layer:
    """A copy of a layer with all arrays in another dtype, complex ones included."""
    twin = copy.deepcopy(layer)
    for inner in twin.walk().values():
        for name in inner.parameter_names:
            setattr(inner, name, getattr(inner, name).astype(dtype))
    return twin
