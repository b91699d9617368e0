"""`Embedding`: the rows of a table that integers select."""

from __future__ import annotations

from functools import partial
from typing import Any, Self, final

import numpy as np

from .._typing import RNG, Array, Cache, Gradients
from .._validation import array_shape, generator, not_none
from ..base import Layer
from ..errors import ArgumentError, ArgumentOutOfRangeError
from ..functions.initializers import Initializer, initial, normal
from ..run import Run

SMALL_NORMAL: Initializer = partial(normal, std=0.02)
"""N(0, 0.02²), the initial embeddings of BERT and GPT-2."""


@final
class Embedding(Layer):
    """``y = W[i]``: for each integer i of the input, row i of W.

    Parameters
    ----------
    input_size : int
        The number of rows of W: inputs are integers from 0 to input_size - 1.
    output_size : int
        The size of a row.
    initializer : callable, optional
        ``(shape, dtype, rng) -> array``, for the initial W with shape (input_size, output_size); by default, N(0, 0.02²).
    dtype : {float64, float32}
    rng : seed or numpy.random.Generator, optional
        For the initial W.

    Raises
    ------
    ArgumentError
        If a size is below 1, or if an argument has the wrong type.

    Notes
    -----
    The input is an integer array of any shape, and the output has one more axis. With G = dL/dY::

        Y = W[i],  dW[v] = Σ G over the rows with i = v

    These are the formulas of the dense layer ``X W`` for one-hot rows X, without the products. Integers have no gradient,
    so `backward` returns None.

    Examples
    --------
    >>> from lora_np import Embedding
    >>> layer = Embedding(10, 3, rng=0)
    >>> layer.forward([[1, 2, 2, 1], [0, 9, 1, 0]]).shape
    (2, 4, 3)
    """

    parameter_names = ("weight",)

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        initializer: Initializer = SMALL_NORMAL,
        dtype: Any = np.float64,
        rng: RNG = None,
    ) -> None:
        super().__init__(input_size, output_size, dtype)
        shape = (self.input_size, self.output_size)
        array_shape("input_size, output_size", *shape)
        weight = initial(initializer, shape, self.dtype, generator(rng))
        self.weight: Array = np.array(weight, order="C")

    @classmethod
    def from_array(cls, weight: Array) -> Self:
        """A layer of a given W, (input_size, output_size), which is not copied and may be memory-mapped."""
        layer = cls.__new__(cls)
        input_size, output_size = weight.shape
        Layer.__init__(layer, input_size, output_size, weight.dtype)
        layer.weight = weight
        return layer

    def apply(self, x: Array, run: Run) -> tuple[Array, Cache]:
        """``y = W[x]``."""
        return self.weight.take(x, axis=0), (x,)  # (in, out)[...] -> (..., out)

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dW[v] = Σ dy`` over the rows with x = v."""
        (x,) = cache
        return None, {"weight": _sum_by_index(x, dy, self.input_size)} if parameters else {}

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """Check that the input is an array of integers from 0 to input_size - 1."""
        not_none(name, input)
        try:
            x = np.asarray(input)
        except ValueError as error:
            raise ArgumentError(f"{name} must be an array of integers: {error}") from None
        if x.dtype.kind not in "iu":
            raise ArgumentError(f"{name} must be an array of integers, got dtype {x.dtype}")
        outside = x[(x < 0) | (x >= self.input_size)]
        if outside.size:
            raise ArgumentOutOfRangeError(f"{name} must contain integers from 0 to {self.input_size - 1}, got {outside[0]}")
        return x.astype(np.intp, copy=copy)

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return (*x.shape, self.output_size)

    def _example(self, rows: int) -> Array:
        return np.zeros(rows, np.intp)

    def get_input_shape(self) -> tuple[int, ...]:
        """The empty shape: one input sample is a single integer."""
        return ()

    def estimate_flops(self) -> int:
        """Zero: rows are copied."""
        return 0

    def config(self) -> dict[str, Any]:
        """Sizes and dtype."""
        return {"input_size": self.input_size, "output_size": self.output_size, "dtype": self.dtype}


def _sum_by_index(index: Array, dy: Array, size: int) -> Array:
    """The sums of the rows that have the same index: (...,) and (..., out) -> (size, out).

    Rows are sorted by index, so that each sum runs over consecutive rows. (`np.add.at` would add them one by one.)
    """
    dW = np.zeros((size, dy.shape[-1]), dy.dtype)
    order = index.argsort(axis=None, kind="stable")
    found = index.reshape(-1)[order]
    first = np.flatnonzero(np.diff(found, prepend=-1))
    dW[found[first]] = np.add.reduceat(dy.reshape(-1, dy.shape[-1])[order], first, axis=0)
    return dW
