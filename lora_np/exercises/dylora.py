"""DyLoRA at rank k: y = x W + s x A[:, :k] B[:k] (Valipour et al. 2022). See docs/derivations/dylora.md."""

import numpy as np


def forward(x, W, s, k, A, B):
    """As LoRA, with the leading k of r components; A is (d_in, r), B is (r, d_out)."""
    return x @ W + s * (x @ A[:, :k]) @ B[:k]


def vjp(dy, x, W, s, k, A, B):
    """The gradients (dx, dA, dB), in the shapes of x, A and B. Components beyond k have the gradient 0."""
    dA, dB = np.zeros_like(A), np.zeros_like(B)
    dh = s * dy @ B[:k].T  # (n, d_out)(d_out, k)
    dx = dy @ W.T + dh @ A[:, :k].T
    dA[:, :k] = x.T @ dh
    dB[:k] = s * (x @ A[:, :k]).T @ dy
    return dx, dA, dB


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    x, W, k = rng.normal(size=(n, d_in)), rng.normal(size=(d_in, d_out)), max(1, r - 1)
    return {"x": x, "W": W, "s": 0.75, "k": k, "A": rng.normal(size=(d_in, r)), "B": rng.normal(size=(r, d_out))}
