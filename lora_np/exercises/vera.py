"""VeRA: y = x W + ((x A ∘ d) B) ∘ b; A and B are frozen (Kopiczko et al. 2024). See docs/derivations/vera.md."""


def forward(x, W, A, B, d, b):
    """As LoRA, but only the vectors d (r,) and b (d_out,) train."""
    return x @ W + ((x @ A * d) @ B) * b


def vjp(dy, x, W, A, B, d, b):
    """The gradients (dx, dd, db)."""
    h = x @ A  # (n, r)
    du = (dy * b) @ B.T  # by h ∘ d
    dx = dy @ W.T + (du * d) @ A.T
    dd = (du * h).sum(axis=0)
    db = (dy * ((h * d) @ B)).sum(axis=0)
    return dx, dd, db


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    x, W = rng.normal(size=(n, d_in)), rng.normal(size=(d_in, d_out))
    A, B = rng.normal(size=(d_in, r)), rng.normal(size=(r, d_out))
    return {"x": x, "W": W, "A": A, "B": B, "d": rng.normal(size=r), "b": rng.normal(size=d_out)}
