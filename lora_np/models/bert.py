"""BERT encoders (Devlin et al. 2019), with the names of Hugging Face's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np

from .._typing import RNG, Array, Cache
from .._validation import generator
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import Activation, gelu_exact
from ..layers.attention import Attention
from ..layers.composite import Back, Call, Composite
from ..layers.dense import FullyConnectedLayer
from ..layers.embedding import Embedding
from ..layers.normalization import LayerNorm
from ..run import Run
from ..sequences import Spans
from .tokens import TokenModel

Q, K, V, O = "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"  # noqa: E741
NORM1, UP, DOWN, NORM2 = "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"
WORD, POSITION, TYPE = (f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type"))
NORM = "embeddings.LayerNorm"


@final
class BertBlock(Composite):
    """``a = LN₁(x + O attend(Q x, K x, V x))``, ``y = LN₂(a + D f(U a))``: attention, then two dense layers.

    Parameters
    ----------
    layers : mapping of layers by name
        As in a checkpoint: query, key, value and output of the attention, its norm, the dense layers U and D, their norm.
    heads : int
    activation : Activation, default gelu_exact
        f.

    Notes
    -----
    With G = dL/dY, the vjp of each layer written as its name with ᵀ, and f' the slope at U a::

        dr = LN₂ᵀ G,  da = dr + Uᵀ (Dᵀ dr ∘ f'),  dr' = LN₁ᵀ da
        dq, dk, dv = attendᵀ(Oᵀ dr'),  dx = dr' + Qᵀ dq + Kᵀ dk + Vᵀ dv
    """

    def __init__(self, layers: Mapping[str, Layer], heads: int, activation: Activation = gelu_exact) -> None:
        query = layers[Q]
        super().__init__(layers, query.input_size, query.input_size, query.dtype)
        self.attention = Attention(heads)
        self.activation = activation

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``a = LN₁(x + O attend(Q x, K x, V x))``, ``y = LN₂(a + D f(U a))``."""
        spans = Spans.of(np.array([len(x)])) if run.spans is None else run.spans  # rows alone are one sequence
        c, attended = self.attention.apply(call(Q, x), call(K, x), call(V, x), spans)  # (N, D)
        a = call(NORM1, x + call(O, c))
        h, slope = self.activation.value_and_slope(call(UP, a), slope=run.keep)  # (N, 4 D)
        return call(NORM2, a + call(DOWN, h)), (attended, slope)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``dr = LN₂ᵀ dy``, ``da = dr + Uᵀ (Dᵀ dr ∘ f')``, ``dr' = LN₁ᵀ da``, ``dx = dr' + Qᵀ dq + Kᵀ dk + Vᵀ dv``."""
        attended, slope = cache
        dr = back(NORM2, dy)  # (N, D)
        da = dr + back(UP, back(DOWN, dr) * slope)
        dr = back(NORM1, da)
        dq, dk, dv = self.attention.vjp(back(O, dr), attended)
        return dr + back(Q, dq) + back(K, dk) + back(V, dv)

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """Check that the input is rows, (N, D): of one sequence, if the block is used alone."""
        x = super().check_input(input, copy=copy, name=name)
        if x.ndim != 2:
            raise ArgumentError(f"{name} must have shape (rows, {self.input_size}), got {x.shape}")
        return x

    def config(self) -> dict[str, Any]:
        """The layers, the number of heads, the activation."""
        return {"layers": dict(self.children()), "heads": self.attention.heads, "activation": self.activation}


@final
class BertModel(TokenModel):
    """From token ids (B, T) to the hidden state of each token, (B, T, D), zero at padding.

    Parameters
    ----------
    layers : mapping of layers by name
        As in a checkpoint: three embeddings and their norm, then the blocks ``encoder.layer.0``, ``encoder.layer.1``, ...

    Notes
    -----
    ``x₀ = LN(word[ids] + position[0, 1, ...] + type[0])``, then each block in turn. A sentence is a single segment, so
    the type is 0 everywhere. See `BertBlock` for a block, and `TokenModel` for ids, padding, tasks and ranks.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        word, position = layers[WORD], layers[POSITION]
        super().__init__(layers, word.input_size, word.output_size, word.dtype)
        self.positions = position.input_size
        self._blocks = [name for name in layers if name not in (WORD, POSITION, TYPE, NORM)]

    @classmethod
    def new(cls, config: Mapping[str, Any], *, dtype: Any = np.float32, rng: RNG = None) -> Self:
        """A model with random weights, given the entries of a config.json.

        Parameters
        ----------
        config : mapping
            hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size, max_position_embeddings,
            type_vocab_size, and, if it is not 1e-12, layer_norm_eps.
        dtype : {float32, float64}
        rng : seed or numpy.random.Generator, optional
        """
        random = generator(rng)
        size, inner, epsilon = config["hidden_size"], config["intermediate_size"], config.get("layer_norm_eps", 1e-12)

        def dense(inputs: int, outputs: int) -> Layer:
            return FullyConnectedLayer(inputs, outputs, dtype=dtype, rng=random)

        def embedding(entries: str) -> Layer:
            return Embedding(config[entries], size, dtype=dtype, rng=random)

        def block() -> Layer:
            layers = {name: dense(size, size) for name in (Q, K, V, O)} | {NORM1: LayerNorm(size, epsilon, dtype=dtype)}
            layers |= {UP: dense(size, inner), DOWN: dense(inner, size), NORM2: LayerNorm(size, epsilon, dtype=dtype)}
            return BertBlock(layers, config["num_attention_heads"])

        layers = {WORD: embedding("vocab_size"), POSITION: embedding("max_position_embeddings")}
        layers |= {TYPE: embedding("type_vocab_size"), NORM: LayerNorm(size, epsilon, dtype=dtype)}
        return cls(layers | {f"encoder.layer.{i}": block() for i in range(config["num_hidden_layers"])})

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``x₀ = LN(word + position + type)``, then the blocks."""
        ids, rows = self.packed(x, run)
        spans = rows.spans
        assert spans is not None
        y = call(WORD, ids, rows) + call(POSITION, spans.positions, rows) + call(TYPE, np.zeros_like(ids), rows)  # (N, D)
        y = call(NORM, y, rows)
        for name in self._blocks:
            y = call(name, y, rows)
        if run.spans is not None:
            return y, None  # packed for the model that this one is inside of
        return self.unpacked(y, spans, x.shape[1]), spans

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """The blocks in reverse, then the three embeddings, which have the same gradient."""
        dy = dy if cache is None else self.unpacked_vjp(dy, cache)
        for name in reversed(self._blocks):
            dy = back(name, dy)
        dy = back(NORM, dy)
        for name in (TYPE, POSITION, WORD):
            back(name, dy)
        return dy

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return (*x.shape, self.output_size)

    def config(self) -> dict[str, Any]:
        """The layers."""
        return {"layers": dict(self.children())}
