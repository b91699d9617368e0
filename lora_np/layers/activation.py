"""`ActivationLayer`: an activation as a separate layer."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from .._typing import Array, Cache, Gradients
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import Activation
from ..run import Run


@final
class ActivationLayer(Layer):
    """``y = f(x)``, without parameters.

    Parameters
    ----------
    size : int
        The size of the last axis of input and output.
    activation : Activation
        f.
    dtype : {float64, float32}
    """

    def __init__(self, size: int, activation: Activation, *, dtype: Any = np.float64) -> None:
        super().__init__(size, size, dtype)
        if not isinstance(activation, Activation):
            raise ArgumentError(f"activation must be an Activation such as lora_np.relu, got {activation!r}")
        self.activation = activation

    def apply(self, x: Array, run: Run) -> tuple[Array, Cache]:
        """``y = f(x)``."""
        return self.activation.apart(x), (x,)

    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """``dx = f-vjp(dy, x)``."""
        (x,) = cache
        return (self.activation.vjp(dy, x) if inputs else None), {}

    def estimate_flops(self) -> int:
        """The activation's operations for each element."""
        return self.activation.operations * self.output_size

    def get_activation_types(self) -> tuple[str, ...]:
        """The activation's name."""
        return (self.activation.name,)

    def _details(self) -> dict[str, str]:
        return {"activation.function": self.activation.name}

    def config(self) -> dict[str, Any]:
        """Size, activation and dtype."""
        return {"size": self.input_size, "activation": self.activation, "dtype": self.dtype}
