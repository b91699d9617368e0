"""Gradient checks for layers, including user-defined ones.

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
from collections.abc import Callable, Container, Iterable
from typing import Any, Literal, TypeAlias

import numpy as np

from ._typing import RNG, Array, Generator, Gradients, Parts
from ._validation import generator, instance, non_negative_float, one_of, real_array, same_shape
from .base import Layer, listeners, trained_parts
from .errors import ArgumentError, GradientError
from .functions.numerical import numerical_gradient
from .run import Run

__all__ = ["check_gradients", "gradient_errors", "numerical_gradient"]

Method: TypeAlias = Literal["auto", "complex", "central"]

TOLERANCES = {"complex": 1e-9, "central": 1e-6}
SMALL = 1e-5  # gradients below this fraction of the largest one may be pure rounding error


class _NotAnalyticError(ArithmeticError):
    """A layer discards imaginary parts, so that a complex step cannot pass through it."""


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
    allow_vacuous: bool = False,
    rtol: float | None = None,
    rng: RNG = 0,
) -> dict[str, float]:
    """Compare every gradient that a layer's `vjp` returns with a numerical derivative.

    Parameters
    ----------
    layer : Layer
        The layer to check. It is copied, and checked in float64 whatever its dtype.
    input : array, shape (..., input_size)
    output_gradient : array, shape (..., output_size), optional
        dL/dy; random by default.
    training : bool, default False
        Whether to check the training pass. Random choices are drawn once and shared by all evaluations.
    tasks, rank
        As in `Layer.forward`.
    method : {"auto", "complex", "central"}, default "auto"
        ``"complex"``: the complex step, exact to rounding error, for layers whose `apply` is analytic. ``"central"``:
        central differences. ``"auto"``: the complex step, with central differences as a fallback.
    directions : bool, default False
        Whether to differentiate along one random direction per array instead of along each element, which is much faster
        for large layers.
    active_only : bool, default False
        Whether to compare only the part of each array that the pass trains, for passes that deliberately omit part of the
        true gradient; elsewhere, the gradient must be exactly zero.
    allow_vacuous : bool, default False
        Whether to accept checks that prove nothing because both gradients are zero: that of A is zero if B = 0, as in a
        new adapter, whatever `vjp` computes for it. Give the arrays non-zero values instead. Without rows, all gradients
        are zero, and no check is vacuous.
    rtol : float, optional
        The largest accepted error, relative to the largest element of the array's gradient. By default, 1e-9 for the
        complex step and 1e-6 for central differences.
    rng : seed or numpy.random.Generator, default 0
        For the output gradient and the directions.

    Returns
    -------
    dict of float
        The relative error of the gradient of each array, and of ``"input"``; NaN for a vacuous check.

    Raises
    ------
    GradientError
        If an error is too large, if a check is vacuous, if the shape of a gradient differs from that of its array, or if a
        gradient belongs to no trainable array; the message names the arrays.
    """
    errors, used = _measure(layer, input, output_gradient, training, tasks, rank, method, directions, active_only, rng)
    limit = TOLERANCES[used] if rtol is None else non_negative_float("rtol", rtol)
    wrong = [f"{name} is off by {error:.2g}" for name, error in errors.items() if error > limit]
    if wrong:
        raise GradientError(f"{layer.layer_name}: wrong gradients ({used} step, rtol {limit:g}): {', '.join(wrong)}")
    vacuous = [name for name, error in errors.items() if np.isnan(error)]
    if vacuous and not allow_vacuous:
        raise GradientError(
            f"{layer.layer_name}: nothing was checked for {', '.join(vacuous)}, because the gradient is zero here; "
            "give all arrays non-zero values, or pass allow_vacuous=True"
        )
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
    """The relative error of each gradient of a layer; unlike `check_gradients`, it does not raise if an error is large.

    See `check_gradients` for the parameters.

    Returns
    -------
    dict of float
        For each array, and for ``"input"`` unless it is of integers: the largest absolute error, divided by the largest
        element of the gradient; infinity if an element is not finite, NaN if both gradients are zero.
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
    """The errors, and the kind of step that measured them."""
    instance("layer", layer, Layer, "a layer")
    one_of("method", method, ("auto", "complex", "central"))
    random = generator(rng)
    twin = _with_dtype(layer, np.dtype(float))
    x = twin.check_input(input, copy=True)
    shape = twin._output_shape(x)
    dy = random.standard_normal(shape) if output_gradient is None else real_array("output_gradient", output_gradient, float)
    same_shape("output_gradient", dy, shape)
    seed = int(random.integers(2**32))
    run = twin.new_run(x, tasks=tasks, rank=rank, training=training)
    analytic, claimed, parts = _analytic(twin, x, dy, run)

    def errors(step: Literal["complex", "central"]) -> dict[str, float]:
        numeric = _Numeric(layer, x, dy, run, step)
        return _errors(analytic, claimed, parts if active_only else {}, numeric, np.random.default_rng(seed), directions)

    if method == "central":
        return errors("central"), "central"
    try:
        found = errors("complex")
    except _NotAnalyticError as error:
        if method == "complex":
            raise ArgumentError(f"method must be 'central' for {layer.layer_name}: {error}") from error
        return errors("central"), "central"
    if method == "auto" and _largest(found) > TOLERANCES["complex"]:
        other = errors("central")
        if _largest(other) <= TOLERANCES["central"]:
            return other, "central"
    return found, "complex"


def _largest(errors: dict[str, float]) -> float:
    """The largest error, apart from vacuous checks."""
    return max((error for error in errors.values() if not np.isnan(error)), default=0.0)


def _analytic(twin: Layer, x: Array, dy: Array, run: Run) -> tuple[Gradients, set[str], Parts]:
    """The gradients, the input's first, with zeros for trainable arrays without one; and the names that `vjp` returns."""
    _, cache = twin.apply(x, run)
    dx, gradients = twin.vjp(dy, cache)
    has_gradient = x.dtype.kind not in "iu"  # integers, such as token ids, have none
    if has_gradient and dx is None:
        raise GradientError(f"{twin.layer_name} does not return the gradient with respect to its input")
    trainable = twin.named_parameters()
    if "input" in trainable:
        raise ArgumentError(
            f"an array of {twin.layer_name} must not be called 'input', which is the name of the layer's input here"
        )
    arrays = {"input": x} | trainable
    unknown = [name for name in gradients if name not in arrays]
    if unknown:
        raise GradientError(f"{twin.layer_name} returns gradients for arrays that do not train: {', '.join(unknown)}")
    complete: Gradients = {} if dx is None or not has_gradient else {"input": dx}
    complete |= {name: gradients.get(name, np.zeros_like(array)) for name, array in trainable.items()}
    for name, gradient in complete.items():
        if gradient.shape != arrays[name].shape:
            raise GradientError(
                f"{twin.layer_name}: the gradient of {name} has shape {gradient.shape}, but the array {arrays[name].shape}"
            )
    return complete, {"input", *gradients} if dy.size else set(), trained_parts(listeners(twin), run)


class _Numeric:
    """The scalar ``Σ dy · apply(x) + auxiliary loss`` as a function of one array of a layer at a time."""

    def __init__(self, layer: Layer, x: Array, dy: Array, run: Run, step: Literal["complex", "central"]) -> None:
        self.layer = _with_dtype(layer, np.dtype(complex if step == "complex" else float))
        self.x, self.dy, self.run, self.step = x, dy, run, step

    def gradient(self, name: str, direction: Array | None) -> Array:
        """The derivative with respect to each element of an array, or along a direction."""
        point = self.x if name == "input" else self.layer.named_parameters()[name].real.copy()
        objective = self._of_input if name == "input" else self._of_array(name)
        if direction is None:
            gradient = numerical_gradient(objective, point, method=self.step)
        else:
            gradient = numerical_gradient(lambda t: objective(point + t * direction), np.zeros(()), method=self.step)
        objective(point)  # restores the array
        return gradient

    def _of_input(self, x: Array) -> Any:
        try:
            y, _ = self.layer.apply(x, self.run)
        except TypeError as error:
            if self.step == "central":
                raise
            raise _NotAnalyticError(f"its apply() does not accept complex numbers: {error}") from error
        if self.step == "complex" and np.iscomplexobj(x) and not np.iscomplexobj(y):
            raise _NotAnalyticError("its apply() converts complex numbers to real ones")
        return (self.dy * y).sum() + self.layer.compute_auxiliary_loss()

    def _of_array(self, name: str) -> Callable[[Array], Any]:
        array = self.layer.named_parameters()[name]
        x = self.x if self.x.dtype.kind in "iu" else self.x.astype(array.dtype)

        def objective(value: Array) -> Any:
            array[...] = value
            return self._of_input(x)

        return objective


def _errors(
    analytic: Gradients, claimed: Container[str], parts: Parts, numeric: _Numeric, random: Generator, directions: bool
) -> dict[str, float]:
    """The error of each gradient; NaN if `vjp` claims a gradient that is zero, and so is the numerical one."""
    scale = max((float(np.abs(gradient).max(initial=0)) for gradient in analytic.values()), default=0.0)
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
        error = difference / size if size else 0.0
        if outside.any() or not np.isfinite(error):
            error = np.inf
        elif name in claimed and error <= TOLERANCES[numeric.step] and not found.any():
            error = np.nan
        errors[name] = error
    return errors


def _with_dtype(layer: Layer, dtype: np.dtype[Any]) -> Layer:
    """A copy of a layer with all arrays converted to a dtype, which may be complex."""
    twin = copy.deepcopy(layer)
    for inner in twin.walk().values():
        for name in inner.parameter_names:
            setattr(inner, name, getattr(inner, name).astype(dtype))
    return twin
