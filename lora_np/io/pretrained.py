"""`load_pretrained`: transformer checkpoints in the folders of Hugging Face, mapped without a copy, and in GGUF files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .._typing import Array
from .._validation import file_path, float_dtype, one_of
from ..base import Layer
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..kernels import StoredMatrix
from ..layers.dense import AffineLayer, DenseLayer, FullyConnectedLayer
from ..layers.embedding import Embedding
from ..layers.normalization import LayerNorm, RMSNorm
from ..models.bert import BertModel
from ..models.causal import HEAD, CausalLM
from ..models.gpt2 import GPT2Model
from ..models.llama import LlamaModel
from ._gguf_llama import LlamaTensors, llama_config
from ._json import read_json
from ._model_config import check_config
from .gguf import GGUFFile
from .safetensors import SafetensorsFile

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

UNUSED = {
    BertModel: re.compile(r"pooler\..*|cls\..*|classifier\..*|(embeddings\.)?position_ids"),
    GPT2Model: re.compile(r"h\.\d+\.attn\.(masked_)?bias"),
    LlamaModel: re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
}
"""Tensors of a checkpoint that a model does not use: heads of an encoder, masks, and tables that are computed."""


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: Any = np.float32,
    strict: bool = True,
    weights: Literal["decoded", "stored"] = "decoded",
) -> BertModel | CausalLM:
    """A pretrained encoder or decoder.

    Parameters
    ----------
    path : path
        A folder with config.json and model.safetensors, or with several files and model.safetensors.index.json; or a file
        of llama.cpp, ``*.gguf``, with a Llama.
    dtype : {float32, float64}
        Float32 tensors are not copied into a float32 model: their arrays are memory-mapped and read-only, and the operating
        system reads a page of the file on first use. Tensors of other types are converted.
    strict : bool, default True
        If True, raise for tensors that the model does not have. Left out in either case are the pooler and the heads of an
        encoder (``cls``, ``classifier``), masks, and a second copy of tied embeddings.
    weights : {"decoded", "stored"}, default "decoded"
        With ``"stored"``, matrices of type BF16 stay as they are in the file, memory-mapped, in half of the memory; a pass
        converts a few rows at a time. They do not train, and pass for read-only float32 arrays: `numpy.asarray` converts
        one, and `unpack` all of them.

    Returns
    -------
    BertModel or CausalLM
        In evaluation mode: an encoder for the type ``bert``, and a decoder with its head for ``gpt2``, ``llama``,
        ``mistral`` and ``smollm``. The arrays have the names of the checkpoint, with the prefix ``model.`` or
        ``transformer.`` of a decoder's body even if the checkpoint omits it, and without the prefix ``bert.``.

    Raises
    ------
    FormatError
        If a file is damaged or missing, or if a tensor is missing, occurs twice, or has the wrong shape.
    NotSupportedError
        If the model is of another type, or if its configuration asks for another function, such as scaled rotary positions,
        a sliding window or a mixture of experts.

    Examples
    --------
    >>> import lora_np
    >>> encoder = lora_np.load_pretrained("all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> encoder.predict([[101, 7592, 2088, 102], [101, 7592, 102, -1]]).shape  # doctest: +SKIP
    (2, 4, 384)
    """
    folder, stored = file_path("path", path), one_of("weights", weights, ("decoded", "stored")) == "stored"
    if stored and float_dtype(dtype) != np.float32:
        raise ArgumentError(f"dtype must be float32 if weights is 'stored', got {dtype!r}")
    if folder.endswith(".gguf"):
        with GGUFFile(folder) as gguf:
            config = check_config(llama_config(gguf), folder)
            tensors = LlamaTensors(gguf, config, stored=stored)
            return model_of(config, tensors, folder, dtype=dtype, strict=strict)
    file = os.path.join(folder, CONFIG)
    try:
        config = check_config(read_json(file), file)
    except FileNotFoundError:
        raise FormatError(
            f"{file}: no such file; a pretrained model is a folder with {CONFIG} and {WEIGHTS}, or a .gguf file"
        ) from None
    return model_of(config, _tensors(folder, stored), folder, dtype=dtype, strict=strict)


def load_encoder(path: str | os.PathLike[str]) -> BertModel:
    """As `load_pretrained`, for a checkpoint that must be an encoder.

    Raises
    ------
    NotSupportedError
        Also if the checkpoint is a decoder.
    """
    model = load_pretrained(path)
    if not isinstance(model, BertModel):
        raise NotSupportedError(f"{os.fspath(path)}: must be an encoder, of the type bert, got {model!r}")
    return model


def model_of(
    config: Mapping[str, Any], arrays: Mapping[str, Array], where: str, *, dtype: Any, strict: bool
) -> BertModel | CausalLM:
    """The model of a configuration and its tensors.

    Parameters
    ----------
    config : mapping
        The entries of a config.json, checked by `check_config`.
    arrays : mapping of arrays by name
        The tensors of a checkpoint, with or without the prefix of the body. Each is requested once.
    where : str
        For messages.
    dtype, strict
        As in `load_pretrained`.

    Returns
    -------
    BertModel or CausalLM

    Raises
    ------
    FormatError
        If a tensor is missing, occurs twice, or has the wrong shape, or if there are others and `strict` is True.
    """
    types: dict[str, type[BertModel | GPT2Model | LlamaModel]] = {"bert": BertModel, "gpt2": GPT2Model}
    kind = types.get(config["model_type"], LlamaModel)
    stored = _Stored(where, _renamed(arrays, f"{kind.checkpoint_name}.", where), arrays, float_dtype(dtype))
    model: BertModel | CausalLM
    if kind is BertModel:
        model = BertModel.build(config, stored.linear, stored.layer_norm, stored.embedding)
    else:
        model = _decoder(kind, config, stored)
    unused = [name for name in stored.names if name not in stored.taken and not UNUSED[kind].fullmatch(name)]
    if strict and unused:
        raise FormatError(f"{where}: unexpected tensor {unused[0]!r}; strict=False ignores such tensors")
    return model.eval()


def _decoder(kind: type[Any], config: Mapping[str, Any], stored: _Stored) -> CausalLM:
    body: GPT2Model | LlamaModel
    if kind is GPT2Model:
        body, tied = GPT2Model.build(config, stored.conv1d, stored.layer_norm, stored.embedding), True
    else:
        body, tied = LlamaModel.build(config, stored.matrix, stored.rms_norm, stored.embedding), False
    if not config.get("tie_word_embeddings", tied):
        return CausalLM(body, stored.matrix(HEAD, body.output_size, body.input_size))
    model = CausalLM(body)
    if f"{HEAD}.weight" in stored.names:
        table = stored.take(f"{HEAD}.weight", body.input_size, body.output_size)
        if not np.array_equal(table, getattr(model.head, "weight")):  # noqa: B009
            raise FormatError(
                f"{stored.where}: {HEAD}.weight must be equal to the embedding if tie_word_embeddings is true"
            )
    return model


def _renamed(arrays: Mapping[str, Array], prefix: str, where: str) -> dict[str, str]:
    """The name in the checkpoint of each tensor, by its name without the prefix of the body."""
    names: dict[str, str] = {}
    for key in arrays:
        name = key.removeprefix(prefix)
        if name in names:
            raise FormatError(f"{where}: the tensor {name!r} occurs twice in the checkpoint")
        names[name] = key
    return names


def _tensors(folder: str, stored: bool) -> dict[str, Array]:
    """The tensors of all files of a checkpoint, memory-mapped, by name."""
    index = os.path.join(folder, INDEX)
    names = [WEIGHTS]
    if os.path.isfile(index):
        try:
            places = read_json(index)["weight_map"]
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
            for name in tensors:
                if name in arrays:
                    raise FormatError(f"{file}: the tensor {name!r} occurs twice in the checkpoint")
                arrays[name] = _stored(tensors, name) if stored else np.asarray(tensors[name])
    return arrays


def _stored(tensors: SafetensorsFile, name: str) -> Any:
    """A tensor; a BF16 matrix is kept as it is in the file."""
    info = tensors.info(name)
    if info.dtype != "BF16" or len(info.shape) != 2:
        return np.asarray(tensors[name])
    return StoredMatrix(tensors.raw(name).reshape(info.shape))


class _Stored:
    """Makes the layers of a model of the tensors of a checkpoint; each tensor is checked and noted as it is taken."""

    def __init__(self, where: str, names: Mapping[str, str], arrays: Mapping[str, Array], dtype: np.dtype[Any]) -> None:
        self.where, self.names, self.arrays, self.dtype = where, names, arrays, dtype
        self.taken: set[str] = set()

    def linear(self, path: str, inputs: int, outputs: int) -> Layer:
        """A dense layer with W as (out, in)."""
        return self._dense(FullyConnectedLayer, path, (outputs, inputs), outputs)

    def matrix(self, path: str, inputs: int, outputs: int) -> Layer:
        """A dense layer with W as (out, in), without bias."""
        return self._dense(FullyConnectedLayer, path, (outputs, inputs), None)

    def conv1d(self, path: str, inputs: int, outputs: int) -> Layer:
        """A dense layer with W as (in, out), as in GPT-2."""
        return self._dense(DenseLayer, path, (inputs, outputs), outputs)

    def layer_norm(self, path: str, size: int, epsilon: float) -> Layer:
        """A LayerNorm."""
        layer = LayerNorm(size, epsilon, dtype=self.dtype)
        layer.weight, layer.bias = self.take(f"{path}.weight", size), self.take(f"{path}.bias", size)
        return layer

    def rms_norm(self, path: str, size: int, epsilon: float) -> Layer:
        """An RMSNorm."""
        layer = RMSNorm(size, epsilon, dtype=self.dtype)
        layer.weight = self.take(f"{path}.weight", size)
        return layer

    def embedding(self, path: str, entries: int, size: int) -> Layer:
        """An Embedding."""
        return Embedding.from_array(self.take(f"{path}.weight", entries, size))

    def take(self, name: str, *shape: int) -> Array:
        """A tensor, which must have this shape."""
        if name not in self.names:
            raise FormatError(f"{self.where}: the tensor {name!r} is missing")
        array = self.arrays[self.names[name]]
        if array.shape != shape or array.dtype.kind != "f":
            raise FormatError(
                f"{self.where}: {name} must be floating-point of shape {shape}, got {array.dtype} of shape {array.shape}"
            )
        self.taken.add(name)
        return array.astype(self.dtype, copy=False)

    def _dense(self, kind: type[AffineLayer], path: str, shape: tuple[int, int], bias: int | None) -> Layer:
        weight = self.take(f"{path}.weight", *shape)
        return kind.from_arrays(weight, None if bias is None else self.take(f"{path}.bias", bias))
