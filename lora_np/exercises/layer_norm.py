"""LayerNorm: y = n ∘ g + b, n = (x - mean) / √(variance + ε) (Ba et al. 2016). See docs/derivations/normalization.md."""

import numpy as np

EPSILON = 1e-5


def forward(x, g, b):
    """Each row of x (n, d), normalized; mean and variance are those of the row."""
    centred = x - x.mean(axis=1, keepdims=True)
    n = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + EPSILON)
    return n * g + b


def vjp(dy, x, g, b):
    """The gradients (dx, dg, db). The mean and the variance depend on x, too."""
    centred = x - x.mean(axis=1, keepdims=True)
    u = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + EPSILON)
    n = centred * u
    dn = dy * g
    dx = u * (dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).mean(axis=1, keepdims=True))
    return dx, (dy * n).sum(axis=0), dy.sum(axis=0)


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    return {"x": rng.normal(size=(n, d_in)), "g": rng.normal(size=d_in), "b": rng.normal(size=d_in)}
