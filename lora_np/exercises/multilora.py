"""MultiLoRA, a task for each row: y_i = x_i W + s x_i A[t_i] B[t_i]. See docs/derivations/multilora.md."""

import numpy as np


def forward(x, W, s, t, A, B):
    """Rows x (n, d_in), with the task t[i] of row i; A is (tasks, d_in, r), B is (tasks, r, d_out)."""
    h = np.einsum("ni,nir->nr", x, A[t])
    return x @ W + s * np.einsum("nr,nro->no", h, B[t])


def vjp(dy, x, W, s, t, A, B):
    """The gradients (dx, dA, dB). A row contributes to its own task alone; a task without rows has the gradient 0."""
    dh = s * np.einsum("no,nro->nr", dy, B[t])
    dx = dy @ W.T + np.einsum("nr,nir->ni", dh, A[t])
    dA, dB = np.zeros_like(A), np.zeros_like(B)
    h = np.einsum("ni,nir->nr", x, A[t])
    for task in np.unique(t):
        own = t == task
        dA[task] = x[own].T @ dh[own]
        dB[task] = s * h[own].T @ dy[own]
    return dx, dA, dB


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    x, W, t = rng.normal(size=(n, d_in)), rng.normal(size=(d_in, d_out)), rng.integers(0, 3, n)
    return {"x": x, "W": W, "s": 0.75, "t": t, "A": rng.normal(size=(3, d_in, r)), "B": rng.normal(size=(3, r, d_out))}
