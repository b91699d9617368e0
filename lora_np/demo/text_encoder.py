"""An encoder cut in two: the lower blocks never change, so that they run once for each sentence and not once an epoch."""

from __future__ import annotations

from typing import final

import numpy as np

from .._typing import Array
from ..base import Layer
from ..layers.embedding import Embedding
from ..models.bert import BertBlock, BertModel
from ..models.transformer import Transformer
from ..text import by_length

TABLE = "hidden_states"


@final
class UpperBlocks(Transformer):
    """The last blocks of a `BertModel` on a table of hidden states: the id of a token is its row in the table.

    Parameters
    ----------
    layers : mapping of layers by name
        An Embedding named ``hidden_states``, then blocks with their names in the encoder, so that adapters fit both.
    positions : int
        The largest number of tokens of a sentence.
    """

    checkpoint_name = "bert"

    @staticmethod
    def indices(ids: Array, positions: Array) -> dict[str, Array]:
        """The ids."""
        return {TABLE: ids}


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
