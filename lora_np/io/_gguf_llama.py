"""Llama models in GGUF files: their configuration and tensors as in Hugging Face's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, final

import numpy as np

from .._typing import Array
from ..errors import FormatError, NotSupportedError
from ..kernels import StoredMatrix
from .gguf import GGUFFile

CONFIG = {
    "hidden_size": "llama.embedding_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "intermediate_size": "llama.feed_forward_length",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
    "sliding_window": "llama.attention.sliding_window",
}
"""The metadata of the entries of a config.json."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "llama.expert_count": (0,),
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.factor": (0, 1),
    "llama.rope.scale_linear": (0, 1),
    "llama.attention.causal": (True,),
    "llama.use_parallel_residual": (False,),
}
"""Metadata that would change the function, with the values that do not."""

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The names of llama.cpp, and those of Hugging Face."""

BLOCK = re.compile(r"blk\.(0|[1-9]\d*)\.(\w+)\.weight")
MEANING = re.compile(r"rope_.*|.*\.bias|.*_(q|k)_norm\..*|.*_exps\..*")
"""Tensors that would change the function."""


def llama_config(file: GGUFFile) -> dict[str, Any]:
    """The configuration, in the form of a config.json; `check_config` checks its sizes.

    Raises
    ------
    FormatError
        If there is no table of tokens.
    NotSupportedError
        If the model is of another architecture, or if the metadata or a tensor asks for another function.
    """
    metadata, path = file.metadata, file.path
    architecture = metadata.get("general.architecture")
    if not (isinstance(architecture, str) and architecture == "llama"):
        raise NotSupportedError(f"{path}: metadata 'general.architecture': must be 'llama', got {architecture!r}")
    for key, values in NEUTRAL.items():
        value = metadata.get(key, values[0])
        if isinstance(value, np.ndarray) or value not in values:
            raise NotSupportedError(f"{path}: metadata {key!r}: must be {values[-1]!r}, got {value!r}")
    for name in file:
        if MEANING.fullmatch(name):
            raise NotSupportedError(f"{path}: tensor {name!r}: not part of a plain Llama")
    if "token_embd.weight" not in file or len(file.info("token_embd.weight").shape) != 2:
        raise FormatError(f"{path}: the tensor 'token_embd.weight' must be there, with two dimensions")
    config = {entry: metadata[key] for entry, key in CONFIG.items() if key in metadata}
    _check_heads(config, metadata, path)
    vocabulary = file.info("token_embd.weight").shape[0]
    tied = {"tie_word_embeddings": "output.weight" not in file}
    return {"model_type": "llama", "vocab_size": vocabulary, **config, **tied}


def _check_heads(config: Mapping[str, Any], metadata: Mapping[str, Any], path: str) -> None:
    """Keys, values and rotary positions must have the size of a head."""
    size, heads = config.get("hidden_size"), config.get("num_attention_heads")
    for entry in ("hidden_size", "num_attention_heads", "num_key_value_heads"):
        if not isinstance(config.get(entry, 1), int):
            raise NotSupportedError(f"{path}: metadata {CONFIG[entry]!r}: must be an integer, got {config[entry]!r}")
    head = config.get("head_dim") or (size // heads if size and heads and size % heads == 0 else None)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        value = metadata.get(key, head)
        if head is not None and (isinstance(value, np.ndarray) or value != head):
            raise NotSupportedError(f"{path}: metadata {key!r}: must be the size of a head, {head}, got {value!r}")


@final
class LlamaTensors(Mapping[str, Array]):
    """The tensors of a file by the names of Hugging Face, each decoded on access.

    Parameters
    ----------
    file : GGUFFile
    config : mapping
        As from `llama_config`.
    stored : bool
        Whether to keep BF16 matrices as they are in the file.
    """

    def __init__(self, file: GGUFFile, config: Mapping[str, Any], *, stored: bool) -> None:
        self._file, self._stored = file, stored
        self._names = {_renamed(name): name for name in file}
        heads = config["num_attention_heads"]
        self._heads = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}

    def __getitem__(self, name: str) -> Any:
        key = self._names[name]
        info, heads = self._file.info(key), self._heads.get(name.split(".")[-2]) if "." in name else None
        as_stored = self._stored and info.storage.name == "BF16" and len(info.shape) == 2
        array = self._file.raw(key).reshape(info.shape) if as_stored else self._file[key]
        array = array if heads is None else rows_of_halves(array, heads)
        return StoredMatrix(array) if as_stored else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def rows_of_halves(weight: Array, heads: int) -> Array:
    """Undo llama.cpp's order of the rows of queries and keys, (heads·d, in).

    Its rotary positions turn components 2j and 2j + 1 of a head together; those of Hugging Face turn j and j + d/2.
    """
    if weight.ndim != 2 or len(weight) % (2 * heads):
        return weight  # of the wrong shape, which is reported when the layer is made
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])  # (heads, d/2, 2, in)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _renamed(name: str) -> str:
    """The name of a tensor in Hugging Face's checkpoints; unchanged if it has none."""
    block = BLOCK.fullmatch(name)
    if block and block[2] in NAMES:
        return f"model.layers.{block[1]}.{NAMES[block[2]]}.weight"
    stem = name.removesuffix(".weight")
    return f"{NAMES[stem]}.weight" if stem != name and stem in NAMES else name
