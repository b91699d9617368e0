"""`trainable_parameters`: a table of a model's arrays, and the share of the parameters that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._validation import instance
from ..adapters.rank_choice import rank_choices
from ..base import Layer
from ..errors import ArgumentError
from .finding import check_rank


@dataclass(frozen=True)
class ParameterRow:
    """One array of a model."""

    name: str
    shape: tuple[int, ...]
    size: int
    trains: bool


@dataclass(frozen=True)
class ParameterTable:
    """The arrays of a model; `str` shows them as a table."""

    rows: tuple[ParameterRow, ...]

    @property
    def trainable(self) -> int:
        """The number of trainable parameters."""
        return sum(row.size for row in self.rows if row.trains)

    @property
    def total(self) -> int:
        """The number of all parameters."""
        return sum(row.size for row in self.rows)

    @property
    def share(self) -> float:
        """The trainable share, between 0 and 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        width = max([len("array"), *(len(row.name) for row in self.rows)])
        lines = [f"{'array':{width}}  {'shape':>12}  {'size':>10}  trains"]
        for row in self.rows:
            shape = " x ".join(map(str, row.shape))
            lines.append(f"{row.name:{width}}  {shape:>12}  {row.size:>10,}  {'yes' if row.trains else 'no'}")
        lines.append(f"{self.trainable:,} of {self.total:,} parameters train ({self.share:.2%})")
        return "\n".join(lines)


def trainable_parameters(model: Layer, *, rank: int | None = None) -> ParameterTable:
    """A table of a model's arrays: name, shape, size, and whether it trains.

    Parameters
    ----------
    model : Layer
    rank : int, optional
        The active rank at which to count the factors of each DyLoRAAdapter, and of each task with ranks; by default, its
        full rank.

    Raises
    ------
    ArgumentError
        If the rank is not an active rank of each of them, or if the model has none.

    Examples
    --------
    >>> from lora_np import DenseLayer, DyLoRAAdapter, trainable_parameters
    >>> adapter = DyLoRAAdapter(DenseLayer(64, 10, rng=0), max_rank=8, active_ranks=[1, 2, 4, 8], rng=1)
    >>> print(trainable_parameters(adapter, rank=2))
    array                 shape        size  trains
    base.weight         64 x 10         640  no
    base.bias                10          10  no
    lora.matrix_a        64 x 2         128  yes
    lora.matrix_b        2 x 10          20  yes
    148 of 798 parameters train (18.55%)
    """
    instance("model", model, Layer, "a layer")
    arrays = model.named_parameters(frozen=True)
    shapes = {name: array.shape for name, array in arrays.items()}
    if rank is not None:
        adapters, names = rank_choices(model), {id(array): name for name, array in arrays.items()}
        if not adapters:
            raise ArgumentError(f"rank must be None: no layer in {model.layer_name} has ranks to choose from")
        check_rank(adapters, rank)
        for adapter in adapters.values():
            branch = adapter.lora_layer
            shapes[names[id(branch.matrix_a)]] = (branch.input_size, rank)
            shapes[names[id(branch.matrix_b)]] = (rank, branch.output_size)
    trains = model.named_parameters()
    return ParameterTable(
        tuple(ParameterRow(name, shape, math.prod(shape), name in trains) for name, shape in shapes.items())
    )
