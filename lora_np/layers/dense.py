"""Affine layers with an activation, one for each layout of the weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, Self, final

import numpy as np

from .._typing import RNG, Array, Gradients
from .._validation import array_shape, generator, real_array
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import Activation, identity
from ..functions.initializers import INITIALIZERS, Initializer, glorot_uniform, initial
from ..functions.regularization import NO_REGULARIZATION, Regularization
from ..kernels import add, product, sum_outer, sum_rows
from ..run import Run
from .activation import ActivationLayer


class DenseCache(NamedTuple):
    """The cache for `AffineLayer.vjp`; z is None if there is no activation."""

    x: Array
    z: Array | None


class AffineLayer(Layer):
    """``y = f(x W + b)``, for either layout of W.

    Parameters
    ----------
    input_size, output_size : int
    activation : Activation, optional
        f; by default, the identity.
    initializer : callable, optional
        ``(shape, dtype, rng) -> array``, for the initial W with shape (input_size, output_size); b is initially zero.
    regularization : Regularization, optional
        A penalty on W: `compute_auxiliary_loss` returns it, and `vjp` adds its gradient to dW.
    bias : bool, default True
        Whether there is a b.
    dtype : {float64, float32}
    rng : seed or numpy.random.Generator, optional
        For the initial W.

    Raises
    ------
    ArgumentError
        If a size is below 1, or if an argument has the wrong type.

    Notes
    -----
    With Z the pre-activation and G = dL/dY (all sums run over rows)::

        Z = X W + b,  Y = f(Z)
        dZ = f-vjp(G, Z),  dW = Xᵀ dZ + penalty',  db = Σ dZ,  dX = dZ Wᵀ
    """

    parameter_names: tuple[str, ...] = ("weight", "bias")

    def __init__(
        self,
        input_size: int,
        output_size: int,
        activation: Activation | None = None,
        *,
        initializer: Initializer = glorot_uniform,
        regularization: Regularization | None = None,
        bias: bool = True,
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
        weight = initial(initializer, shape, self.dtype, generator(rng))
        is_new = any(initializer is shipped for shipped in INITIALIZERS)
        self.weight: Array = np.array(self.in_layout(weight), order="C", copy=None if is_new else True)
        self._set_bias(np.zeros(self.output_size, self.dtype) if bias else None)

    @classmethod
    def from_arrays(cls, weight: Array, bias: Array | None = None) -> Self:
        """A linear layer of the given arrays, in the layout of `weight`: not copied, so possibly memory-mapped."""
        layer = cls.__new__(cls)
        input_size, output_size = cls.in_layout(weight).shape
        Layer.__init__(layer, input_size, output_size, weight.real.dtype)  # complex in a complex step
        layer.activation, layer.regularization = identity, NO_REGULARIZATION
        layer.weight = weight
        layer._set_bias(bias)
        return layer

    def _set_bias(self, bias: Array | None) -> None:
        self.bias: Array | None = bias
        if bias is None:
            self.parameter_names = ("weight",)

    @staticmethod
    @abstractmethod
    def in_layout(matrix: Array) -> Array:
        """Convert an (in, out) matrix to the layout of `weight`, or back, as a view: the function is its own inverse."""

    @property
    def matrix(self) -> Array:
        """A view of W with shape (input_size, output_size), whatever the layout of `weight`."""
        return self.in_layout(self.weight)

    def apply(self, x: Array, run: Run) -> tuple[Array, DenseCache]:
        """``y = f(x W + b)``."""
        W, b = self.matrix, self.bias
        z = product(x, W)  # (..., in) @ (in, out) -> (..., out)
        z = z if b is None else add(z, b)
        y = self.activation.apart(z)
        return y, DenseCache(x, None if self.activation is identity else z)  # the vjp of the identity does not use z

    def vjp(
        self, dy: Array, cache: DenseCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dz = f-vjp(dy, z)``, ``dW = xᵀ dz``, ``db = Σ dz``, ``dx = dz Wᵀ``."""
        x, z = cache
        W = self.matrix
        dz = dy if z is None else self.activation.vjp(dy, z)
        gradients = {}
        if parameters:
            dW = self.in_layout(sum_outer(x, dz))  # (in, ...) @ (..., out) -> (in, out)
            if self.regularization != NO_REGULARIZATION:
                dW = dW + self.regularization.gradient(self.weight)
            gradients = {"weight": dW} if self.bias is None else {"weight": dW, "bias": sum_rows(dz)}
        dx = product(dz, W.T) if inputs else None  # (..., out) @ (out, in) -> (..., in)
        return dx, gradients

    def _matrices(self) -> tuple[Array, ...]:
        return (self.matrix,)

    def compute_auxiliary_loss(self) -> Any:
        """The penalty on W."""
        return self.regularization.penalty(self.weight)

    def with_matrix(self, matrix: Array) -> Self:
        """A copy of the layer with W replaced.

        Parameters
        ----------
        matrix : array, shape (input_size, output_size)
        """
        weight = self.in_layout(real_array("matrix", matrix))
        twin = self.clone()
        twin.set_parameter("weight", weight)
        return twin

    def split_activation(self) -> tuple[Self, ActivationLayer]:
        """The same function as two layers: a linear one, which shares this layer's arrays, and the activation."""
        linear = self.from_arrays(self.weight, self.bias)
        linear.regularization = self.regularization
        return linear, ActivationLayer(self.output_size, self.activation, dtype=self.dtype)

    def estimate_flops(self) -> int:
        """2·in·out for the product, out for the bias, and the activation."""
        return (2 * self.input_size + 1 + self.activation.operations) * self.output_size

    def get_activation_types(self) -> tuple[str, ...]:
        """The activation's name."""
        return (self.activation.name,)

    def _details(self) -> dict[str, str]:
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
            "bias": self.bias is not None,
            "dtype": self.dtype,
        }


@final
class DenseLayer(AffineLayer):
    """``y = f(x W + b)`` with W stored as (input_size, output_size).

    See `AffineLayer` for the parameters. The flat vector holds W in row-major order, then b.

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

    See `AffineLayer` for the parameters. The flat vector holds W as stored, in row-major order, then b.
    """

    @staticmethod
    def in_layout(matrix: Array) -> Array:
        """The transpose."""
        return matrix.T
