"""LoRA adapters of mlx-lm: a folder with adapter_config.json and adapters.safetensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

from .._archive import atomic_file, atomic_folder
from .._typing import Array
from .._validation import file_path, fraction
from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.dropout import dropout_at
from ._factors import AdapterFile, factors_by_path, layer_of, magnitude, matrix
from ._holding import check_holds
from ._json import read_json
from .safetensors import save_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
KEY = re.compile(r"(.+)\.(lora_a|lora_b|m)")
BLOCK = re.compile(r"^.*\.layers\.\d+\.")
"""The beginning of a path up to the number of its block."""

Path = str | os.PathLike[str]


def load_mlx(folder: Path, *, drop: Iterable[str] = ()) -> AdapterWeights:
    """Load the low-rank layers of an mlx-lm adapter.

    Parameters
    ----------
    folder : path
        A folder with adapter_config.json, whose ``lora_parameters.scale`` is the factor s itself, and adapters.safetensors,
        which contains ``<path>.lora_a`` (d_in, r) and ``<path>.lora_b`` (r, d_out), and for DoRA ``<path>.m`` (d_out,).
    drop : iterable of str, optional
        Shell patterns of names of tensors to leave out, which `AdapterWeights.dropped` then lists. Any other tensor that is
        not understood is an error.

    Raises
    ------
    FormatError
        If a file, a factor or the scale is missing, a shape is wrong, or a key is unknown. The message names the file and
        the key.
    NotSupportedError
        If factors belong to a mixture of experts, or if fine_tune_type is neither lora nor dora.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import load_mlx, save_mlx
    >>> folder = tempfile.mkdtemp()
    >>> save_mlx(folder, AdapterWeights({"model.q_proj": LoRALayer(4, 3, rank=2, rng=0)}))
    >>> load_mlx(folder).layers["model.q_proj"].rank
    2
    """
    root = file_path("folder", folder)
    scale, dropout = _scale_and_dropout(os.path.join(root, CONFIG))
    file = os.path.join(root, WEIGHTS)
    if not os.path.isfile(file):
        raise FormatError(f"{root}: {WEIGHTS} not found")
    stored, layers, magnitudes = AdapterFile(file, drop), {}, {}
    for path, factors in factors_by_path(stored, KEY).items():
        where = f"{file}: {path}"
        A, B = matrix(factors, "lora_a", where), matrix(factors, "lora_b", where)
        layers[path] = layer_of(A, B, scale * A.shape[1], where, **dropout_at(path, dropout))
        if "m" in factors:
            magnitudes[path] = magnitude(factors, "m", layers[path], where)
    return AdapterWeights(layers, magnitudes, dropped=stored.dropped)


def save_mlx(folder: Path, weights: AdapterWeights) -> None:
    """Write an adapter as a folder that mlx-lm loads.

    Parameters
    ----------
    folder : path
        Created if it does not exist.
    weights : AdapterWeights

    Raises
    ------
    NotSupportedError
        If the adapter has something that the format cannot hold: whole tensors, convolutions, layers of several ranks or
        scalings, or DoRA on some layers only. The message names it. Nothing is written.

    Notes
    -----
    The configuration lists the names of all adapted modules within a block. mlx-lm adapts each of them in every block; one
    for which the file has no factors adds nothing.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import load_mlx, save_mlx
    >>> folder = Path(tempfile.mkdtemp()) / "adapters"
    >>> save_mlx(folder, AdapterWeights({"model.layers.0.mlp.up_proj": LoRALayer(4, 6, rank=2, alpha=3, rng=0)}))
    >>> load_mlx(folder).layers["model.layers.0.mlp.up_proj"].scaling
    1.5
    """
    check_holds("mlx-lm", weights, ("magnitudes",))
    file_path("folder", folder)
    (first, layer), *others = weights.layers.items()
    for path, other in others:
        for name in ("rank", "scaling", "dropout"):
            one, two = getattr(layer, name), getattr(other, name)
            if one != two:
                raise NotSupportedError(f"the mlx-lm format has one {name}, but {first!r} has {one} and {path!r} {two}")
    plain = [path for path in weights.layers if path not in weights.magnitudes]
    if weights.magnitudes and plain:
        raise NotSupportedError(f"an mlx-lm adapter is DoRA on all of its layers or on none, and {plain[0]!r} is not")
    tensors: dict[str, Array] = {}
    for path, layer in weights.layers.items():
        tensors |= {f"{path}.lora_a": layer.matrix_a, f"{path}.lora_b": layer.matrix_b}
        if path in weights.magnitudes:
            tensors[f"{path}.m"] = weights.magnitudes[path]
    keys = sorted({BLOCK.sub("", path) for path in weights.layers})
    config = {
        "fine_tune_type": "dora" if weights.magnitudes else "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": layer.rank, "scale": layer.scaling, "dropout": layer.dropout, "keys": keys},
    }
    with atomic_folder(folder) as place:
        save_safetensors(os.path.join(place, WEIGHTS), tensors)
        with atomic_file(os.path.join(place, CONFIG)) as file:
            file.write(json.dumps(config, indent=4).encode() + b"\n")


def _scale_and_dropout(file: str) -> tuple[float, float]:
    """The scale and the dropout in a configuration, whose kind of adapter must be known."""
    try:
        config = read_json(file)
        scale = config["lora_parameters"]["scale"]
        kind = config.get("fine_tune_type", "lora")
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise TypeError(f"a number, got {scale!r}")
        number, dropout = float(scale), fraction("dropout", config["lora_parameters"].get("dropout", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(f"{file}: must be valid JSON with lora_parameters.scale: {error!r}") from error
    if kind not in ("lora", "dora"):
        raise NotSupportedError(f"{file}: fine_tune_type must be 'lora' or 'dora', got {kind!r}")
    return number, dropout
