"""Attention: C = P V, P = softmax(Q Kᵀ / √d) by rows (Vaswani et al. 2017). See docs/derivations/attention.md."""

import numpy as np


def softmax(S):
    """Each row of S, exponentiated and divided by its sum."""
    e = np.exp(S - S.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def forward(Q, K, V):
    """Queries (n, d), keys and values (m, d) of one sequence and one head; the output is (n, d)."""
    return softmax(Q @ K.T / np.sqrt(Q.shape[1])) @ V


def vjp(dC, Q, K, V):
    """The gradients (dQ, dK, dV)."""
    root = np.sqrt(Q.shape[1])
    P = softmax(Q @ K.T / root)  # (n, m)
    dV = P.T @ dC
    dP = dC @ V.T  # (n, m)
    dS = P * (dP - (dP * P).sum(axis=1, keepdims=True))  # the Jacobian of softmax
    return dS @ K / root, dS.T @ Q / root, dV


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    return {"Q": rng.normal(size=(n, d_in)), "K": rng.normal(size=(d_out, d_in)), "V": rng.normal(size=(d_out, d_in))}
