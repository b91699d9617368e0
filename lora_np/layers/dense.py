"""Affine layers with an activation, in both layouts of the weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, Self, final

import numpy as np

from .._typing import RNG, Array, Cache, Gradients
from .._validation import array_shape, generator, real_array, same_shape
from ..activations import Activation, identity
from ..errors import ArgumentError
from ..initializers import Initializer, glorot_uniform, zeros
from ..kernels import PackedMatrix, add, packed, product, sum_outer, sum_rows
from ..regularization import NO_REGULARIZATION, Regularization
from .activation import ActivationLayer
from .base import Layer, Memory


class _Pack(NamedTuple):
    """What `AffineLayer.pack` made, and of which array."""

    weight: Array
    factor: PackedMatrix


class AffineLayer(Layer):
    """``y = f(x W + b)``, whatever the layout in which W is stored.

    Parameters
    ----------
    input_size, output_size : int
    activation : Activation, optional
        f; the identity if it is left out.
    initializer : callable, optional
        ``(shape, dtype, rng) -> array`` with shape (input_size, output_size), for W; b begins at zero.
    regularization : Regularization, optional
        A penalty on W, added to the loss by `compute_auxiliary_loss` and to dW here.
    dtype : {float64, float32}
    rng : seed or numpy.random.Generator, optional

    Raises
    ------
    ArgumentError
        A size below 1, or an argument of another type.

    Notes
    -----
    With Z the pre-activation and G = dL/dY (all sums run over rows)::

        Z = X W + b,  Y = f(Z)
        dZ = f-vjp(G, Z),  dW = Xᵀ dZ + penalty',  db = Σ dZ,  dX = dZ Wᵀ
    """

    parameter_names = ("weight", "bias")

    def __init__(
        self,
        input_size: int,
        output_size: int,
        activation: Activation | None = None,
        *,
        initializer: Initializer = glorot_uniform,
        regularization: Regularization | None = None,
        dtype: Any = np.float64,
        rng: RNG = None,
    ) -> None:
        super().__init__(input_size, output_size, dtype)
        array_shape("input_size, output_size", self.input_size, self.output_size)
        self.activation = identity if activation is None else activation
        if not isinstance(self.activation, Activation):
            raise ArgumentError(f"activation must be an Activation such as lora_np.relu, got {activation!r}")
        self.regularization = NO_REGULARIZATION if regularization is None else regularization
        if not isinstance(self.regularization, Regularization):
            raise ArgumentError(f"regularization must be a Regularization, got {regularization!r}")
        shape = (self.input_size, self.output_size)
        weight = real_array("initializer's result", initializer(shape, self.dtype, generator(rng)), self.dtype)
        same_shape("initializer's result", weight, shape)
        self.weight: Array = np.array(self.in_layout(weight), order="C")
        self.bias: Array = np.zeros(self.output_size, self.dtype)
        self._pack: _Pack | None = None

    @staticmethod
    @abstractmethod
    def in_layout(matrix: Array) -> Array:
        """A view of an (in, out) matrix in the layout of `weight`, and the other way round: it is its own inverse."""

    @property
    def matrix(self) -> Array:
        """A view of W as (input_size, output_size), whatever its layout."""
        return self.in_layout(self.weight)

    @property
    def _factor(self) -> Array | PackedMatrix:
        """W as `product` takes it: packed, while the array is the one that was packed and nobody can write into it."""
        pack = self._pack
        if pack is not None and pack.weight is self.weight and not self.weight.flags.writeable:
            return pack.factor
        return self.matrix

    def apply(self, x: Array, *, training: bool = False) -> tuple[Array, Cache]:
        """``y = f(x W + b)``."""
        W, b = self._factor, self.bias
        z = product(x, W)  # (..., in) @ (in, out) -> (..., out)
        z = add(z, b, room=z)
        y = self.activation.apart(z)
        return y, (x, None if self.activation is identity else z)  # the identity's vjp does not look at z

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dz = f-vjp(dy, z)``, ``dW = xᵀ dz``, ``db = Σ dz``, ``dx = dz Wᵀ``."""
        x, z = cache
        W = self._factor
        dz = self.activation.vjp(dy, z)
        gradients = {}
        if parameters:
            dW = self.in_layout(sum_outer(x, dz))  # (in, ...) @ (..., out) -> (in, out)
            if self.regularization != NO_REGULARIZATION:
                dW = dW + self.regularization.gradient(self.weight)
            gradients = {"weight": dW, "bias": sum_rows(dz)}
        dx = product(dz, W.T) if inputs else None  # (..., out) @ (out, in) -> (..., in)
        return dx, gradients

    def pack_own(self, memory: Memory) -> None:
        """Pack W for the forward product, and with ``"max"`` for the backward one too."""
        self.unpack_own()
        if memory != "lean":
            self.weight.flags.writeable = False
            factor = packed(self.matrix, forward=True, backward=memory == "max")
            self._pack = _Pack(self.weight, factor)

    def unpack_own(self) -> None:
        """Drop the panels; W becomes an array of its own, for other layers may have packed the one that it was."""
        if self._pack is not None:
            self._pack = None
            self.weight = self.weight.copy(order="K")

    @property
    def packed_bytes(self) -> int:
        """The memory of the panels."""
        return 0 if self._pack is None else self._pack.factor.extra_bytes

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pack": None}  # a copy has arrays of its own, which nobody has packed

    def compute_auxiliary_loss(self) -> Any:
        """The penalty of the weight."""
        return self.regularization.penalty(self.weight)

    def with_matrix(self, matrix: Array) -> Self:
        """A new layer that differs in W alone.

        Parameters
        ----------
        matrix : array, shape (input_size, output_size)
        """
        twin = self.clone()
        twin.set_parameter("weight", self.in_layout(matrix))
        return twin

    def split_activation(self) -> tuple[Self, ActivationLayer]:
        """The same map as two layers: a linear one that shares this one's arrays, and the activation."""
        linear = self.from_config(self.config() | {"activation": identity, "initializer": zeros})
        linear.weight, linear.bias = self.weight, self.bias
        return linear, ActivationLayer(self.output_size, self.activation, dtype=self.dtype)

    def estimate_flops(self) -> int:
        """2·in·out for the product, out for the bias, and the activation."""
        return (2 * self.input_size + 1 + self.activation.operations) * self.output_size

    def get_activation_types(self) -> tuple[str, ...]:
        """The activation's name."""
        return (self.activation.name,)

    def details(self) -> dict[str, str]:
        """The activation, and the regularization if there is one."""
        details = {} if self.activation == identity else {"dense.activation": self.activation.name}
        if self.regularization != NO_REGULARIZATION:
            details["dense.regularization"] = f"{self.regularization.l1:g} l1 + {self.regularization.l2:g} l2"
        return details

    def config(self) -> dict[str, Any]:
        """Sizes, activation, regularization and dtype."""
        return {
            "input_size": self.input_size,
            "output_size": self.output_size,
            "activation": self.activation,
            "regularization": self.regularization,
            "dtype": self.dtype,
        }


@final
class DenseLayer(AffineLayer):
    """``y = f(x W + b)`` with W stored as (input_size, output_size).

    The parameters are those of `AffineLayer`; the flat vector holds W row by row, then b.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import DenseLayer, relu
    >>> layer = DenseLayer(3, 2, relu, rng=0)
    >>> layer.forward(np.ones((5, 3))).shape
    (5, 2)
    """

    @staticmethod
    def in_layout(matrix: Array) -> Array:
        """The matrix itself."""
        return matrix


@final
class FullyConnectedLayer(AffineLayer):
    """``y = f(x Wᵀ + b)`` with W stored as (output_size, input_size).

    The parameters are those of `AffineLayer`; the flat vector holds the stored W row by row, then b.
    """

    @staticmethod
    def in_layout(matrix: Array) -> Array:
        """The transpose."""
        return matrix.T
