"""Penalties on a weight matrix: l1, l2, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from .._typing import Array
from .._validation import non_negative_float


@final
@dataclass(frozen=True)
class Regularization:
    """The elastic-net penalty ``l1 Σ|W| + l2/2 Σ W²`` (Zou and Hastie 2005), with lasso and ridge as special cases.

    Parameters
    ----------
    l1 : float, default 0
        Strength of the penalty on absolute values; lasso if `l2` is 0.
    l2 : float, default 0
        Strength of the penalty on squares; ridge if `l1` is 0.

    Raises
    ------
    ArgumentError
        If a strength is negative, infinite or not a number.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Regularization
    >>> Regularization(l1=1.0, l2=2.0).penalty(np.array([[3.0, -1.0]]))
    np.float64(14.0)
    """

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("l1", "l2"):  # Python floats, so that float32 arrays stay float32
            object.__setattr__(self, name, non_negative_float(name, getattr(self, name)))

    def penalty(self, weight: Array) -> Any:
        """The value of the penalty, a scalar of the weight's dtype."""
        magnitude = np.where(weight.real < 0, -weight, weight)
        return self.l1 * magnitude.sum() + 0.5 * self.l2 * (weight * weight).sum()

    def gradient(self, weight: Array) -> Array:
        """The gradient, ``l1 sign(W) + l2 W``; at zero, the l1 term takes the midpoint of its subgradient, 0."""
        return self.l1 * np.sign(weight) + self.l2 * weight

    def config(self) -> dict[str, float]:
        """The strengths, as written to files."""
        return {"l1": self.l1, "l2": self.l2}

    @classmethod
    def from_config(cls, config: dict[str, float]) -> Regularization:
        """The penalty with strengths read from a file."""
        return cls(**config)


NO_REGULARIZATION = Regularization()
