"""What the commands report about the tensors of an adapter that are not factors of weights."""

from typing import Any

import numpy as np

from .._typing import Array
from ..factors.weights import AdapterWeights
from ..terminal.table import table
from ._layers import frobenius
from ._text import number, printable


def other_changes(weights: AdapterWeights) -> dict[str, tuple[str, Array]]:
    """Each change that is not low-rank, in words and as an array, by the name of the tensor in the base."""
    found: dict[str, tuple[str, Array]] = {key: ("replaced", np.asarray(tensor)) for key, tensor in weights.whole.items()}
    for key, (indices, values) in weights.rows.items():
        order = np.argsort(indices)
        found[key] = (f"rows {', '.join(map(str, indices[order]))}", values[order])
    for path, bias in weights.biases.items():
        found[f"{path}.bias"] = ("added", weights.layers[path].scaling * bias)
    return found


def other_reports(weights: AdapterWeights) -> list[dict[str, Any]]:
    """The changes that are not low-rank, for JSON."""
    return [
        {"name": key, "change": change, "shape": list(array.shape), "norm": frobenius(array)}
        for key, (change, array) in other_changes(weights).items()
    ]


def others_text(reports: list[dict[str, Any]]) -> str:
    """The table of `other_reports`."""
    rows = [
        [printable(one["name"]), one["change"], " x ".join(map(str, one["shape"])) or "scalar", number(one["norm"])]
        for one in reports
    ]
    return table(["other tensors", "change", "shape", "|.|"], rows, left=2)
