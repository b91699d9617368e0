"""Optimizers turn gradients into updates, which the layer applies.

If a pass trains only part of an array (the components of a DyLoRA rank), the rest keeps its state: moments, step counts
and weight decay advance only for components that received a gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, final

import numpy as np

from .._typing import Array, Part, Parts
from .._validation import finite_float, fraction, instance, mapping, non_negative_float, real_array, sequence, text
from ..base import Layer, pending, trained_by
from ..errors import ArgumentError, ArgumentOutOfRangeError, NotSupportedError


class Optimizer(ABC):
    """A rule that turns gradients into updates, with separate state for each parameter.

    State is stored by parameter name, so an optimizer belongs to one model. If a parameter is replaced by another one of
    the same name, for example that of a new task, `reset` its state.

    Parameters
    ----------
    learning_rate : float
        Step size, finite. It can be changed between steps.
    """

    state_type: ClassVar[Callable[..., Any] | None] = None
    """The dataclass of arrays that holds the state of one parameter, or None if the optimizer is stateless."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.reset()

    @property
    def learning_rate(self) -> float:
        """The step size."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float) -> None:
        self._learning_rate = finite_float("learning_rate", learning_rate)

    def reset(self, names: Iterable[str] | None = None) -> None:
        """Discard the state of every parameter, or of those with the given names, which may be shell patterns.

        After a task was removed, ``reset(["*.topics.*"])`` lets a new task of the same name start without its moments.
        """
        self._states: dict[str, Any]
        kept: dict[str, Any] = {}
        if names is not None:
            names = sequence("names", names, "names of parameters")
            for each in names:
                text("each of names", each)
            exact = set(names)
            kept = {
                name: state
                for name, state in self._states.items()
                if name not in exact and not any(fnmatchcase(name, pattern) for pattern in names)
            }
        self._states = kept

    @final
    def get_state(self) -> dict[str, Array]:
        """Copies of the state arrays, keyed by parameter name and field, such as ``lora.matrix_a:second``.

        Raises
        ------
        NotSupportedError
            If the optimizer has state but does not define `state_type`.
        """
        if self._states and self.state_type is None:
            raise NotSupportedError(f"{type(self).__name__} has state but does not define state_type")
        return {
            f"{name}:{field}": array.copy() for name, state in self._states.items() for field, array in vars(state).items()
        }

    @final
    def set_state(self, arrays: Mapping[str, Array]) -> None:
        """Replace the state of every parameter with copies of arrays returned by `get_state`.

        Raises
        ------
        ArgumentError
            If the arrays come from a different type of optimizer. Nothing is changed.
        """
        mapping("arrays", arrays)
        fields: dict[str, dict[str, Array]] = {}
        for key, array in arrays.items():
            name, _, field = key.rpartition(":")
            fields.setdefault(name, {})[field] = real_array(key, array, copy=True)
        try:
            self._states = {name: self.state_type(**copies) for name, copies in fields.items()}  # type: ignore[misc]
        except TypeError:
            raise ArgumentError(f"arrays must be the state of {type(self).__name__}, got keys {list(arrays)[:4]}") from None

    @final
    def updates(self, layer: Layer) -> dict[str, Array]:
        """The updates for a layer's pending gradients, to be passed to its `apply_updates`.

        Raises
        ------
        InvalidOperationError
            If no gradient is pending.
        """
        instance("layer", layer, Layer, "a layer")
        step = pending(layer)
        return self.updates_of(trained_by(layer, step.gradients), step.gradients, step.parts)

    @final
    def updates_of(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array], parts: Parts) -> dict[str, Array]:
        """The updates of the given parameters, by name; see `update`."""
        return {name: self.update(name, gradients[name], p, parts.get(name)) for name, p in parameters.items()}

    @abstractmethod
    def update(self, name: str, gradient: Array, parameter: Array, part: Part | None = None) -> Array:
        """Advance the state of one parameter by a step and return the array to add to the parameter.

        Parameters
        ----------
        name : str
            Parameter name, the key of its state.
        gradient, parameter : array
            Of the same shape.
        part : tuple of slice, optional
            The part that was trained, one slice per axis; by default the whole array. The update is exactly zero elsewhere.

        Returns
        -------
        array, the shape and dtype of `parameter`.
        """

    def __repr__(self) -> str:
        values = {name.lstrip("_"): value for name, value in vars(self).items() if name != "_states"}
        shown = {name: f"{value:g}" if isinstance(value, float) else repr(value) for name, value in values.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"


@final
class SGD(Optimizer):
    """Gradient descent: ``p += -η g``."""

    def update(self, name: str, gradient: Array, parameter: Array, part: Part | None = None) -> Array:
        """``-η g``."""
        return gradient * -self.learning_rate


@dataclass
class _Velocity:
    velocity: Array


@final
class Momentum(Optimizer):
    """Gradient descent with momentum (Polyak 1964): ``v = μ v + g``, ``p += -η v``.

    Parameters
    ----------
    learning_rate : float
        η.
    momentum : float, default 0.9
        μ, in [0, 1).
    nesterov : bool, default False
        If True, use Nesterov momentum, ``p += -η (g + μ v)`` (Sutskever et al. 2013, eq. 3 and 4, with p as the look-ahead
        point).
    """

    state_type = _Velocity

    def __init__(self, learning_rate: float, momentum: float = 0.9, nesterov: bool = False) -> None:
        super().__init__(learning_rate)
        self.momentum = fraction("momentum", momentum)
        self.nesterov = bool(nesterov)

    def _textbook(self, g: Array, v: Array) -> tuple[Array, Array]:
        """The rule in textbook form: the update and the new velocity. `update` computes the same in place."""
        v = self.momentum * v + g
        direction = g + self.momentum * v if self.nesterov else v
        dp = -self.learning_rate * direction
        return dp, v

    def update(self, name: str, gradient: Array, parameter: Array, part: Part | None = None) -> Array:
        """One step of the rule, computed in place in the velocity and the update."""
        if name not in self._states:
            self._states[name] = _Velocity(np.zeros_like(parameter))
        velocity = self._states[name].velocity
        _check_shape(name, gradient, velocity.shape)
        update, here = _new_update(parameter, part)
        v, g, dp = velocity[here], gradient[here], update[here]
        v *= self.momentum
        v += g
        if self.nesterov:
            np.multiply(v, self.momentum, out=dp)
            dp += g
            dp *= -self.learning_rate
        else:
            np.multiply(v, -self.learning_rate, out=dp)
        return update


@dataclass
class _Moments:
    first: Array
    second: Array
    steps: Array
    """The number of gradients each component has received; an axis that has only been trained whole has length 1."""

    @classmethod
    def zeros_like(cls, parameter: Array) -> _Moments:
        return cls(np.zeros_like(parameter), np.zeros_like(parameter), np.zeros((1,) * parameter.ndim, int))

    def count_along(self, part: Part) -> None:
        """Start counting separately for each index of the axes that `part` slices."""
        lengths = zip(part, self.steps.shape, self.first.shape, strict=True)
        shape = tuple(length if axis == slice(None) else full for axis, length, full in lengths)
        if shape != self.steps.shape:
            self.steps = np.broadcast_to(self.steps, shape).copy()


class _Adam(Optimizer):
    """The rule of `Adam` and `AdamW`; `Adam` has no weight decay."""

    state_type = _Moments

    def __init__(self, learning_rate: float, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
        super().__init__(learning_rate)
        self.beta1, self.beta2 = fraction("beta1", beta1), fraction("beta2", beta2)
        self.epsilon = finite_float("epsilon", epsilon)
        if self.epsilon <= 0:
            raise ArgumentOutOfRangeError(f"epsilon must be greater than 0, got {epsilon}")
        self.weight_decay = non_negative_float("weight_decay", weight_decay)

    @final
    def _textbook(self, g: Array, p: Array, m: Array, v: Array, t: Array) -> tuple[Array, Array, Array]:
        """The rule in textbook form: the update and the new moments. `update` computes the same in place."""
        m = self.beta1 * m + (1 - self.beta1) * g
        v = self.beta2 * v + (1 - self.beta2) * g**2
        m_hat = m / (1 - self.beta1**t)
        v_hat = v / (1 - self.beta2**t)
        dp = -self.learning_rate * (m_hat / (np.sqrt(v_hat) + self.epsilon) + self.weight_decay * p)
        return dp, m, v

    @final
    def update(self, name: str, gradient: Array, parameter: Array, part: Part | None = None) -> Array:
        """One step of the rule, computed in place in the moments and the update."""
        if name not in self._states:
            self._states[name] = _Moments.zeros_like(parameter)
        state = self._states[name]
        _check_shape(name, gradient, state.first.shape)
        if part is not None:
            state.count_along(part)
        update, here = _new_update(parameter, part)
        m, v, steps, g, dp = state.first[here], state.second[here], state.steps[here], gradient[here], update[here]
        steps += 1
        rate, epsilon = self._corrected(steps, dp.dtype)
        np.subtract(g, m, out=dp)
        dp *= 1 - self.beta1
        m += dp  # m = β₁ m + (1 - β₁) g
        np.multiply(g, g, out=dp)
        dp -= v
        dp *= 1 - self.beta2
        v += dp  # v = β₂ v + (1 - β₂) g²
        np.sqrt(v, out=dp)
        dp += epsilon
        np.divide(m, dp, out=dp)
        dp *= rate  # -η m̂ / (√v̂ + ε)
        if self.weight_decay:
            dp -= self.learning_rate * self.weight_decay * parameter[here]
        return update

    def _corrected(self, steps: Array, dtype: np.dtype[Any]) -> tuple[float | Array, float | Array]:
        """-η and ε, including the bias corrections of both moments (Kingma and Ba 2015, end of section 2).

        The moments start at zero. Dividing them by ``1 - βᵗ`` removes that bias, and with those factors taken out,
        ``m̂ / (√v̂ + ε)`` is ``√(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + ε √(1 - β₂ᵗ))``.
        """
        t: Any = steps if steps.size > 1 else steps.item()  # usually a single number for the whole array
        root = (1 - self.beta2**t) ** 0.5
        rate, epsilon = -self.learning_rate * root / (1 - self.beta1**t), self.epsilon * root
        return (rate.astype(dtype), epsilon.astype(dtype)) if isinstance(t, np.ndarray) else (rate, epsilon)


def _check_shape(name: str, gradient: Array, shape: tuple[int, ...]) -> None:
    """Raise ArgumentError if the shape of a gradient differs from that of the optimizer's state."""
    if gradient.shape != shape:
        raise ArgumentError(
            f"gradient of {name} must have the shape of the optimizer's state, {shape}, got {gradient.shape}; "
            f"if the parameter was replaced, call reset([{name!r}]) first"
        )


def _new_update(parameter: Array, part: Part | None) -> tuple[Array, Any]:
    """A new array for an update, and the index to write at; the array is zero elsewhere."""
    return (np.empty_like(parameter), ...) if part is None else (np.zeros_like(parameter), part)


@final
class Adam(_Adam):
    """Adam (Kingma and Ba 2015, algorithm 1).

    ``m = β₁ m + (1 - β₁) g``, ``v = β₂ v + (1 - β₂) g²``, ``p += -η m̂ / (√v̂ + ε)``, with ``m̂ = m / (1 - β₁ᵗ)``,
    ``v̂ = v / (1 - β₂ᵗ)`` and t the number of gradients that *this component* has received.

    Parameters
    ----------
    learning_rate : float, default 0.001
        η.
    beta1, beta2 : float, default 0.9 and 0.999
        β₁ and β₂, the decay rates of the moments, in [0, 1).
    epsilon : float, default 1e-8
        ε, greater than 0.
    """

    def __init__(
        self, learning_rate: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay=0.0)


@final
class AdamW(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    ``p += -η (m̂ / (√v̂ + ε) + λ p)``, with the moments of `Adam`. A component that receives no gradient in a step does not
    decay. The decay is scaled by the learning rate, as in PyTorch: the λ of the paper is η λ here.

    Parameters
    ----------
    learning_rate : float, default 0.001
        η.
    beta1, beta2, epsilon : float
        As in `Adam`.
    weight_decay : float, default 0.01
        λ, at least 0.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay)
