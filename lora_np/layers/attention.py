"""Attention over ragged batches, and rotary positions: pure functions in pairs, without parameters."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np

from .._typing import Array
from .._validation import finite_float, float_dtype, positive_int
from ..errors import ArgumentError, ArgumentOutOfRangeError
from ..sequences import Spans

HIDDEN = -1e30
"""Added to the score of a hidden key: its weight is exactly zero, and no row becomes NaN, as it could with -inf."""


@final
class Rotary:
    """Rotary positions (Su et al. 2021): each head is rotated by angles that are proportional to its position.

    Parameters
    ----------
    head_size : int
        d, an even number. Component j turns in a plane with component j + d/2, as in Llama.
    base : float
        At position p, this pair turns by the angle ``p base^(-2j/d)``.
    positions : int
        The number of positions, from 0.
    dtype : {float64, float32}
    """

    def __init__(self, head_size: int, base: float = 10000.0, positions: int = 2048, dtype: Any = np.float64) -> None:
        d = positive_int("head_size", head_size)
        if d % 2:
            raise ArgumentOutOfRangeError(f"head_size must be even, got {d}")
        base = finite_float("base", base)
        if base <= 0:
            raise ArgumentOutOfRangeError(f"base must be positive, got {base}")
        angles = np.outer(np.arange(positive_int("positions", positions)), base ** (-np.arange(0, d, 2) / d))
        self.cos: Array = np.cos(angles).astype(float_dtype(dtype))  # (positions, d/2)
        self.sin: Array = np.sin(angles).astype(self.cos.dtype)

    def apply(self, x: Array, positions: Array) -> Array:
        """Rotate rows by their angles: (N, heads, d), positions (N,) -> (N, heads, d)."""
        return _rotated(x, self.cos[positions], self.sin[positions])

    def vjp(self, dy: Array, positions: Array) -> Array:
        """The rotation back, by the negative angles."""
        return _rotated(dy, self.cos[positions], -self.sin[positions])


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    """``y₁ = x₁ cos - x₂ sin``, ``y₂ = x₂ cos + x₁ sin`` for the halves of each head."""
    cos, sin = cos[:, np.newaxis], sin[:, np.newaxis]  # (N, 1, d/2)
    x1, x2 = np.split(x, 2, axis=-1)  # (N, heads, d/2)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


class AttentionCache(NamedTuple):
    """The cache for `Attention.vjp`: J key-value heads, each for G query heads."""

    q: Array
    """(B, J, G, T, d): rotated, and divided by √d."""
    k: Array
    """(B, J, 1, T, d): rotated."""
    v: Array
    """(B, J, 1, T, d)."""
    p: Array
    """(B, J, G, T, T): the weight of each key (last axis) for each query."""
    spans: Spans


@final
class Attention:
    """Scaled dot-product attention: in each head, ``C = softmax(Q Kᵀ / √d + mask) V``.

    Parameters
    ----------
    heads : int
        The number of query heads, H.
    key_value_heads : int, optional
        The number of key-value heads, J, a divisor of H: query head h reads key-value head ``h // (H / J)``. By default H.
    causal : bool
        Whether a query sees only the keys up to its own position. Otherwise it sees every key of its sequence.
    rotary : Rotary, optional
        Rotates queries and keys.
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
        self.causal, self.rotary = bool(causal), rotary

    def apply(self, q: Array, k: Array, v: Array, spans: Spans) -> tuple[Array, AttentionCache]:
        """``P = softmax(Q Kᵀ / √d + mask)``, ``C = P V``: q and c (N, H·d), k and v (N, J·d)."""
        d = q.shape[-1] // self.heads
        q, k, v = (x.reshape(len(x), -1, d) for x in (q, k, v))  # (N, heads, d)
        if self.rotary is not None:
            q, k = self.rotary.apply(q, spans.positions), self.rotary.apply(k, spans.positions)
        q = self._by_head(q * d**-0.5, spans)
        k, v = self._by_head(k, spans), self._by_head(v, spans)
        s = q @ k.mT  # (B, J, G, T, d) @ (B, J, 1, d, T) -> (B, J, G, T, T)
        p = _softmax(self._masked(s, spans))
        c = _rows(p, v, spans)  # (B, J, G, T, T) @ (B, J, 1, T, d) -> (N, J, G, d)
        return c.reshape(len(c), -1), AttentionCache(q, k, v, p, spans)

    def vjp(self, dc: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
        """``dV = Σ_G Pᵀ dC``, ``dP = dC Vᵀ``, ``dS = softmax-vjp(dP)``, ``dQ = dS K / √d``, ``dK = Σ_G dSᵀ Q / √d``."""
        q, k, v, p, spans = cache
        N, d = len(dc), q.shape[-1]
        dc = self._by_head(dc.reshape(N, -1, d), spans)
        dv = _rows(p.mT, dc, spans).sum(2)  # (B, J, G, T, T) @ (B, J, G, T, d) -> (N, J, G, d) -> (N, J, d)
        dp = dc @ v.mT  # (B, J, G, T, d) @ (B, J, 1, d, T) -> (B, J, G, T, T)
        ds = _softmax_vjp(dp, p)
        dq = _rows(ds, k, spans) * d**-0.5  # (B, J, G, T, T) @ (B, J, 1, T, d) -> (N, J, G, d)
        dk = _rows(ds.mT, q, spans).sum(2)  # (B, J, G, T, T) @ (B, J, G, T, d) -> (N, J, G, d) -> (N, J, d)
        dq = dq.reshape(N, -1, d)
        if self.rotary is not None:
            dq, dk = self.rotary.vjp(dq, spans.positions), self.rotary.vjp(dk, spans.positions)
        return dq.reshape(N, -1), dk.reshape(N, -1), dv.reshape(N, -1)

    def _by_head(self, x: Array, spans: Spans) -> Array:
        """(N, heads, d) -> (B, J, heads / J, T, d), a view of the grid."""
        _, heads, d = x.shape
        grid = spans.grid(x).reshape(*spans.shape, self.key_value_heads, heads // self.key_value_heads, d)
        return grid.transpose(0, 2, 3, 1, 4)

    def _masked(self, s: Array, spans: Spans) -> Array:
        """The scores, in place: a key is hidden after the position of the query, or after the end of the sequence."""
        key = np.arange(spans.shape[1])
        if self.causal:
            hidden = key > key[:, np.newaxis]  # (T, T): hides padding as well
        elif spans.slots is not None:
            hidden = (key >= spans.lengths[:, np.newaxis])[:, np.newaxis, np.newaxis, np.newaxis]  # (B, 1, 1, 1, T)
        else:
            return s
        s += np.where(hidden, HIDDEN, 0).astype(s.real.dtype)
        return s


def _rows(weights: Array, x: Array, spans: Spans) -> Array:
    """``weights @ x`` as rows, (N, J, G, d): written where it belongs, without a transposing copy."""
    (B, J, G, T, _), d = weights.shape, x.shape[-1]
    grid = np.empty((B, T, J, G, d), np.result_type(weights, x))
    np.matmul(weights, x, out=grid.transpose(0, 2, 3, 1, 4))
    return spans.rows(grid)


def _softmax(s: Array) -> Array:
    """Softmax along the last axis, in place."""
    s -= s.real.max(axis=-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(axis=-1, keepdims=True)
    return s


def _softmax_vjp(dp: Array, p: Array) -> Array:
    """``dS = P ∘ (dP - rowsum(dP ∘ P))``, in place."""
    dp -= np.einsum("...ts,...ts->...t", dp, p)[..., np.newaxis]
    dp *= p
    return dp
