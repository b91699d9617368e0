"""Activation functions: each a named pair of a function and its vector-Jacobian product.

Every function takes the pre-activation z, of any shape. Every vjp takes the gradient dy of the output *and the
pre-activation*, and returns ``dz = Jᵀ dy``, J being the Jacobian at z. Softmax acts along the last axis; all others act
elementwise, so that ``dz = f'(z) dy``. Conditions test the real part, so that complex-step derivatives pass through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..kernels import zero_where
from . import fused
from .erf import erf
from .fused import GELU_C, GELU_D, INVERSE_SQRT_2PI, Piece, gelu_exact_piece, gelu_piece, swish_piece


@final
@dataclass(frozen=True)
class Activation:
    """A named activation function with its derivative.

    Parameters
    ----------
    name : str
        The name shown in `repr` and in diagnostics, and written to saved files.
    function : callable
        ``y = function(z)``, with the shape of z.
    vjp : callable
        ``dz = vjp(dy, z)``, the gradient with respect to the pre-activation z.
    operations : int, default 1
        Approximate number of floating-point operations per element, for `Layer.estimate_flops`.
    fused : callable, optional
        The function and its derivative in float32 for `value_and_slope`: see `lora_np.functions.fused.Piece`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import relu
    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    >>> relu.vjp(np.array([5.0, 5.0]), np.array([-1.0, 2.0]))
    array([0., 5.])
    """

    name: str
    function: Callable[[Array], Array]
    vjp: Callable[[Array, Array], Array]
    operations: int = 1
    fused: Piece | None = field(default=None, compare=False)

    def __call__(self, z: Array) -> Array:
        """Apply the function to an array or array-like."""
        return self.function(np.asarray(z))

    def apart(self, z: Array) -> Array:
        """Like calling the function, but the caller may overwrite the result without affecting a later `vjp`.

        Only the identity, whose `vjp` ignores z, may return z itself.
        """
        y = self.function(z)
        return y if self is identity or not np.may_share_memory(y, z) else y.copy()

    def value_and_slope(self, z: Array, *, slope: bool = True, overwrite: bool = False) -> tuple[Array, Array | None]:
        """``f(z)`` and ``f'(z)`` of an elementwise activation: with the slope, ``dz = f'(z) dy`` needs no z.

        Parameters
        ----------
        z : array, any shape
            In float32, `swish`, `gelu` and `gelu_exact` are several times faster than the function and its vjp. The error
            is at most 2e-7 max(1, abs(z)) in ``f(z)`` and 2.5e-7 in ``f'(z)``, also at -∞.
        slope : bool, default True
            Whether the slope is needed; if not, it is None.
        overwrite : bool, default False
            Whether a result may be written to z, which the caller must no longer need. This saves memory.

        Raises
        ------
        NotSupportedError
            If the activation is softmax, which does not act elementwise.
        """
        if self is softmax:
            raise NotSupportedError("softmax has no slope: it does not act elementwise")
        if self.fused is not None and type(z) is np.ndarray and z.dtype == np.float32:
            return fused.value_and_slope(self.fused, z, slope=slope, overwrite=overwrite)
        return self.apart(z), self.vjp(np.ones_like(z), z) if slope else None

    def __reduce__(self) -> str | tuple[Any, ...]:
        # An activation of this module is pickled as a reference to its global name, so copies are the same object.
        if SHIPPED.get(self.name) is self:
            return self.name
        return Activation, (self.name, self.function, self.vjp, self.operations, self.fused)

    def __repr__(self) -> str:
        return f"<activation {self.name}>"

    def config(self) -> dict[str, Any]:
        """The name, as written to files.

        Raises
        ------
        NotSupportedError
            If the activation is not defined in this module.
        """
        if SHIPPED.get(self.name) != self:
            raise NotSupportedError(f"activation {self.name!r} cannot be saved: it is not defined by lora_np")
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Activation:
        """The activation with the name read from a file.

        Raises
        ------
        FormatError
            If no activation of this module has that name.
        """
        name = config.get("name")
        if name not in SHIPPED:
            raise FormatError(f"activation must be one of {', '.join(SHIPPED)}, got {name!r}")
        return SHIPPED[name]


def _positive(z: Array) -> Array:
    return z.real > 0


def _identity(z: Array) -> Array:
    return z


def _identity_vjp(dy: Array, z: Array) -> Array:
    return dy


identity = Activation("identity", _identity, _identity_vjp, 0)
"""Identity: ``f(z) = z``, ``f'(z) = 1``."""


def _relu(z: Array) -> Array:
    if z.dtype.kind != "f":
        return np.where(z.real <= 0, 0, z)  # not z > 0, so that NaN stays NaN
    y = np.zeros_like(z)
    return np.maximum(z, y, out=y)  # the same, and several times as fast


def _relu_vjp(dy: Array, z: Array) -> Array:
    return zero_where(z.real <= 0, dy)


relu = Activation("relu", _relu, _relu_vjp)
"""Rectified linear unit (Nair and Hinton 2010).

``f(z) = max(z, 0)``; ``f'(z) = 1`` if z > 0, else 0: the derivative at 0 is 0 by convention. An infinite gradient of the
output gives 0 where f'(z) = 0.
"""


LEAKY_SLOPE = 0.01


def _leaky_relu(z: Array) -> Array:
    return np.where(_positive(z), z, LEAKY_SLOPE * z)


def _leaky_relu_vjp(dy: Array, z: Array) -> Array:
    return np.where(_positive(z), dy, LEAKY_SLOPE * dy)


leaky_relu = Activation("leaky_relu", _leaky_relu, _leaky_relu_vjp, 2)
"""Leaky rectified linear unit (Maas, Hannun and Ng 2013).

``f(z) = z`` if z > 0, else ``0.01 z``; ``f'(z) = 1`` if z > 0, else 0.01.
"""


def _expm1_of_negative(z: Array) -> Array:
    """exp(z) - 1 where z <= 0, else 0: the exponential of a large z, which could overflow, is never computed."""
    return np.expm1(np.where(_positive(z), 0, z))


def _elu(z: Array) -> Array:
    return np.where(_positive(z), z, _expm1_of_negative(z))


def _elu_vjp(dy: Array, z: Array) -> Array:
    return dy * (1 + _expm1_of_negative(z))


elu = Activation("elu", _elu, _elu_vjp, 3)
"""Exponential linear unit with α = 1 (Clevert, Unterthiner and Hochreiter 2016, eq. 15).

``f(z) = z`` if z > 0, else ``exp(z) - 1``; ``f'(z) = 1`` if z > 0, else ``exp(z)``.
"""


SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def _selu(z: Array) -> Array:
    return SELU_SCALE * np.where(_positive(z), z, SELU_ALPHA * _expm1_of_negative(z))


def _selu_vjp(dy: Array, z: Array) -> Array:
    slope = np.where(_positive(z), 1, SELU_ALPHA * (1 + _expm1_of_negative(z)))
    return SELU_SCALE * dy * slope


selu = Activation("selu", _selu, _selu_vjp, 4)
"""Scaled exponential linear unit, which drives activations towards mean 0 and variance 1 (Klambauer et al. 2017, eq. 2).

``f(z) = λ z`` if z > 0, else ``λ α (exp(z) - 1)``; ``f'(z) = λ`` if z > 0, else ``λ α exp(z)``, with λ = 1.0507 and
α = 1.6733.
"""


def _magnitude(z: Array) -> Array:
    return np.where(_positive(z), z, -z)


def _sigmoid(z: Array) -> Array:
    # exp(-|z|) never overflows, and both tails keep their relative precision.
    e = np.exp(-_magnitude(z))
    return np.where(_positive(z), 1, e) / (1 + e)


def _sigmoid_vjp(dy: Array, z: Array) -> Array:
    # The derivative is even, so exp(-|z|) can replace exp(-z) here too.
    e = np.exp(-_magnitude(z))
    return dy * e / (1 + e) ** 2


sigmoid = Activation("sigmoid", _sigmoid, _sigmoid_vjp, 4)
"""Logistic sigmoid (Rumelhart, Hinton and Williams 1986, eq. 2).

``f(z) = σ(z) = 1 / (1 + exp(-z))``; ``f'(z) = σ(z) (1 - σ(z))``.
"""


def _tanh_vjp(dy: Array, z: Array) -> Array:
    return dy * (1 - np.tanh(z) ** 2)


tanh = Activation("tanh", np.tanh, _tanh_vjp)
"""Hyperbolic tangent, a sigmoid that is symmetric about 0 (LeCun et al. 1998, *Efficient BackProp*, sec. 4.4).

``f(z) = tanh(z) = 2 σ(2z) - 1``; ``f'(z) = 1 - tanh²(z)``.
"""


def _softplus(z: Array) -> Array:
    # log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|)) never overflows.
    return np.where(_positive(z), z, 0) + np.log1p(np.exp(-_magnitude(z)))


def _softplus_vjp(dy: Array, z: Array) -> Array:
    return dy * _sigmoid(z)


softplus = Activation("softplus", _softplus, _softplus_vjp, 4)
"""Softplus, a smooth form of relu (Dugas et al. 2001).

``f(z) = log(1 + exp(z))``; ``f'(z) = σ(z)``.
"""


def _softsign(z: Array) -> Array:
    return z / (1 + _magnitude(z))


def _softsign_vjp(dy: Array, z: Array) -> Array:
    slope_root = 1 / (1 + _magnitude(z))  # the square of the divisor could overflow
    return dy * slope_root * slope_root


softsign = Activation("softsign", _softsign, _softsign_vjp, 3)
"""Softsign (Elliott 1993).

``f(z) = z / (1 + |z|)``; ``f'(z) = 1 / (1 + |z|)²``.
"""


def _swish(z: Array) -> Array:
    return z * _sigmoid(z)


def _swish_vjp(dy: Array, z: Array) -> Array:
    y = _sigmoid(z)
    return dy * (y + z * y * (1 - y))


swish = Activation("swish", _swish, _swish_vjp, 5, swish_piece)
"""Swish with β = 1, also called SiLU (Ramachandran, Zoph and Le 2017).

``f(z) = z σ(z)``; ``f'(z) = σ(z) + z σ(z) (1 - σ(z))``.
"""


def _within(z: Array, limit: float) -> Array:
    """Clip z to -limit..limit, so that its powers do not overflow where the function is 0 or z anyway."""
    return np.where(z.real > limit, limit, np.where(z.real < -limit, -limit, z))


def _gelu(z: Array) -> Array:
    c = _within(z, 20)
    return 0.5 * z * (1 + np.tanh(GELU_C * (c + GELU_D * c * c * c)))


def _gelu_vjp(dy: Array, z: Array) -> Array:
    c = _within(z, 20)
    t = np.tanh(GELU_C * (c + GELU_D * c * c * c))
    return dy * (0.5 * (1 + t) + 0.5 * c * (1 - t * t) * GELU_C * (1 + 3 * GELU_D * c * c))


gelu = Activation("gelu", _gelu, _gelu_vjp, 9, gelu_piece)
"""Gaussian error linear unit, tanh approximation (Hendrycks and Gimpel 2016, sec. 2).

``f(z) = z/2 (1 + t)`` with ``t = tanh(c (z + d z³))``, c = √(2/π), d = 0.044715;
``f'(z) = (1 + t)/2 + z/2 (1 - t²) c (1 + 3 d z²)``.
"""


SQRT_HALF = 0.7071067811865476


def _gelu_exact(z: Array) -> Array:
    return 0.5 * z * (1 + erf(SQRT_HALF * z))


def _gelu_exact_vjp(dy: Array, z: Array) -> Array:
    cumulative = 0.5 * (1 + erf(SQRT_HALF * z))
    c = _within(z, 40)
    density = INVERSE_SQRT_2PI * np.exp(-0.5 * c * c)
    return dy * (cumulative + c * density)


gelu_exact = Activation("gelu_exact", _gelu_exact, _gelu_exact_vjp, 40, gelu_exact_piece)
"""Gaussian error linear unit (Hendrycks and Gimpel 2016, sec. 2).

``f(z) = z Φ(z)``; ``f'(z) = Φ(z) + z φ(z)``, with Φ and φ the distribution function and density of N(0, 1).
"""


def _softmax(z: Array) -> Array:
    with np.errstate(over="ignore"):  # -∞, whose exponential is 0, is right
        shifted = z - z.real.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(axis=-1, keepdims=True)


def _softmax_vjp(dy: Array, z: Array) -> Array:
    y = _softmax(z)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


softmax = Activation("softmax", _softmax, _softmax_vjp, 5)
"""Softmax along the last axis (Bridle 1990).

``y_i = exp(z_i) / Σ_k exp(z_k)``; the Jacobian ``J_ij = y_i ([i = j] - y_j)`` gives ``dz = y (dy - Σ_k y_k dy_k)``.
"""


ACTIVATIONS = (
    identity,
    relu,
    leaky_relu,
    elu,
    selu,
    sigmoid,
    tanh,
    softplus,
    softsign,
    swish,
    gelu,
    gelu_exact,
    softmax,
)
"""All activations of the package, in the order of their definition."""

SHIPPED = {activation.name: activation for activation in ACTIVATIONS}
"""The same by name."""
