"""`TokenModel`: models of token ids, which pack the rows of a padded batch and know which sentence each belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._typing import Array
from .._validation import not_none
from ..errors import ArgumentError
from ..layers.composite import Composite
from ..run import Run
from ..sequences import Spans


class TokenModel(Composite):
    """A model of sentences: (B, T) integer ids, each row padded at its end with -1.

    Inside, the rows of all tokens follow one another without padding: only attention sees sentences. The task and the rank
    of a pass belong to a sentence, and `packed` hands them to each of its rows. A model inside another one, such as the
    encoder of a classifier, gets rows that are packed already.
    """

    gives_input_gradient = False

    positions: int
    """The largest number of tokens of a sentence."""

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """The ids, or an ArgumentError that names the rule and the value."""
        not_none(name, input)
        try:
            ids = np.asarray(input)
        except ValueError as error:
            raise ArgumentError(f"{name} must be token ids, padded with -1 to equal lengths: {error}") from None
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ArgumentError(
                f"{name} must be integer token ids of shape (sentences, tokens), got {ids.dtype} of shape {ids.shape}"
            )
        if ids.shape[1] > self.positions:
            raise ArgumentError(f"{name} must have at most {self.positions} tokens a sentence, got {ids.shape[1]}")
        wrong = ids[(ids < -1) | (ids >= self.input_size)]
        if wrong.size:
            raise ArgumentError(f"{name} must contain ids in 0..{self.input_size - 1}, and -1 for padding, got {wrong[0]}")
        empty = np.flatnonzero((ids[:, :1] < 0).all(axis=1))
        if empty.size:
            raise ArgumentError(f"{name} must have at least one token in each sentence, got none in sentence {empty[0]}")
        gaps = np.flatnonzero(((ids[:, 1:] >= 0) & (ids[:, :-1] < 0)).any(axis=1))
        if gaps.size:
            raise ArgumentError(f"{name} must be padded only at the end of a sentence, got a gap in sentence {gaps[0]}")
        return ids.astype(np.intp, copy=copy)

    def packed(self, ids: Array, run: Run) -> tuple[Array, Run]:
        """The ids of all tokens, (B, T) -> (N,), and the run of their rows; packed ids are returned as they are."""
        if run.spans is not None:
            return ids, run
        present = ids >= 0
        return ids[present], run.over(Spans.of(present.sum(axis=1)))

    @staticmethod
    def unpacked(rows: Array, spans: Spans, x: Array) -> Array:
        """The rows in the places of their ids in x, (N, D) -> (B, T, D), zero at padding; as they are if x is packed."""
        if x.ndim == 1:
            return rows
        grid = spans.grid(rows)
        more = x.shape[1] - grid.shape[1]
        return np.pad(grid, ((0, 0), (0, more), (0, 0))) if more else grid

    @staticmethod
    def unpacked_vjp(dy: Array, spans: Spans) -> Array:
        """The gradient of the rows, (B, T, D) -> (N, D); that of padding has no effect."""
        return dy if dy.ndim == 2 else spans.rows(dy[:, : spans.shape[1]])

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return (*x.shape, self.output_size)

    def _example(self, rows: int) -> Array:
        return np.zeros((rows, 1), np.intp)
