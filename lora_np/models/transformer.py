"""`Transformer`: from token ids to hidden states, by embeddings and blocks; `Block`: attention and dense layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .._typing import Array, Cache
from ..base import Layer
from ..errors import ArgumentError
from ..functions.activations import Activation
from ..layers.attention import Attention, AttentionCache
from ..layers.composite import Back, Call, Composite
from ..run import Run
from ..sequences import Spans
from .tokens import TokenModel

Make: TypeAlias = Callable[[str, int, Any], Layer]
"""Makes the layer of a path: a dense layer or a table, given its sizes, or a norm, given its size and ε."""


class Block(Composite):
    """A layer of rows that mixes those of each sequence by attention. Alone, it takes the rows of one sequence.

    Parameters
    ----------
    layers : mapping of layers by name
        As in a checkpoint.
    size : int
        D, the size of a row.
    attention : Attention
    activation : Activation
        f, between the dense layers.
    """

    def __init__(self, layers: Mapping[str, Layer], size: int, attention: Attention, activation: Activation) -> None:
        super().__init__(layers, size, size, next(iter(layers.values())).dtype)
        self.attention, self.activation = attention, activation

    def attend(self, q: Array, k: Array, v: Array, run: Run) -> tuple[Array, AttentionCache]:
        """The attention of the sequences of a run, (N, H·d), after the keys and values of its past, if it has one."""
        spans = Spans.of(np.array([len(q)])) if run.spans is None else run.spans  # rows alone are one sequence
        return self.attention.apply(q, k, v, spans, run.past)

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """Check that the input is rows, (N, D): of one sequence, if the block is used alone."""
        x = super().check_input(input, copy=copy, name=name)
        if x.ndim != 2:
            raise ArgumentError(f"{name} must have shape (rows, {self.input_size}), got {x.shape}")
        return x

    def get_activation_types(self) -> tuple[str, ...]:
        """The names of the activations of the layers, and of the one between them."""
        return (*super().get_activation_types(), self.activation.name)

    def config(self) -> dict[str, Any]:
        """The layers, the number of heads, the activation."""
        return {"layers": dict(self.children()), "heads": self.attention.heads, "activation": self.activation}


class Transformer(TokenModel):
    """From token ids (B, T) to the hidden state of each token, (B, T, D), zero at padding.

    The sum of one row of each table, then the other layers one after another: blocks, and norms before or after them.

    Parameters
    ----------
    layers : mapping of layers by name
        The tables, in the order of `indices`, then the chain. The first table is that of the vocabulary.
    positions : int
        The largest number of tokens of a sentence.
    """

    checkpoint_name: ClassVar[str]
    """The name of this model inside a model with a head, as in checkpoints."""

    def __init__(self, layers: Mapping[str, Layer], positions: int) -> None:
        words = next(iter(layers.values()))
        super().__init__(layers, words.input_size, words.output_size, words.dtype)
        self.positions = positions

    @staticmethod
    @abstractmethod
    def indices(ids: Array, positions: Array) -> dict[str, Array]:
        """The row to take from each table, by its name, for the id and the position of each token: each of shape (N,)."""

    @property
    def blocks(self) -> dict[str, Block]:
        """The blocks by name."""
        return {name: layer for name, layer in self.children().items() if isinstance(layer, Block)}

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``x₀ = Σ table[index]``, then the chain."""
        ids, rows = self.packed(x, run)
        spans = rows.spans
        assert spans is not None
        indices = self.indices(ids, spans.positions)
        first, *others = (call(name, index, rows) for name, index in indices.items())
        y = sum(others, start=first)  # (N, D)
        for name in self._chain(indices):
            y = call(name, y, rows)
        return self.unpacked(y, spans, x), (spans, indices)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """The chain in reverse, then the tables, which all have the same gradient."""
        spans, indices = cache
        dy = self.unpacked_vjp(dy, spans)
        for name in reversed(self._chain(indices)):
            dy = back(name, dy)
        first, *others = indices
        for name in reversed(others):
            back(name, dy)
        return back(first, dy)

    def _chain(self, tables: Mapping[str, Any]) -> list[str]:
        return [name for name in self.children() if name not in tables]

    def _details(self) -> dict[str, str]:
        return {"transformer.blocks": str(len(self.blocks)), "transformer.positions": str(self.positions)}

    def config(self) -> dict[str, Any]:
        """The layers."""
        return {"layers": dict(self.children())}
