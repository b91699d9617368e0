"""What is put on an encoder: a class for each sentence or for each token, and sentence embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np

from .._typing import RNG, Array, Cache
from .._validation import not_none
from ..base import Layer
from ..errors import ArgumentError
from ..layers.composite import Back, Call
from ..layers.dense import FullyConnectedLayer
from ..run import Run
from ..sequences import Spans, mean_of_spans, mean_of_spans_vjp
from .tokens import TokenModel
from .transformer import Transformer

BODY, HEAD = "bert", "classifier"
"""The names of the children, as in Hugging Face's classifiers."""


class _OnEncoder(TokenModel):
    """An encoder, and what is computed from its rows."""

    def __init__(self, layers: Mapping[str, Layer], output_size: int) -> None:
        encoder = layers[BODY]
        if not isinstance(encoder, Transformer):
            raise ArgumentError(f"encoder must be a model of token ids without a head, such as BertModel, got {encoder!r}")
        super().__init__(layers, encoder.input_size, output_size, encoder.dtype)
        self.positions = encoder.positions

    def encoded(self, ids: Array, run: Run, call: Call) -> tuple[Array, Run, Spans]:
        """The hidden states of all tokens, (N, D), with the run and the spans of their rows."""
        rows, rows_run = self.packed(ids, run)
        assert rows_run.spans is not None
        return call(BODY, rows, rows_run), rows_run, rows_run.spans

    def config(self) -> dict[str, Any]:
        """The layers."""
        return {"layers": dict(self.children())}


class _Classifier(_OnEncoder):
    """An encoder and a dense head.

    Parameters
    ----------
    encoder : BertModel, or another Transformer
    classes : int
        The number of outputs.
    rng : seed or numpy.random.Generator, optional
        For the initial W of the head; its b is initially zero.
    """

    def __init__(self, encoder: Layer, classes: int, *, rng: RNG = None) -> None:
        not_none("encoder", encoder)
        head = FullyConnectedLayer(encoder.output_size, classes, dtype=encoder.dtype, rng=rng)
        super().__init__({BODY: encoder, HEAD: head}, head.output_size)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new classifier of the given layers."""
        layers, model = config["layers"], cls.__new__(cls)
        _OnEncoder.__init__(model, layers, layers[HEAD].output_size)
        return model


@final
class SequenceClassifier(_Classifier):
    """``y = W mean(encoder(ids)) + b`` for each sentence: from ids (B, T) to logits (B, classes).

    Parameters
    ----------
    encoder : BertModel, or another Transformer
    classes : int
        The number of outputs.
    rng : seed or numpy.random.Generator, optional
        For the initial W of the head; its b is initially zero.

    Notes
    -----
    The mean of the hidden states replaces BERT's pooler. With T_b tokens in sentence b and G = dL/dY::

        e_b = Σ_n x_n / T_b,  Y = e Wᵀ + b,  de = G W,  dx_n = de_b / T_b
    """

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``e = mean(encoder(ids))``, ``y = e Wᵀ + b``."""
        hidden, _, spans = self.encoded(x, run, call)  # (N, D)
        return call(HEAD, mean_of_spans(hidden, spans)), spans  # (B, classes)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``de = dy W``, ``dx_n = de_b / T_b``."""
        return back(BODY, mean_of_spans_vjp(back(HEAD, dy), cache))

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return (len(x), self.output_size)


@final
class TokenClassifier(_Classifier):
    """``y = W encoder(ids) + b`` for each token: from ids (B, T) to logits (B, T, classes), zero at padding.

    Parameters
    ----------
    encoder : BertModel, or another Transformer
    classes : int
        The number of outputs.
    rng : seed or numpy.random.Generator, optional
        For the initial W of the head; its b is initially zero.
    """

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``y = encoder(ids) Wᵀ + b`` in the places of the tokens."""
        hidden, rows_run, spans = self.encoded(x, run, call)  # (N, D)
        return self.unpacked(call(HEAD, hidden, rows_run), spans, x), spans  # (B, T, classes)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``dx = dy W``; padding has no effect."""
        return back(BODY, back(HEAD, self.unpacked_vjp(dy, cache)))


@final
class SentenceEncoder(_OnEncoder):
    """The embedding of each sentence, ``e = mean(encoder(ids))``, of length 1: from ids (B, T) to (B, D).

    Parameters
    ----------
    encoder : BertModel, or another Transformer
    normalize : bool, default True
        Whether to divide each embedding by its length, as Sentence-BERT's models do (Reimers and Gurevych 2019).

    Notes
    -----
    With y = e / ‖e‖ and G = dL/dY: ``de = (G - y (y · G)) / ‖e‖``.
    """

    def __init__(self, encoder: Layer, *, normalize: bool = True) -> None:
        not_none("encoder", encoder)
        super().__init__({BODY: encoder}, encoder.output_size)
        self.normalize = normalize

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new model of the given encoder."""
        return cls(config["layers"][BODY], normalize=config["normalize"])

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``e = mean(encoder(ids))``, ``y = e / ‖e‖``."""
        hidden, _, spans = self.encoded(x, run, call)
        e = mean_of_spans(hidden, spans)  # (B, D)
        if not self.normalize:
            return e, (spans, None, None)
        norm = np.sqrt((e * e).sum(axis=1, keepdims=True))
        y = e / norm
        return y, (spans, y, norm)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """``de = (dy - y (y · dy)) / ‖e‖``, ``dx_n = de_b / T_b``."""
        spans, y, norm = cache
        de = dy if y is None else (dy - y * (y * dy).sum(axis=1, keepdims=True)) / norm
        return back(BODY, mean_of_spans_vjp(de, spans))

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return (len(x), self.output_size)

    def config(self) -> dict[str, Any]:
        """The encoder, and whether embeddings have length 1."""
        return super().config() | {"normalize": self.normalize}
