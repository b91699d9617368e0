"""`LowRankLayer`: the rank, alpha and scaling that all low-rank branches have."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np

from .._typing import Array, Cache
from .._validation import array_shape, one_of, positive_int, resolved_alpha
from ..run import Run
from .dropout import InputDropout

SCALINGS = ("max", "paper", "rslora")


class LowRankLayer(InputDropout):
    """A linear layer without bias whose weight is a product of factors, usable at any rank up to its full rank.

    Parameters
    ----------
    input_size, output_size : int
    rank : int
        The number of components: columns of the first factor, rows of the second.
    alpha : float
        The LoRA alpha. A negative value means `rank`; with 0, the layer returns zeros.
    scaling : {"max", "paper", "rslora"}
        The rule of `scaling_at`.
    dtype : {float64, float32}
    """

    def __init__(
        self, input_size: int, output_size: int, rank: int, alpha: float, scaling: str, dtype: Any = np.float64
    ) -> None:
        super().__init__(input_size, output_size, dtype)
        self.rank = positive_int("rank", rank)
        array_shape("input_size, rank", self.input_size, self.rank)
        array_shape("rank, output_size", self.rank, self.output_size)
        self.alpha = resolved_alpha(alpha, self.rank)
        self.scaling_rule = one_of("scaling", scaling, SCALINGS)

    @abstractmethod
    def apply(self, x: Array, run: Run, *, rank: int | Array | None = None, trained_from: int = 0) -> tuple[Array, Cache]:
        """The output of the first `rank` components; `vjp` skips the gradients of the first `trained_from` of them."""

    @abstractmethod
    def merge_weights(self, *, rank: int | None = None) -> Array:
        """The weight of the first `rank` components as one matrix, scaling included, shape (input_size, output_size)."""

    def scaling_at(self, rank: int) -> float:
        """The factor s of the first `rank` components.

        ``"max"``: alpha / (full rank), the same at every rank; ``"paper"``: alpha / rank (Valipour et al. 2022, eq. 7);
        ``"rslora"``: alpha / √rank (Kalajdzievski 2023, eq. 3).
        """
        if self.scaling_rule == "max":
            return self.alpha / self.rank
        return self.alpha / (rank if self.scaling_rule == "paper" else math.sqrt(rank))

    @property
    def scaling(self) -> float:
        """The factor at the full rank."""
        return self.scaling_at(self.rank)

    def components_at(self, rank: int | Array | None, shape: tuple[int, ...]) -> tuple[int, float | Array]:
        """The number of components that a pass needs, and their scaling.

        Parameters
        ----------
        rank : int, array of int with shape (rows,), or None
            None means the full rank.
        shape : tuple of int
            The shape of the input, (rows, ..., input_size).

        Returns
        -------
        r : int
            The largest rank.
        s : float, or array of shape (rows, 1, ..., 1, r)
            If each row has its own rank, row i of s is ``scaling_at`` of that rank in the columns up to it, and zero beyond
            (nested dropout: Rippel et al. 2014).
        """
        if not isinstance(rank, np.ndarray):
            r = self.rank if rank is None else rank
            s = self.scaling_at(r)
            # Multiplying by an array is twice as fast as by a Python float; a graph needs the number itself, with its name.
            return r, np.array(s, self.dtype) if type(s) is float else s
        r = int(rank.max(initial=1))
        scalings = np.array([self.scaling_at(each) for each in range(1, r + 1)], self.dtype)
        by_rank = np.tri(r, dtype=self.dtype) * scalings[:, np.newaxis]  # row k: the first k + 1 components
        rows, middle = shape[:-1][:1], [1] * (len(shape) - 2)  # a single vector has no rows
        return r, by_rank[rank - 1].reshape(*rows, *middle, r)

    def _details(self) -> dict[str, str]:
        details = {"lora.rank": str(self.rank), "lora.alpha": f"{self.alpha:g}"}
        details |= {"lora.scaling": f"{self.scaling:g}"}
        return details | ({"lora.dropout": f"{self.dropout:g}"} if self.dropout else {})

    def config(self) -> dict[str, Any]:
        """Sizes, rank, alpha, dtype and dropout, if there is any."""
        return {
            "input_size": self.input_size,
            "output_size": self.output_size,
            "rank": self.rank,
            "alpha": self.alpha,
            "dtype": self.dtype,
        } | self.dropout_config
