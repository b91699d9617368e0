"""GPT-2 (Radford et al. 2019), with the names of Hugging Face's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np

from .._typing import RNG, Array, Cache
from .._validation import generator, positive_int
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import Activation, gelu
from ..layers.attention import Attention
from ..layers.composite import Back, Call
from ..layers.dense import DenseLayer
from ..layers.embedding import Embedding
from ..layers.normalization import LayerNorm
from ..run import Run
from .transformer import Block, Make, Transformer

NORM1, QKV, O = "ln_1", "attn.c_attn", "attn.c_proj"  # noqa: E741
NORM2, UP, DOWN = "ln_2", "mlp.c_fc", "mlp.c_proj"
WORD, POSITION, NORM = "wte", "wpe", "ln_f"


@final
class GPT2Block(Block):
    """``a = x + O attend(split(A LN₁(x)))``, ``y = a + W f(U LN₂(a))``: causal attention, then two dense layers.

    Parameters
    ----------
    layers : mapping of layers by name
        As in a checkpoint: a norm; A, whose outputs are query, key and value side by side; the output O of the attention;
        another norm; the dense layers U (up) and W (down).
    heads : int
    activation : Activation, default gelu
        f.

    Notes
    -----
    With G = dL/dY, the vjp of each layer written as its name with ᵀ, and f' the slope at U LN₂(a)::

        da = G + LN₂ᵀ Uᵀ (Wᵀ G ∘ f')
        dq, dk, dv = attendᵀ(Oᵀ da),  dx = da + LN₁ᵀ Aᵀ [dq dk dv]
    """

    def __init__(self, layers: Mapping[str, Layer], heads: int, activation: Activation = gelu) -> None:
        size = layers[QKV].input_size
        super().__init__(layers, size, Attention(positive_int("heads", heads), causal=True), activation)
        if size % heads:
            raise ArgumentError(f"heads must divide the size {size}, got {heads}")

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``a = x + O attend(split(A LN₁(x)))``, ``y = a + W f(U LN₂(a))``."""
        q, k, v = np.split(call(QKV, call(NORM1, x)), 3, axis=1)  # (N, 3 D) -> (N, D) each
        c, attended = self.attend(q, k, v, run)  # (N, D)
        a = x + call(O, c)
        h, slope = self.activation.value_and_slope(call(UP, call(NORM2, a)), slope=run.keep)  # (N, 4 D)
        return a + call(DOWN, h), (attended, slope)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``da = dy + LN₂ᵀ Uᵀ (Wᵀ dy ∘ f')``, ``dx = da + LN₁ᵀ Aᵀ [dq dk dv]``."""
        attended, slope = cache
        dm = back(UP, back(DOWN, dy) * slope)  # (N, D)
        da = dy + back(NORM2, dm)
        dqkv = np.concatenate(self.attention.vjp(back(O, da), attended), axis=1)  # (N, 3 D)
        return da + back(NORM1, back(QKV, dqkv))


@final
class GPT2Model(Transformer):
    """From token ids (B, T) to the hidden state of each token, (B, T, D), zero at padding.

    ``x₀ = word[ids] + position[0, 1, ...]``, then each `GPT2Block` in turn, then a norm. A state depends on the tokens up
    to its own. See `CausalLM` for the logits of the next token, `TokenModel` for ids, padding, tasks and ranks, and
    `lora_np.load_pretrained` for checkpoints, whose names are those of the layers.
    """

    checkpoint_name = "transformer"

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        super().__init__(layers, layers[POSITION].input_size)

    @staticmethod
    def indices(ids: Array, positions: Array) -> dict[str, Array]:
        """The ids and their positions."""
        return {WORD: ids, POSITION: positions}

    @classmethod
    def new(cls, config: Mapping[str, Any], *, dtype: Any = np.float32, rng: RNG = None) -> Self:
        """A model with random weights, of the sizes in a config.json."""
        random = generator(rng)
        return cls.build(
            config,
            lambda _, inputs, outputs: DenseLayer(inputs, outputs, dtype=dtype, rng=random),
            lambda _, size, epsilon: LayerNorm(size, epsilon, dtype=dtype),
            lambda _, entries, size: Embedding(entries, size, dtype=dtype, rng=random),
        )

    @classmethod
    def build(cls, config: Mapping[str, Any], dense: Make, norm: Make, embedding: Make) -> Self:
        """A model of layers that functions make, given the path of each, its sizes, and the ε of a norm."""
        D, epsilon = config["n_embd"], config.get("layer_norm_epsilon", 1e-5)
        inner = config.get("n_inner") or 4 * D
        layers = {WORD: embedding(WORD, config["vocab_size"], D), POSITION: embedding(POSITION, config["n_positions"], D)}
        for path in (f"h.{i}" for i in range(config["n_layer"])):
            block = {NORM1: norm(f"{path}.{NORM1}", D, epsilon)}
            block |= {QKV: dense(f"{path}.{QKV}", D, 3 * D), O: dense(f"{path}.{O}", D, D)}
            block |= {NORM2: norm(f"{path}.{NORM2}", D, epsilon)}
            block |= {UP: dense(f"{path}.{UP}", D, inner), DOWN: dense(f"{path}.{DOWN}", inner, D)}
            layers[path] = GPT2Block(block, config["n_head"])
        return cls(layers | {NORM: norm(NORM, D, epsilon)})
