"""The settings of the demo, and its random numbers."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Stream(IntEnum):
    """The streams of random numbers, one per purpose, so that no result depends on what ran before."""

    SPLIT = 0
    BASE = 1
    DYLORA = 2
    LORA = 3
    TASKS = 4
    MIXED_TASKS = 5
    MIXED_BATCH = 6


class Budget(NamedTuple):
    """How long and how fast a model trains; the same for all methods that are compared."""

    epochs: int
    learning_rate: float
    batch_size: int


@dataclass(frozen=True)
class Settings:
    """All settings. Equal settings give equal numbers, apart from times."""

    seed: int = 0
    test_rows: int = 600
    hidden: int = 128
    """The width of the hidden layers."""
    base_epochs: int = 20
    base_learning_rate: float = 0.003
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    """The ranks to compare, in ascending order."""
    rank_epochs: int = 50
    sorted_start: bool = False
    """Whether DyLoRA trains with a `SortedStart`."""
    task_rank: int = 4
    task_epochs: int = 20
    learning_rate: float = 0.02
    """The learning rate of adapters."""
    batch_size: int = 16
    """Small, because for larger products BLAS starts threads, which cost more time here than they save."""
    margin: float = 0.02
    """The accuracy that DyLoRA may lose, at the highest rank, against a LoRA trained only for that rank."""

    @property
    def base_budget(self) -> Budget:
        """The budget of the base network."""
        return Budget(self.base_epochs, self.base_learning_rate, self.batch_size)

    @property
    def rank_budget(self) -> Budget:
        """The budget of each training run in the comparison of ranks."""
        return Budget(self.rank_epochs, self.learning_rate, self.batch_size)

    @property
    def task_budget(self) -> Budget:
        """The budget of each MultiLoRA training run."""
        return Budget(self.task_epochs, self.learning_rate, self.batch_size)

    def generator(self, *stream: int) -> np.random.Generator:
        """A new generator for a `Stream`, optionally refined by further integers."""
        return np.random.default_rng((self.seed, *stream))
