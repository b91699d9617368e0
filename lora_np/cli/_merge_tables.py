"""What ``lora-np merge`` prints about the tensors that it has changed."""

import math
from dataclasses import asdict

from ..io.merge import MergedTensor
from ..io.rounding import RoundingLoss
from ..terminal.table import table
from ._text import number, plain, printable, share


def merged_text(merged: list[MergedTensor], *, several: bool) -> str:
    """The changed tensors, as a table; with the names of their files if there are several."""
    verified = [tensor for tensor in merged if tensor.error is not None]
    header = [
        "tensor",
        *(["file"] if several else []),
        "change",
        "dtype",
        "rounding",
        *(["measured error"] if verified else []),
    ]
    rows = [
        [
            printable(tensor.key),
            *([printable(tensor.file)] if several else []),
            tensor.change,
            tensor.dtype,
            f"{tensor.precision:.1e}",
            *([f"{tensor.error:.1e}"] if tensor.error is not None else []),
        ]
        for tensor in merged
    ]
    return table(header, rows, left=4 if several else 3)


def losses_text(losses: list[RoundingLoss]) -> str:
    """What rounding loses of each tensor and of all, as a table."""
    rows = [
        [printable(loss.key), loss.dtype, number(loss.change), number(loss.lost), share(loss.share), _unchanged(loss)]
        for loss in losses
    ]
    total = math.hypot(*(loss.change for loss in losses)), math.hypot(*(loss.lost for loss in losses))
    sizes = sum(loss.unchanged for loss in losses), sum(loss.size for loss in losses)
    whole = RoundingLoss("all", "", sizes[1], *total, sizes[0])
    rows.append(["all", "", number(total[0]), number(total[1]), share(whole.share), _unchanged(whole)])
    return table(["tensor", "dtype", "|change|", "|lost|", "lost", "weights unchanged"], rows, left=2)


def _unchanged(loss: RoundingLoss) -> str:
    return f"{loss.unchanged:,} ({share(loss.unchanged / max(1, loss.size))})"


def values_of(merged: list[MergedTensor]) -> object:
    """The changed tensors, for JSON."""
    return plain([asdict(tensor) | {"precision": tensor.precision} for tensor in merged])
