"""Attention over ragged batches: a pure pair `apply` / `vjp` without parameters."""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np

from .._typing import Array
from .._validation import positive_int
from ..errors import ArgumentError
from ..sequences import Past, Spans
from .rotary import Rotary

HIDDEN = -1e30
"""The score of a hidden key: its weight is exactly zero. It is finite, so no difference of scores is NaN."""


class AttentionCache(NamedTuple):
    """The cache for `Attention.vjp`. G query heads read each of J key-value heads."""

    Q: Array
    """(B, J, T·G, d): rotated, and divided by √d."""
    K: Array
    """(B, J, T, d): rotated."""
    V: Array
    """(B, J, T, d)."""
    P: Array
    """(B, J, T·G, T): the weight of each key (last axis) for each query. After a past, there are more keys than T."""
    spans: Spans


@final
class Attention:
    """Scaled dot-product attention: ``C = softmax(Q Kᵀ / √d + mask) V`` in each head of each sequence.

    It has three inputs and no parameters, so it is a pair of functions and not a `Layer`.

    Parameters
    ----------
    heads : int
        The number of query heads, H.
    key_value_heads : int, optional
        The number of key-value heads, J, by default H. Query head h reads key-value head h // G, where G = H / J.
    causal : bool, default False
        Whether a query sees only the keys up to its own position. Otherwise it sees every key of its sequence.
    rotary : Rotary, optional
        The rotation of queries and keys, for heads of the same size.

    Raises
    ------
    ArgumentError
        If `key_value_heads` does not divide `heads`, or an argument has the wrong type.
    ArgumentOutOfRangeError
        If a number of heads is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.layers.attention import Attention
    >>> from lora_np.sequences import Spans
    >>> spans = Spans.of(np.array([2, 1]))  # two sequences, of two rows and of one
    >>> q = k = np.zeros((3, 1))            # equal scores, so equal weights
    >>> c, cache = Attention(heads=1).apply(q, k, np.array([[2.0], [4.0], [8.0]]), spans)
    >>> c.ravel().tolist()
    [3.0, 3.0, 8.0]
    """

    def __init__(
        self, heads: int, key_value_heads: int | None = None, *, causal: bool = False, rotary: Rotary | None = None
    ) -> None:
        self.heads = positive_int("heads", heads)
        self.key_value_heads = self.heads if key_value_heads is None else positive_int("key_value_heads", key_value_heads)
        if self.heads % self.key_value_heads:
            raise ArgumentError(f"key_value_heads must divide heads = {self.heads}, got {self.key_value_heads}")
        if rotary is not None and not isinstance(rotary, Rotary):
            raise ArgumentError(f"rotary must be a Rotary or None, got {rotary!r}")
        self.causal, self.rotary = causal, rotary

    def apply(self, q: Array, k: Array, v: Array, spans: Spans, past: Past | None = None) -> tuple[Array, AttentionCache]:
        """``P = softmax(Q Kᵀ / √d + mask)``, ``C = P V``: q and c (N, H·d), k and v (N, J·d).

        With a past, K and V are those of all its rows and of the new ones; `vjp` is for passes without a past.
        """
        H, J = self.heads, self.key_value_heads
        if self.rotary is not None:
            q, k = self.rotary.apply(q, spans.positions), self.rotary.apply(k, spans.positions)
        q = q * (q.shape[-1] // H) ** -0.5
        Q, K, V = self._by_head(q, H, spans), self._by_head(k, J, spans), self._by_head(v, J, spans)
        if past is not None:
            K, V = past.extended(self, K, V, spans)
        S = _times_transposed(Q, K)  # (B, J, T·G, d) @ (B, J, d, T) -> (B, J, T·G, T)
        P = _softmax(self._masked(S, spans))
        C = _times(P, V)  # (B, J, T·G, T) @ (B, J, T, d) -> (B, J, T·G, d)
        return _rows(C, H, spans), AttentionCache(Q, K, V, P, spans)

    def vjp(self, dc: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
        """``dV = Pᵀ dC``, ``dP = dC Vᵀ``, ``dS = softmax-vjp(dP, P)``, ``dQ = dS K / √d``, ``dK = dSᵀ Q / √d``."""
        Q, K, V, P, spans = cache
        H, J, d = self.heads, self.key_value_heads, Q.shape[-1]
        dC = self._by_head(dc, H, spans)
        dV = _times(P.mT, dC)  # (B, J, T, T·G) @ (B, J, T·G, d) -> (B, J, T, d)
        dP = _times_transposed(dC, V)  # (B, J, T·G, d) @ (B, J, d, T) -> (B, J, T·G, T)
        dS = _softmax_vjp(dP, P)
        dQ = _times(dS, K)  # (B, J, T·G, T) @ (B, J, T, d) -> (B, J, T·G, d)
        dK = _times(dS.mT, Q)  # (B, J, T, T·G) @ (B, J, T·G, d) -> (B, J, T, d); Q includes 1/√d
        dq, dk, dv = _rows(dQ, H, spans) * d**-0.5, _rows(dK, J, spans), _rows(dV, J, spans)
        if self.rotary is not None:
            dq, dk = self.rotary.vjp(dq, spans.positions), self.rotary.vjp(dk, spans.positions)
        return dq, dk, dv

    def _by_head(self, x: Array, heads: int, spans: Spans) -> Array:
        """(N, heads·d) -> (B, J, T·heads/J, d): row t·G + g is head g of a group at position t."""
        (B, T), J, d = spans.shape, self.key_value_heads, x.shape[-1] // heads
        grid = spans.grid(x).reshape(B, T, J, heads // J * d).swapaxes(1, 2)
        return grid.reshape(B, J, T * (heads // J), d)  # a view of the grid if each group is one head

    def _masked(self, S: Array, spans: Spans) -> Array:
        """Hide the keys after each query, or after the end of each sequence, in place."""
        key = np.arange(S.shape[-1])
        if self.causal:  # this hides the padding from the rows of the sequence as well
            query = np.arange(spans.shape[1]).repeat(self.heads // self.key_value_heads)
            if spans.offsets is not None:
                query = query + spans.offsets.reshape(-1, 1, 1)  # (B, 1, T·G)
            np.copyto(S, HIDDEN, where=key > query[..., np.newaxis])  # (T·G, T), or (B, 1, T·G, S)
        elif spans.slots is not None:
            np.copyto(S, HIDDEN, where=key >= spans.lengths.reshape(-1, 1, 1, 1))  # (B, 1, 1, T)
        return S


def _rows(C: Array, heads: int, spans: Spans) -> Array:
    """(B, J, T·heads/J, d) -> (N, heads·d): the inverse of `_by_head`, and also its transpose."""
    (B, J, _, d), T = C.shape, spans.shape[1]
    grid = C.reshape(B, J, T, heads // J * d).swapaxes(1, 2)
    return spans.rows(grid.reshape(B, T, heads * d))


def _times(P: Array, V: Array) -> Array:
    """``P V``, stored with the heads side by side, as in rows, so that `_rows` need not copy it."""
    (B, J, T, _), d = P.shape, V.shape[-1]
    C = np.empty((B, T, J, d), np.result_type(P, V)).swapaxes(1, 2)
    return np.matmul(P, V, out=C)


def _times_transposed(Q: Array, K: Array) -> Array:
    """``Q Kᵀ``, stored column-major: NumPy reduces over keys faster when it can add whole columns."""
    return (K @ Q.mT).mT


def _softmax(S: Array) -> Array:
    """Softmax over keys, in place."""
    S -= S.real.max(axis=-1, keepdims=True, initial=HIDDEN)  # without rows there is no maximum
    np.exp(S, out=S)
    S /= np.einsum("...s->...", S)[..., np.newaxis]
    return S


def _softmax_vjp(dP: Array, P: Array) -> Array:
    """``dS = P ∘ (dP - rowsum(dP ∘ P))``, in place."""
    dP -= np.einsum("...s,...s->...", dP, P)[..., np.newaxis]
    dP *= P
    return dP
