"""Optimizers: they turn gradients into updates; the layer applies them.

Where a pass trains only a part of an array (the components of a DyLoRA rank), the state of the rest stands still: moments,
step counts and weight decay move only for components that got a gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from .._typing import Array, Part, Parts
from .._validation import finite_float, fraction, non_negative_float, same_shape
from ..base import Layer
from ..errors import ArgumentError, ArgumentOutOfRangeError, NotSupportedError


class Optimizer(ABC):
    """A rule that turns gradients into updates, with a state for each parameter name.

    An optimizer belongs to one model: its state is kept by parameter name. `reset` forgets it.

    Parameters
    ----------
    learning_rate : float
        Finite; it may be set between steps.
    """

    state_type: ClassVar[Callable[..., Any] | None] = None
    """A dataclass of arrays that is the state of one parameter; None where there is no state."""

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

    def reset(self) -> None:
        """Forget the state of every parameter."""
        self._states: dict[str, Any] = {}

    @final
    def get_state(self) -> dict[str, Array]:
        """Copies of the state's arrays, by parameter name and kind, such as ``lora.matrix_a:second``.

        Raises
        ------
        NotSupportedError
            There is a state, but no `state_type`.
        """
        if self._states and self.state_type is None:
            raise NotSupportedError(f"{type(self).__name__} keeps a state, and has no state_type that says of which arrays")
        return {
            f"{name}:{kind}": array.copy() for name, state in self._states.items() for kind, array in vars(state).items()
        }

    @final
    def set_state(self, arrays: Mapping[str, Array]) -> None:
        """Replace the state of every parameter by copies of arrays as `get_state` gives them.

        Raises
        ------
        ArgumentError
            They are not of this kind of optimizer; nothing is changed.
        """
        kinds: dict[str, dict[str, Array]] = {}
        for key, array in arrays.items():
            name, _, kind = key.rpartition(":")
            kinds.setdefault(name, {})[kind] = array.copy()
        try:
            self._states = {name: self.state_type(**own) for name, own in kinds.items()}  # type: ignore[misc]
        except TypeError:
            raise ArgumentError(f"arrays must be the state of a {type(self).__name__}, got {list(arrays)[:4]}") from None

    @final
    def updates(self, layer: Layer) -> dict[str, Array]:
        """The updates of a layer's pending gradients, for its `apply_updates`.

        Raises
        ------
        InvalidOperationError
            No gradient is pending.
        """
        return self.updates_of(layer, layer.pending_gradients(), layer.pending_parts)

    @final
    def updates_of(self, layer: Layer, gradients: Mapping[str, Array], parts: Parts) -> dict[str, Array]:
        """The updates of gradients of a layer's parameters by name; see `update`."""
        updates = {}
        for name, dp in gradients.items():
            parameter = layer.parameter(name)
            assert parameter is not None
            updates[name] = self.update(name, dp, parameter, parts.get(name))
        return updates

    @abstractmethod
    def update(self, name: str, gradient: Array, parameter: Array, part: Part | None = None) -> Array:
        """What to add to a parameter.

        Parameters
        ----------
        name : str
            The key of the state.
        gradient, parameter : arrays of one shape
        part : tuple of slices, optional
            The part that trained, one slice for each axis; all of it if left out. The update is exactly zero elsewhere.
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
        Whether to look ahead: ``p += -η (g + μ v)`` (Sutskever et al. 2013, eq. 3 and 4).
    """

    state_type = _Velocity

    def __init__(self, learning_rate: float, momentum: float = 0.9, nesterov: bool = False) -> None:
        super().__init__(learning_rate)
        self.momentum = fraction("momentum", momentum)
        self.nesterov = bool(nesterov)

    def update(self, name: str, gradient: Array, parameter: Array, part: Part | None = None) -> Array:
        """One step of the rule."""
        if name not in self._states:
            self._states[name] = _Velocity(np.zeros_like(parameter))
        velocity = self._states[name].velocity
        same_shape(f"gradient of {name}", gradient, velocity.shape)
        update, here = _room_for(parameter, part)
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
    """How often each component got a gradient: an axis that was always trained whole has length 1."""

    @classmethod
    def zeros_like(cls, parameter: Array) -> _Moments:
        return cls(np.zeros_like(parameter), np.zeros_like(parameter), np.zeros((1,) * parameter.ndim, int))

    def count_along(self, part: Part) -> None:
        """Give every axis that is trained in parts a count for each index."""
        lengths = zip(part, self.steps.shape, self.first.shape, strict=True)
        shape = tuple(length if axis == slice(None) else full for axis, length, full in lengths)
        if shape != self.steps.shape:
            self.steps = np.broadcast_to(self.steps, shape).copy()


class _Adam(Optimizer):
    """Both forms of Adam; they differ in the weight decay."""

    state_type = _Moments

    def __init__(self, learning_rate: float, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
        super().__init__(learning_rate)
        self.beta1, self.beta2 = fraction("beta1", beta1), fraction("beta2", beta2)
        self.epsilon = finite_float("epsilon", epsilon)
        if self.epsilon <= 0:
            raise ArgumentOutOfRangeError(f"epsilon must be greater than 0, got {epsilon}")
        self.weight_decay = non_negative_float("weight_decay", weight_decay)

    @final
    def update(self, name: str, gradient: Array, parameter: Array, part: Part | None = None) -> Array:
        """One step of the rule, in the memory of the moments and of the update alone."""
        if name not in self._states:
            self._states[name] = _Moments.zeros_like(parameter)
        state = self._states[name]
        same_shape(f"gradient of {name}", gradient, state.first.shape)
        if part is not None:
            state.count_along(part)
        update, here = _room_for(parameter, part)
        m, v, steps, g, dp = state.first[here], state.second[here], state.steps[here], gradient[here], update[here]
        steps += 1
        # Powers of the decay rates undo the zeros that the moments began with, component by component.
        m_share, v_share = ((1 - beta**steps).astype(dp.dtype) for beta in (self.beta1, self.beta2))
        np.subtract(g, m, out=dp)
        dp *= 1 - self.beta1
        m += dp  # m = β₁ m + (1 - β₁) g
        np.multiply(g, g, out=dp)
        dp -= v
        dp *= 1 - self.beta2
        v += dp  # v = β₂ v + (1 - β₂) g²
        np.divide(v, v_share, out=dp)
        np.sqrt(dp, out=dp)
        dp += self.epsilon
        np.divide(m, dp, out=dp)
        dp /= m_share  # m̂ / (√v̂ + ε)
        if self.weight_decay:
            dp += self.weight_decay * parameter[here]
        dp *= -self.learning_rate
        return update


def _room_for(parameter: Array, part: Part | None) -> tuple[Array, Any]:
    """An array for an update, zero where it is not written, and the index of what is to be written."""
    return (np.empty_like(parameter), ...) if part is None else (np.zeros_like(parameter), part)


@final
class Adam(_Adam):
    """Adam (Kingma and Ba 2015, algorithm 1).

    ``m = β₁ m + (1 - β₁) g``, ``v = β₂ v + (1 - β₂) g²``, ``p += -η m̂ / (√v̂ + ε)``, with ``m̂ = m / (1 - β₁ᵗ)``,
    ``v̂ = v / (1 - β₂ᵗ)`` and t the number of gradients that *this component* has got.

    Parameters
    ----------
    learning_rate : float, default 0.001
        η.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay rates of the moments, in [0, 1).
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

    ``p += -η (m̂ / (√v̂ + ε) + λ p)``; a component without a gradient in this step does not decay.

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
