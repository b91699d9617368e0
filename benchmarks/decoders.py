"""A Llama decoder of SmolLM2's sizes with random weights: the input of the cases of language models."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from lora_np import CausalLM, LlamaModel
from lora_np.io.safetensors import save_safetensors

from .problem import Array

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
"""The sizes of SmolLM2-135M."""
TINY = SMOLLM2 | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}


class Decoder:
    """A decoder with random weights and its config.json."""

    def __init__(self, *, tiny: bool = False) -> None:
        self.config = TINY if tiny else SMOLLM2
        self.model = CausalLM(LlamaModel.new(self.config, rng=0)).eval()

    @property
    def weights(self) -> dict[str, Array]:
        """All arrays, by the names of Hugging Face's LlamaForCausalLM."""
        return self.model.named_parameters(frozen=True)


@dataclass(frozen=True)
class PromptProblem:
    """A decoder, prompts of equal length, and the number of tokens to add to each."""

    decoder: Decoder
    ids: Array
    new: int

    @classmethod
    def random(cls, decoder: Decoder, prompts: int, tokens: int, new: int) -> Self:
        ids = np.random.default_rng(0).integers(1, decoder.config["vocab_size"], (prompts, tokens))
        return cls(decoder, ids, new)


@contextmanager
def bf16_checkpoint(decoder: Decoder) -> Iterator[Path]:
    """Context manager: a temporary folder with the decoder's weights in BF16."""
    with tempfile.TemporaryDirectory() as temporary:
        place, weights = Path(temporary), decoder.weights
        (place / "config.json").write_text(json.dumps(decoder.config | {"architectures": ["LlamaForCausalLM"]}))
        save_safetensors(place / "model.safetensors", weights, {"format": "pt"}, dtypes=dict.fromkeys(weights, "BF16"))
        yield place
