"""DoRA: y = x (m V / c), V = W + s A B, c the lengths of its columns (Liu et al. 2024). See docs/derivations/dora.md."""

import numpy as np


def forward(x, W, s, A, B, m):
    """As LoRA, with columns of length m, (d_out,)."""
    V = W + s * A @ B
    c = np.sqrt((V * V).sum(axis=0))  # (d_out,)
    return x @ (V * (m / c))


def vjp(dy, x, W, s, A, B, m):
    """The gradients (dx, dA, dB, dm), through c as well."""
    V = W + s * A @ B
    c = np.sqrt((V * V).sum(axis=0))
    U = V / c  # columns of length 1
    dx = dy @ (U * m).T
    G = x.T @ dy  # the gradient of the whole weight m U
    dm = (G * U).sum(axis=0)
    dV = (m / c) * (G - U * dm)  # the part of G along a column does not change its direction
    return dx, s * dV @ B.T, s * A.T @ dV, dm


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    x, W = rng.normal(size=(n, d_in)), rng.normal(size=(d_in, d_out))
    A, B = rng.normal(size=(d_in, r)), rng.normal(size=(r, d_out))
    return {"x": x, "W": W, "s": 0.75, "A": A, "B": B, "m": rng.normal(size=d_out)}
