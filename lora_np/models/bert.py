"""BERT encoders (Devlin et al. 2019), with the names of Hugging Face's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np

from .._typing import RNG, Array, Cache
from .._validation import generator, positive_int
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import Activation, gelu_exact
from ..layers.attention import Attention
from ..layers.composite import Back, Call
from ..layers.dense import FullyConnectedLayer
from ..layers.embedding import Embedding
from ..layers.normalization import LayerNorm
from ..run import Run
from .transformer import Block, Make, Transformer

Q, K, V, O = "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"  # noqa: E741
NORM1, UP, DOWN, NORM2 = "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"
WORD, POSITION, TYPE = (f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type"))
NORM = "embeddings.LayerNorm"


@final
class BertBlock(Block):
    """``a = LN₁(x + O attend(Q x, K x, V x))``, ``y = LN₂(a + W f(U a))``: attention, then two dense layers.

    Parameters
    ----------
    layers : mapping of layers by name
        As in a checkpoint: query, key, value and output of the attention, its norm, the dense layers U (up) and W (down),
        their norm.
    heads : int
    activation : Activation, default gelu_exact
        f.

    Notes
    -----
    With G = dL/dY, the vjp of each layer written as its name with ᵀ, and f' the slope at U a::

        dr = LN₂ᵀ G,  da = dr + Uᵀ (Wᵀ dr ∘ f'),  dr' = LN₁ᵀ da
        dq, dk, dv = attendᵀ(Oᵀ dr'),  dx = dr' + Qᵀ dq + Kᵀ dk + Vᵀ dv
    """

    def __init__(self, layers: Mapping[str, Layer], heads: int, activation: Activation = gelu_exact) -> None:
        size = layers[Q].input_size
        super().__init__(layers, size, Attention(positive_int("heads", heads)), activation)
        if size % heads:
            raise ArgumentError(f"heads must divide the size {size}, got {heads}")

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``a = LN₁(x + O attend(Q x, K x, V x))``, ``y = LN₂(a + W f(U a))``."""
        attended: Cache
        c, attended = self.attend(call(Q, x), call(K, x), call(V, x), run)  # (N, D)
        attended = attended if run.keep else None  # frees the scores before the largest products
        a = call(NORM1, x + call(O, c))
        h, slope = self.activation.value_and_slope(call(UP, a), slope=run.keep, overwrite=True)  # (N, 4 D)
        return call(NORM2, a + call(DOWN, h)), (attended, slope)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``dr = LN₂ᵀ dy``, ``da = dr + Uᵀ (Wᵀ dr ∘ f')``, ``dr' = LN₁ᵀ da``, ``dx = dr' + Qᵀ dq + Kᵀ dk + Vᵀ dv``."""
        attended, slope = cache
        dr = back(NORM2, dy)  # (N, D)
        da = dr + back(UP, back(DOWN, dr) * slope)
        dr = back(NORM1, da)
        dq, dk, dv = self.attention.vjp(back(O, dr), attended)
        return dr + back(Q, dq) + back(K, dk) + back(V, dv)


@final
class BertModel(Transformer):
    """From token ids (B, T) to the hidden state of each token, (B, T, D), zero at padding.

    ``x₀ = LN(word[ids] + position[0, 1, ...] + type[0])``, then each `BertBlock` in turn. A sentence is a single segment,
    so the type is 0 everywhere. See `TokenModel` for ids, padding, tasks and ranks, and `lora_np.load_pretrained` for
    checkpoints, whose names are those of the layers.
    """

    checkpoint_name = "bert"

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__(layers, layers[POSITION].input_size)

    @staticmethod
    def indices(ids: Array, positions: Array) -> dict[str, Array]:
        """The ids, their positions, and the type 0."""
        return {WORD: ids, POSITION: positions, TYPE: np.zeros_like(ids)}

    @classmethod
    def new(cls, config: Mapping[str, Any], *, dtype: Any = np.float32, rng: RNG = None) -> Self:
        """A model with random weights, of the sizes in a config.json; layer_norm_eps is 1e-12 by default."""
        random = generator(rng)
        return cls.build(
            config,
            lambda _, inputs, outputs: FullyConnectedLayer(inputs, outputs, dtype=dtype, rng=random),
            lambda _, size, epsilon: LayerNorm(size, epsilon, dtype=dtype),
            lambda _, entries, size: Embedding(entries, size, dtype=dtype, rng=random),
        )

    @classmethod
    def build(cls, config: Mapping[str, Any], dense: Make, norm: Make, embedding: Make) -> Self:
        """A model of layers that functions make, given the path of each, its sizes, and the ε of a norm."""
        D, inner, epsilon = config["hidden_size"], config["intermediate_size"], config.get("layer_norm_eps", 1e-12)
        entries = {WORD: "vocab_size", POSITION: "max_position_embeddings", TYPE: "type_vocab_size"}
        layers = {name: embedding(name, config[size], D) for name, size in entries.items()} | {NORM: norm(NORM, D, epsilon)}
        for path in (f"encoder.layer.{i}" for i in range(config["num_hidden_layers"])):
            block = {name: dense(f"{path}.{name}", D, D) for name in (Q, K, V, O)}
            block |= {NORM1: norm(f"{path}.{NORM1}", D, epsilon), UP: dense(f"{path}.{UP}", D, inner)}
            block |= {DOWN: dense(f"{path}.{DOWN}", inner, D), NORM2: norm(f"{path}.{NORM2}", D, epsilon)}
            layers[path] = BertBlock(block, config["num_attention_heads"])
        return cls(layers)
