"""The weight and the bias of the layer at a path, as they are named in a checkpoint."""

from __future__ import annotations

NO_PATH = "\0"
"""The path of a tensor that is neither: the name of no layer."""


def weight_of(path: str) -> str:
    """``<path>.weight``; a path such as ``attn.in_proj_weight`` is the name of a parameter already."""
    return path if path.endswith("_weight") else f"{path}.weight"


def path_of_weight(key: str) -> str:
    """The path of the layer whose weight has a name."""
    if key.endswith("_weight"):
        return key
    return key.removesuffix(".weight") if key.endswith(".weight") else NO_PATH


def path_of_bias(key: str) -> str:
    """The path of the layer whose bias has a name."""
    return key.removesuffix(".bias") if key.endswith(".bias") else NO_PATH
