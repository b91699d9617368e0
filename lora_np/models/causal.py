"""`CausalLM`: the logits of the next token, from the hidden states of a causal transformer."""

from __future__ import annotations

from typing import Any, Self, final

from .._typing import Array, Cache, Gradients
from .._validation import not_none
from ..base import Layer
from ..errors import ArgumentError
from ..layers.composite import Back, Call, CompositeCache
from ..layers.dense import FullyConnectedLayer
from ..run import Run
from .tokens import TokenModel
from .transformer import Transformer

HEAD = "lm_head"
"""The name of an untied head, as in Hugging Face's checkpoints."""


@final
class CausalLM(TokenModel):
    """``z = W h`` with ``h = body(ids)``: from token ids (B, T) to the logits of the next token at each, (B, T, V).

    Logits at padding are zero. The names are those of Hugging Face's ``LlamaForCausalLM`` and ``GPT2LMHeadModel``: the body
    is the child ``model`` or ``transformer``, an untied head the child ``lm_head``.

    The model is its two steps, both of which are layers: `body`, from ids to hidden states, and `head`, from hidden states
    to logits. A computation that needs few logits at a time, such as generation, or a loss over a large vocabulary, applies
    the body once and the head to some of the rows.

    Parameters
    ----------
    body : LlamaModel or GPT2Model
    head : Layer, optional
        W, a dense layer from the hidden size D to the vocabulary of V tokens. By default the head is tied: W is the body's
        table of tokens, (V, D), as in GPT-2 and in small Llamas (Press and Wolf 2017).

    Raises
    ------
    ArgumentError
        If the body is not a causal transformer, or if the sizes of the head are not D and V, or its dtype not the body's.

    Notes
    -----
    With rows of hidden states H, (N, D), and G = dL/dZ, (N, V)::

        Z = H Wᵀ,  dH = G W,  dW = Gᵀ H

    A tied W is used twice, so its gradient is the sum of this dW and the gradient of the embedding.

    Examples
    --------
    >>> from lora_np import CausalLM, LlamaModel
    >>> config = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    >>> model = CausalLM(LlamaModel.new(config | dict(vocab_size=20, max_position_embeddings=32), rng=0))
    >>> model.predict([[3, 1, 4], [1, 5, -1]]).shape
    (2, 3, 20)
    """

    def __init__(self, body: Layer, head: Layer | None = None) -> None:
        not_none("body", body)
        if not (isinstance(body, Transformer) and all(block.attention.causal for block in body.blocks.values())):
            raise ArgumentError(f"body must be a causal transformer such as LlamaModel, got {body!r}")
        layers: dict[str, Layer] = {body.checkpoint_name: body}
        if head is not None:
            sizes = body.output_size, body.input_size, body.dtype
            if not isinstance(head, Layer) or (head.input_size, head.output_size, head.dtype) != sizes:
                rule = f"head must be a layer from {sizes[0]} to {sizes[1]} in {sizes[2]}"
                raise ArgumentError(f"{rule}, got {head!r}" + (f" in {head.dtype}" if isinstance(head, Layer) else ""))
            layers[HEAD] = head
        super().__init__(layers, body.input_size, body.input_size, body.dtype)
        self.positions = body.positions

    @property
    def body(self) -> Layer:
        """The layer from packed ids (N,), or ids (B, T), to hidden states: see `TokenModel.packed`."""
        return self._layers[self._body]

    @property
    def head(self) -> Layer:
        """The layer from rows of hidden states (N, D) to logits (N, V). A tied one shares the array of the table."""
        if HEAD in self._layers:
            return self._layers[HEAD]
        words = next(iter(self.body.children().values()))
        return FullyConnectedLayer.from_arrays(words.weight)  # an Embedding

    @property
    def head_name(self) -> str:
        """The path of the layer that has the array of the head: ``lm_head``, or that of the table."""
        return HEAD if HEAD in self._layers else f"{self._body}.{next(iter(self.body.children()))}"

    @property
    def _body(self) -> str:
        return next(iter(self._layers))

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``h = body(ids)``, ``z = W h``."""
        ids, rows = self.packed(x, run)
        spans = rows.spans
        assert spans is not None
        h = call(self._body, ids, rows)  # (N, D)
        z, tied = (call(HEAD, h, rows), None) if HEAD in self._layers else self.head.apply(h, rows)  # (N, V)
        return self.unpacked(z, spans, x), (spans, tied)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``dh = dz W``."""
        spans, tied = cache
        dz = self.unpacked_vjp(dy, spans)  # (N, V)
        dh = back(HEAD, dz) if tied is None else self.head.vjp(dz, tied, parameters=False)[0]  # (N, D)
        return back(self._body, dh)  # type: ignore[arg-type]

    def vjp(
        self, dy: Array, cache: CompositeCache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The `flow_vjp`; the gradient of a tied table, if it trains, is the sum over both of its uses."""
        dx, gradients = super().vjp(dy, cache, parameters=parameters, inputs=inputs)
        name, (spans, tied) = f"{self.head_name}.weight", cache.own
        if tied is not None and name in gradients:
            _, own = self.head.vjp(self.unpacked_vjp(dy, spans), tied, inputs=False)
            gradients[name] = gradients[name] + own["weight"]
        return dx, gradients

    def estimate_flops(self) -> int:
        """The sum over the body and the head, tied or not."""
        return self.body.estimate_flops() + self.head.estimate_flops()

    def config(self) -> dict[str, Any]:
        """The layers."""
        return {"layers": dict(self.children())}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new model of the given layers."""
        return cls(*config["layers"].values())
