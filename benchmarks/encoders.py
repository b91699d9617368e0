"""A BERT encoder, sentences and LoRA factors: the input of the cases of whole transformers."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from lora_np import BertModel, load_pretrained
from lora_np.io.safetensors import save_safetensors

from .problem import Array, normal

MINILM = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
"""The sizes of all-MiniLM-L6-v2."""
TINY = MINILM | {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
    "max_position_embeddings": 16,
}

TARGETS = ("query", "value")
RANK = 8
EPSILON = 1.0
"""AdamW's ε, much larger than the gradients: the first update is proportional to them, not just their sign."""

Factors = Mapping[str, tuple[Array, Array]]
"""A and B by the path of the adapted layer."""


class Encoder:
    """An encoder and its config.json; random weights of MiniLM's sizes if no folder is given."""

    def __init__(self, folder: Path | None, *, tiny: bool = False) -> None:
        self.config: dict[str, int] = (TINY if tiny else MINILM) if folder is None else read_config(folder)
        self.model = BertModel.new(self.config, rng=0).eval() if folder is None else load_pretrained(folder)

    @property
    def weights(self) -> dict[str, Array]:
        """All arrays, by the names of Hugging Face's BertModel."""
        return self.model.named_parameters(frozen=True)

    @property
    def adapted(self) -> list[str]:
        """The paths of the layers that LoRA adapts."""
        return [path for path in self.model.walk() if path.endswith(TARGETS)]


def read_config(folder: Path) -> dict[str, int]:
    return json.loads((folder / "config.json").read_text())


@contextmanager
def checkpoint(encoder: Encoder, folder: Path | None) -> Iterator[Path]:
    """Context manager: the folder, or a temporary one with the encoder's weights."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "config.json").write_text(json.dumps(encoder.config))
        save_safetensors(place / "model.safetensors", encoder.weights)
        yield place


def ragged(rng: np.random.Generator, sentences: int, longest: int) -> Array:
    """Lengths drawn uniformly, one of them the longest."""
    return np.append(rng.integers(max(longest // 8, 1), longest + 1, sentences - 1), longest)


@dataclass(frozen=True)
class SentenceProblem:
    """An encoder, a padded batch of token ids, and the gradient of the hidden states, zero at padding."""

    encoder: Encoder
    ids: Array
    dy: Array
    rate: float = 0.01

    @classmethod
    def random(cls, encoder: Encoder, lengths: Sequence[int] | Array) -> Self:
        rng, config = np.random.default_rng(0), encoder.config
        shape = len(lengths), max(lengths)
        padding = np.arange(shape[1]) >= np.asarray(lengths)[:, np.newaxis]
        ids, dy = rng.integers(1, config["vocab_size"], shape), normal(rng, *shape, config["hidden_size"], std=1e-3)
        ids[padding], dy[padding] = -1, 0
        return cls(encoder, ids, dy)

    def slowly(self) -> Self:
        """The problem with a learning rate so small that thousands of timed steps do not diverge."""
        return replace(self, rate=self.rate * 1e-9)

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return int((self.ids >= 0).sum())

    @cached_property
    def factors(self) -> Factors:
        return lora_factors(self.encoder, 0)

    def changes(self, factors: Factors) -> dict[str, Array]:
        """The changes of all A, and of all B, each concatenated into one array."""
        return {
            f"change of {name}": np.concatenate([(factors[path][i] - old[i]).ravel() for path, old in self.factors.items()])
            for i, name in enumerate("AB")
        }


@dataclass(frozen=True)
class RoutedSentences:
    """An encoder with the LoRA factors of several tasks, and a batch of sentences, each with a task."""

    encoder: Encoder
    ids: Array
    tasks: Sequence[str]
    factors: Mapping[str, Factors]

    @classmethod
    def random(cls, encoder: Encoder, lengths: Sequence[int], tasks: int) -> Self:
        """The tasks take turns."""
        ids = SentenceProblem.random(encoder, lengths).ids
        names = [f"task{number}" for number in range(tasks)]
        factors = {name: lora_factors(encoder, number) for number, name in enumerate(names)}
        return cls(encoder, ids, [names[row % tasks] for row in range(len(ids))], factors)


def lora_factors(encoder: Encoder, seed: int) -> Factors:
    """Random A and B for each adapted layer."""
    rng, size = np.random.default_rng([1, seed]), encoder.config["hidden_size"]
    return {
        path: (normal(rng, size, RANK, std=size**-0.5), normal(rng, RANK, size, std=size**-0.5)) for path in encoder.adapted
    }
