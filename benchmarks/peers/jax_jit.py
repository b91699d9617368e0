"""LoRA as a pure function, differentiated and compiled by JAX."""

import jax
import jax.numpy as jnp
import numpy as np

from ..problem import SCALE, Array, MixedProblem, Problem


def lora(A, B, x, W, b):
    """``y = x W + b + s (x A) B``."""
    return x @ W + b + SCALE * (x @ A) @ B


def lora_step(A, B, x, W, b, dy, rate):
    y, vjp = jax.vjp(lambda A, B, x: lora(A, B, x, W, b), A, B, x)
    dA, dB, dx = vjp(dy)
    return y, dx, A - rate * dA, B - rate * dB


class LoRA:
    """Two compiled functions, for the forward pass and for the whole step; the step may reuse the memory of the factors."""

    def __init__(self, problem: Problem) -> None:
        self.A, self.B, self.x, self.W, self.b, self.dy = map(
            jnp.array, (problem.A, problem.B, problem.x, problem.W, problem.b, problem.dy)
        )
        self.rate = jnp.float32(problem.rate)
        self.compiled, self.compiled_step = jax.jit(lora), jax.jit(lora_step, donate_argnums=(0, 1))

    def forward(self) -> Array:
        return self.compiled(self.A, self.B, self.x, self.W, self.b).block_until_ready()

    def step(self) -> tuple[Array, Array]:
        y, dx, self.A, self.B = self.compiled_step(self.A, self.B, self.x, self.W, self.b, self.dy, self.rate)
        self.B.block_until_ready()
        return y.block_until_ready(), dx.block_until_ready()

    def factors(self) -> tuple[Array, Array]:
        return np.asarray(self.A), np.asarray(self.B)


def mixed(x, W, b, A, B, tasks):
    """``y_i = x_i W + b + s (x_i A_t) B_t``, with the factors gathered for each row."""
    h = jnp.einsum("bi,bir->br", x, A[tasks])
    return x @ W + b + SCALE * jnp.einsum("br,bro->bo", h, B[tasks])


class MixedLoRA:
    """Factors padded to the same rank and stacked; forward pass only."""

    def __init__(self, problem: MixedProblem) -> None:
        rank = max(A.shape[1] for A in problem.A)
        A = np.stack([np.pad(A, ((0, 0), (0, rank - A.shape[1]))) for A in problem.A])
        B = np.stack([np.pad(B, ((0, rank - B.shape[0]), (0, 0))) for B in problem.B])
        self.arguments = [jnp.array(array) for array in (problem.x, problem.W, problem.b, A, B, problem.tasks)]
        self.compiled = jax.jit(mixed)

    def forward(self) -> Array:
        return self.compiled(*self.arguments).block_until_ready()
