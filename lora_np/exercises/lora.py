"""LoRA on a frozen weight: y = x W + s x A B (Hu et al. 2021). See docs/derivations/lora.md."""


def forward(x, W, s, A, B):
    """Rows x (n, d_in) to y (n, d_out); A is (d_in, r), B is (r, d_out), s is a number."""
    return x @ W + s * (x @ A) @ B


def vjp(dy, x, W, s, A, B):
    """The gradients (dx, dA, dB), given dy (n, d_out). Do it without the product A B, which is as large as W."""
    dh = s * dy @ B.T  # (n, d_out)(d_out, r)
    dx = dy @ W.T + dh @ A.T
    dA = x.T @ dh  # (d_in, n)(n, r)
    dB = s * (x @ A).T @ dy  # (r, n)(n, d_out)
    return dx, dA, dB


def example(rng, n, d_in, d_out, r):
    """Arguments of `forward`, to try `vjp` on."""
    x, W = rng.normal(size=(n, d_in)), rng.normal(size=(d_in, d_out))
    return {"x": x, "W": W, "s": 0.75, "A": rng.normal(size=(d_in, r)), "B": rng.normal(size=(r, d_out))}
