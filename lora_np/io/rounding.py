"""What rounding to the dtype of a checkpoint loses of a merged adapter."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from .._typing import Array
from ..factors.weights import AdapterWeights
from ._checkpoint import Checkpoint, index_path
from ._merging import Merge, Step
from ._pieces import PIECE, rows_within, windows
from .safetensors import decoded

Path = str | os.PathLike[str]


@final
@dataclass(frozen=True)
class RoundingLoss:
    """What a merge has changed in one tensor, and what it should have changed."""

    key: str
    dtype: str
    size: int
    """The number of elements."""
    change: float
    """The Frobenius norm of the exact change, ``s A B`` for LoRA."""
    lost: float
    """The Frobenius norm of the difference between the change of the stored values and the exact change."""
    unchanged: int
    """The number of elements that have kept their value although their exact change is not zero: it is below half a unit in
    the last place."""

    @property
    def share(self) -> float:
        """The lost part relative to the change."""
        return self.lost / self.change if self.change else 0.0


def rounding_losses(
    base: Path,
    adapter: AdapterWeights,
    output: Path,
    *,
    subtract: bool = False,
    fan_in_fan_out: bool = False,
    untie: bool = False,
) -> list[RoundingLoss]:
    """Compare the stored change of each merged tensor with the exact one, computed in float64.

    The merged weights of a layer are ``round(W + s A B)``. In BF16, half a unit in the last place of W is up to
    ``2⁻⁸ |W|``. An element of the update below that is lost, or rounded up to a whole unit. So outputs of the merged model
    differ from those of the base with the adapter beside it.

    Parameters
    ----------
    base, adapter, subtract, fan_in_fan_out, untie
        As for `lora_np.io.merge.merge_checkpoint`.
    output : path
        What `merge_checkpoint` has written.

    Returns
    -------
    list of RoundingLoss
        One for each tensor that the adapter changes by adding to it.

    Raises
    ------
    FormatError
        As `lora_np.io.merge.verify_checkpoint`, which also compares all other tensors.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io.merge import merge_checkpoint
    >>> from lora_np.io.rounding import rounding_losses
    >>> from lora_np.io.safetensors import save_safetensors
    >>> folder = tempfile.mkdtemp()
    >>> base, merged = os.path.join(folder, "base.safetensors"), os.path.join(folder, "merged.safetensors")
    >>> save_safetensors(base, {"up.weight": np.ones((4, 3))}, dtypes={"up.weight": "BF16"})  # the next number is 1 + 2⁻⁷
    >>> update = LoRALayer.from_factors(np.ones((3, 1)), np.array([[0.001, 0.002, 0.003, 0.004]]))
    >>> adapter = AdapterWeights({"up": update})
    >>> merged_tensors = merge_checkpoint(base, adapter, merged)
    >>> (loss,) = rounding_losses(base, adapter, merged)
    >>> loss.unchanged, loss.size  # only 0.004 is more than half of 2⁻⁷
    (9, 12)
    """
    merge = Merge(adapter, subtract, fan_in_fan_out, untie)
    index = index_path(base)
    written = os.path.join(output, os.path.basename(index)) if index else output
    with Checkpoint(base) as old, Checkpoint(written) as new:
        merge = merge.on(old)
        return [
            _loss(merge, old, new, step)
            for step in merge.plan(old).values()
            if step.source is not None and merge.rows(old, step, np.float64) is not None
        ]


def _loss(merge: Merge, old: Checkpoint, new: Checkpoint, step: Step) -> RoundingLoss:
    change = lost = 0.0
    unchanged = 0
    for before, after, expected in _values(merge, old, new, step):
        change += float(((expected - before) ** 2).sum())
        lost += float(((after - expected) ** 2).sum())
        unchanged += int(((after == before) & (expected != before)).sum())
    size = math.prod(step.info.shape)
    return RoundingLoss(step.key, step.info.dtype, size, math.sqrt(change), math.sqrt(lost), unchanged)


def _values(merge: Merge, old: Checkpoint, new: Checkpoint, step: Step) -> Iterator[tuple[Array, Array, Array]]:
    """The values before and after the merge, and the exact ones, in float64, a few rows at a time."""
    rows, columns = step.rows_and_columns
    exact = merge.rows(old, step, np.float64)
    assert exact is not None
    for start, stop in windows(rows, rows_within(PIECE, columns)):
        stored, dtype = merge.before(old, step, start, stop)
        before = decoded(stored, dtype).astype(np.float64)
        after = decoded(new[step.key].raw(step.key, start * columns, stop * columns), step.info.dtype)
        yield before, after.reshape(-1, columns).astype(np.float64), exact(before, start)
