"""A dense layer: y = x W + b. See docs/derivations/dense.md."""


def forward(x, W, b):
    """Rows x (n, d_in) to y (n, d_out)."""
    return x @ W + b


def vjp(dy, x, W, b):
    """The gradients (dx, dW, db) of a loss with the gradient dy, (n, d_out), by y. Each has the shape of its array."""
    dx = dy @ W.T  # (n, d_out)(d_out, d_in)
    dW = x.T @ dy  # (d_in, n)(n, d_out)
    db = dy.sum(axis=0)
    return dx, dW, db


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    return {"x": rng.normal(size=(n, d_in)), "W": rng.normal(size=(d_in, d_out)), "b": rng.normal(size=d_out)}
