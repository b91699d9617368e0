"""An encoder cut in two: the lower blocks never change, so that they run once for each sentence and not once an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from .._typing import Array, Cache
from ..base import Layer
from ..layers.composite import Back, Call
from ..layers.embedding import Embedding
from ..models.bert import BertBlock, BertModel
from ..models.tokens import TokenModel
from ..run import Run
from ..text import by_length

TABLE = "hidden_states"


@final
class UpperBlocks(TokenModel):
    """The last blocks of a `BertModel` on a table of hidden states: the id of a token is its row in the table.

    Parameters
    ----------
    layers : mapping of layers by name
        An Embedding named ``hidden_states``, then blocks with their names in the encoder, so that adapters fit both.
    positions : int
        The largest number of tokens of a sentence.
    """

    def __init__(self, layers: Mapping[str, Layer], positions: int) -> None:
        table = layers[TABLE]
        super().__init__(layers, table.input_size, table.output_size, table.dtype)
        self.positions = positions

    def flow(self, x: Array, run: Run, call: Call) -> tuple[Array, Cache]:
        """``y = table[x]``, then the blocks."""
        ids, rows = self.packed(x, run)
        spans = rows.spans
        assert spans is not None
        y = call(TABLE, ids, rows)  # (N, D)
        for name in upper_of(self):
            y = call(name, y, rows)
        return (y, None) if run.spans is not None else (self.unpacked(y, spans, x.shape[1]), spans)

    def flow_vjp(self, dy: Array, cache: Cache, back: Back) -> Array:
        """The blocks in reverse, then the table."""
        dy = dy if cache is None else self.unpacked_vjp(dy, cache)
        for name in reversed(upper_of(self)):
            dy = back(name, dy)
        return back(TABLE, dy)


def upper_of(model: Layer) -> dict[str, Layer]:
    """The blocks of an `UpperBlocks`, by name."""
    return {name: layer for name, layer in model.children().items() if name != TABLE}


def cut(encoder: BertModel, ids: Array, blocks: int) -> tuple[UpperBlocks, Array]:
    """Run the lower blocks of an encoder on sentences.

    Parameters
    ----------
    encoder : BertModel
    ids : array of int, shape (sentences, tokens)
    blocks : int
        The number of upper blocks, at least 1.

    Returns
    -------
    upper : UpperBlocks
        The last `blocks` blocks, which share the encoder's arrays.
    ids : array of int, shape (sentences, tokens)
        The sentences for `upper`, such that ``upper.predict(ids)`` is the encoder's result.
    """
    children = encoder.children()
    upper = [name for name, layer in children.items() if isinstance(layer, BertBlock)][-blocks:]
    lower = BertModel({name: layer for name, layer in children.items() if name not in upper})
    rows = np.where(ids >= 0, np.cumsum(ids >= 0).reshape(ids.shape) - 1, -1)
    table = np.empty((rows.max() + 1, encoder.output_size), encoder.dtype)
    for sentences, batch in by_length(ids):
        present = batch >= 0
        table[rows[sentences, : batch.shape[1]][present]] = lower.predict(batch)[present]
    layers = {TABLE: Embedding.from_array(table)} | {name: children[name] for name in upper}
    return UpperBlocks(layers, encoder.positions), rows
