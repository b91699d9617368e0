"""`Goal`: how the ranks of layers are chosen from their singular values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from .._typing import Array
from .._validation import finite_float, positive_int
from ..errors import ArgumentError
from .budget import best_ranks


@final
@dataclass(frozen=True)
class Goal:
    """One way to choose ranks, and an upper bound for them; see `lora_np.surgery.truncate`."""

    kind: str
    value: float
    max_rank: int | None

    @classmethod
    def of(cls, *, max_rank: Any = None, **choices: Any) -> Goal:
        """A goal from the arguments rank, energy, ratio and parameters, of which exactly one must be given."""
        given = {name: value for name, value in choices.items() if value is not None}
        if len(given) != 1:
            named = ", ".join(f"{name}={value!r}" for name, value in choices.items())
            raise ArgumentError(f"exactly one of {', '.join(choices)} must be given, got {named}")
        ((kind, value),) = given.items()
        if kind == "rank" and max_rank is not None:
            raise ArgumentError(f"max_rank must be None if a rank is given, got {max_rank!r}")
        limit = None if max_rank is None else positive_int("max_rank", max_rank)
        if kind in ("rank", "parameters"):
            return cls(kind, positive_int(kind, value), limit)
        number = finite_float(kind, value)
        if kind == "energy" and not 0 < number <= 1:
            raise ArgumentError(f"energy must lie in (0, 1], got {number}")
        if kind == "ratio" and number < 1:
            raise ArgumentError(f"ratio must be at least 1, got {number}")
        return cls(kind, number, limit)

    def ranks(self, spectra: Sequence[Array], costs: Sequence[int]) -> list[int]:
        """The rank of each layer, from its singular values and the number of parameters of each of its ranks."""
        if self.kind == "parameters":
            return best_ranks([sigma[: self.max_rank] for sigma in spectra], costs, int(self.value))
        return [min(self._rank(sigma), self.max_rank or len(sigma)) for sigma in spectra]

    def _rank(self, sigma: Array) -> int:
        if self.kind == "rank":
            return int(min(self.value, len(sigma)))
        if self.kind == "ratio":
            return max(1, int(((sigma >= sigma[0] / self.value) & (sigma > 0)).sum()))
        energies = np.cumsum(sigma**2)
        return 1 + int((energies < self.value * energies[-1]).sum())
