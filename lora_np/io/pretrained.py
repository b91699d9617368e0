"""`load_pretrained`: transformer checkpoints in the folders of Hugging Face, mapped without a copy."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._typing import Array
from .._validation import float_dtype
from ..base import Layer
from ..errors import FormatError, NotSupportedError
from ..layers.dense import FullyConnectedLayer
from ..layers.embedding import Embedding
from ..layers.normalization import LayerNorm
from ..models.bert import BertModel
from ._json import read_json
from .safetensors import SafetensorsFile

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
REQUIRED_VALUES = {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,)}
"""Entries that change the function, with the values that lora_np supports; the first is the default."""

UNUSED = re.compile(r"pooler\..*|cls\..*|classifier\..*|(embeddings\.)?position_ids")
"""Tensors of a checkpoint that an encoder does not use."""


def load_pretrained(path: str | os.PathLike[str], *, dtype: Any = np.float32, strict: bool = True) -> BertModel:
    """A pretrained encoder.

    Parameters
    ----------
    path : path
        A folder with config.json and model.safetensors, or with several files and model.safetensors.index.json.
    dtype : {float32, float64}
        Float32 tensors are not copied into a float32 model: their arrays are memory-mapped and read-only, and the operating
        system reads a page of the file on first use. Tensors of other types are converted.
    strict : bool, default True
        If True, raise for tensors that the model does not have. A pooler, the heads of pretraining (``cls``) and a
        ``classifier`` are left out in either case: an encoder has none.

    Returns
    -------
    BertModel
        In evaluation mode. Its arrays have the names of the checkpoint; the prefix ``bert.``, if there is one, is removed.

    Raises
    ------
    FormatError
        If a file is damaged or missing, or if a tensor is missing, occurs twice, or has the wrong shape.
    NotSupportedError
        If the model is of another type, or if its configuration asks for another function.

    Examples
    --------
    >>> import lora_np
    >>> encoder = lora_np.load_pretrained("all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> encoder.predict([[101, 7592, 2088, 102], [101, 7592, 102, -1]]).shape  # doctest: +SKIP
    (2, 4, 384)
    """
    folder = os.fspath(path)
    config = _read_config(os.path.join(folder, CONFIG))
    arrays = _tensors(folder)
    stored = _Stored(folder, arrays, float_dtype(dtype))
    model = BertModel.build(config, stored.dense, stored.norm, stored.embedding)
    unused = [name for name in arrays if name not in stored.taken and not UNUSED.fullmatch(name)]
    if strict and unused:
        raise FormatError(f"{folder}: unexpected tensor {unused[0]!r}; strict=False ignores such tensors")
    return model.eval()


def _read_config(file: str) -> dict[str, Any]:
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise FormatError(f"{file}: no such file; a pretrained model is a folder with {CONFIG} and {WEIGHTS}") from None
    if not isinstance(config, dict):
        raise FormatError(f"{file}: must contain an object")
    if config.get("model_type") != "bert":
        raise NotSupportedError(f"{file}: model_type must be 'bert', got {config.get('model_type')!r}")
    for name, values in REQUIRED_VALUES.items():
        if config.get(name, values[0]) not in values:
            raise NotSupportedError(f"{file}: {name} must be {values[0]!r}, got {config[name]!r}")
    for name in SIZES:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FormatError(f"{file}: {name} must be a positive integer, got {value!r}")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise FormatError(f"{file}: layer_norm_eps must be between 0 and 1, got {epsilon!r}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise FormatError(f"{file}: hidden_size must be a multiple of num_attention_heads")
    return config


def _tensors(folder: str) -> dict[str, Array]:
    """The tensors of all files of a checkpoint, memory-mapped, by name without the prefix ``bert.``."""
    index = os.path.join(folder, INDEX)
    names = [WEIGHTS]
    if os.path.isfile(index):
        try:
            with open(index, encoding="utf-8") as text:
                places = json.load(text)["weight_map"]
            names = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{index}: not a valid index: {error}") from error
        for name in names:
            if not isinstance(name, str) or os.path.basename(name) != name:
                raise FormatError(f"{index}: files must be in the folder of the index, got {name!r}")
    arrays: dict[str, Array] = {}
    for place in names:
        file = os.path.join(folder, place)
        if not os.path.isfile(file):
            raise FormatError(f"{file}: no such file")
        with SafetensorsFile(file) as tensors:
            for key, tensor in tensors.items():
                name = key.removeprefix("bert.")
                if name in arrays:
                    raise FormatError(f"{file}: the tensor {name!r} occurs twice in the checkpoint")
                arrays[name] = np.asarray(tensor)
    return arrays


class _Stored:
    """The layers of a model, of the tensors of a checkpoint; each tensor is checked and noted as it is taken."""

    def __init__(self, folder: str, arrays: Mapping[str, Array], dtype: np.dtype[Any]) -> None:
        self.folder, self.arrays, self.dtype = folder, arrays, dtype
        self.taken: set[str] = set()

    def dense(self, path: str, inputs: int, outputs: int) -> Layer:
        weight, bias = self._take(f"{path}.weight", outputs, inputs), self._take(f"{path}.bias", outputs)
        return FullyConnectedLayer.from_arrays(weight, bias)

    def norm(self, path: str, size: int, epsilon: float) -> Layer:
        layer = LayerNorm(size, epsilon, dtype=self.dtype)
        layer.weight, layer.bias = self._take(f"{path}.weight", size), self._take(f"{path}.bias", size)
        return layer

    def embedding(self, path: str, entries: int, size: int) -> Layer:
        return Embedding.from_array(self._take(f"{path}.weight", entries, size))

    def _take(self, name: str, *shape: int) -> Array:
        if name not in self.arrays:
            raise FormatError(f"{self.folder}: the tensor {name!r} is missing")
        array = self.arrays[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise FormatError(
                f"{self.folder}: {name} must be floating-point of shape {shape}, got {array.dtype} of shape {array.shape}"
            )
        self.taken.add(name)
        return array.astype(self.dtype, copy=False)
