"""Llama (Touvron et al. 2023) and models of the same form, with the names of Hugging Face's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np

from .._typing import RNG, Array, Cache
from .._validation import generator, positive_int
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import Activation, swish
from ..layers.attention import Attention
from ..layers.composite import Back, Call
from ..layers.dense import FullyConnectedLayer
from ..layers.embedding import Embedding
from ..layers.normalization import RMSNorm
from ..layers.rotary import Rotary
from ..run import Run
from .transformer import Block, Make, Transformer

NORM1, Q, K, V, O = "input_layernorm", *(f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
NORM2, GATE, UP, DOWN = "post_attention_layernorm", *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
WORD, NORM = "embed_tokens", "norm"


@final
class LlamaBlock(Block):
    """``a = x + O attend(Q n, K n, V n)`` with ``n = RMS₁(x)``; ``y = a + W (f(Z m) ∘ U m)`` with ``m = RMS₂(a)``.

    The second half is a gated dense layer, SwiGLU (Shazeer 2020). Attention is causal, with rotary positions.

    Parameters
    ----------
    layers : mapping of layers by name
        As in a checkpoint: a norm; query, key, value and output of the attention; another norm; the dense layers Z (gate),
        U (up) and W (down).
    heads, key_value_heads : int
        As in `Attention`.
    rotary_base : float, default 10000
    activation : Activation, default swish
        f.

    Notes
    -----
    With G = dL/dY, the vjp of each layer written as its name with ᵀ, and f' the slope at Z m::

        dh = Wᵀ G,  dm = Uᵀ (dh ∘ f(Z m)) + Zᵀ (dh ∘ U m ∘ f'),  da = G + RMS₂ᵀ dm
        dq, dk, dv = attendᵀ(Oᵀ da),  dx = da + RMS₁ᵀ (Qᵀ dq + Kᵀ dk + Vᵀ dv)
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        heads: int,
        key_value_heads: int,
        rotary_base: float = 10000.0,
        activation: Activation = swish,
    ) -> None:
        width = layers[Q].output_size
        if width % positive_int("heads", heads):
            raise ArgumentError(f"heads must divide the number of outputs of {Q}, {width}, got {heads}")
        rotary = Rotary(width // heads, rotary_base)
        attention = Attention(heads, key_value_heads, causal=True, rotary=rotary)
        super().__init__(layers, layers[Q].input_size, attention, activation)
        self.rotary_base = rotary.base

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``n = RMS₁(x)``, ``a = x + O attend(Q n, K n, V n)``, ``m = RMS₂(a)``, ``y = a + W (f(Z m) ∘ U m)``."""
        n = call(NORM1, x)  # (N, D)
        c, attended = self.attend(call(Q, n), call(K, n), call(V, n), run)  # (N, H·d)
        a = x + call(O, c)  # (N, D)
        m = call(NORM2, a)
        g, slope = self.activation.value_and_slope(call(GATE, m), slope=run.keep)  # (N, inner)
        u = call(UP, m)
        return a + call(DOWN, g * u), (attended, g, slope, u)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``dh = Wᵀ dy``, ``dm = Uᵀ (dh ∘ g) + Zᵀ (dh ∘ u ∘ f')``, ``da = dy + RMS₂ᵀ dm``; attention similarly."""
        attended, g, slope, u = cache
        dh = back(DOWN, dy)  # (N, inner)
        dm = back(UP, dh * g) + back(GATE, dh * u * slope)  # (N, D)
        da = dy + back(NORM2, dm)
        dq, dk, dv = self.attention.vjp(back(O, da), attended)  # (N, H·d), (N, J·d), (N, J·d)
        dn = back(V, dv) + back(K, dk) + back(Q, dq)  # (N, D)
        return da + back(NORM1, dn)

    def config(self) -> dict[str, Any]:
        """The layers, the numbers of heads, the base of the rotary positions, the activation."""
        return super().config() | {"key_value_heads": self.attention.key_value_heads, "rotary_base": self.rotary_base}


@final
class LlamaModel(Transformer):
    """From token ids (B, T) to the hidden state of each token, (B, T, D), zero at padding.

    ``x₀ = word[ids]``, then each `LlamaBlock` in turn, then a norm. A state depends on the tokens up to its own. See
    `CausalLM` for the logits of the next token, `TokenModel` for ids, padding, tasks and ranks, and
    `lora_np.load_pretrained` for checkpoints, whose names are those of the layers. The largest number of tokens of a
    sentence, `positions`, is the one that the model was trained with.
    """

    checkpoint_name = "model"

    def __init__(self, layers: Mapping[str, Layer], positions: int = 2048) -> None:
        super().__init__(layers, positive_int("positions", positions))

    @staticmethod
    def indices(ids: Array, positions: Array) -> dict[str, Array]:
        """The ids: positions are left to attention."""
        return {WORD: ids}

    @classmethod
    def new(cls, config: Mapping[str, Any], *, dtype: Any = np.float32, rng: RNG = None) -> Self:
        """A model with random weights, of the sizes in a config.json."""
        random = generator(rng)
        return cls.build(
            config,
            lambda _, inputs, outputs: FullyConnectedLayer(inputs, outputs, bias=False, dtype=dtype, rng=random),
            lambda _, size, epsilon: RMSNorm(size, epsilon, dtype=dtype),
            lambda _, entries, size: Embedding(entries, size, dtype=dtype, rng=random),
        )

    @classmethod
    def build(cls, config: Mapping[str, Any], dense: Make, norm: Make, embedding: Make) -> Self:
        """A model of layers that functions make, given the path of each, its sizes, and the ε of a norm."""
        D, inner, epsilon = config["hidden_size"], config["intermediate_size"], config.get("rms_norm_eps", 1e-6)
        heads = config["num_attention_heads"]
        if D % heads and not config.get("head_dim"):
            rule = f"num_attention_heads must divide hidden_size = {D} if head_dim is not given"
            raise ArgumentError(f"{rule}, got {heads}")
        groups, d = config.get("num_key_value_heads") or heads, config.get("head_dim") or D // heads
        base = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10000.0))
        layers = {WORD: embedding(WORD, config["vocab_size"], D)}
        for path in (f"layers.{i}" for i in range(config["num_hidden_layers"])):
            sizes = {Q: (D, heads * d), K: (D, groups * d), V: (D, groups * d), O: (heads * d, D)}
            block = {NORM1: norm(f"{path}.{NORM1}", D, epsilon)}
            block |= {name: dense(f"{path}.{name}", *size) for name, size in sizes.items()}
            block |= {NORM2: norm(f"{path}.{NORM2}", D, epsilon)}
            sizes = {GATE: (D, inner), UP: (D, inner), DOWN: (inner, D)}
            block |= {name: dense(f"{path}.{name}", *size) for name, size in sizes.items()}
            layers[path] = LlamaBlock(block, heads, groups, base)
        return cls(layers | {NORM: norm(NORM, D, epsilon)}, config["max_position_embeddings"])

    def config(self) -> dict[str, Any]:
        """The layers, the number of positions."""
        return super().config() | {"positions": self.positions}
