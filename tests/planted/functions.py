"""Bugs planted in lora_np/functions."""

from planted.mutant import Mutant

DENSE = "tests/layers/test_dense.py"
ACTIVATION = "tests/layers/test_activation.py"
LOSSES = "tests/test_losses.py"
ACCUMULATION = "tests/test_accumulation.py"
WEIGHTS = "tests/test_row_weights.py"

MUTANTS = [
    Mutant(
        "the derivative of tanh without the square",
        "functions/activations.py",
        "return dy * (1 - np.tanh(z) ** 2)",
        "return dy * (1 - np.tanh(z))",
        (ACTIVATION,),
    ),
    Mutant(
        "softmax with the diagonal of its Jacobian alone",
        "functions/activations.py",
        "return y * (dy - (dy * y).sum(axis=-1, keepdims=True))",
        "return y * (1 - y) * dy",
        (ACTIVATION,),
    ),
    # ---------------------------------------------------------------- trap 9: losses
    Mutant(
        "trap 9: a loss whose gradient is half of it",
        "functions/losses.py",
        "return difference * difference, 2 * difference",
        "return difference * difference, difference",
        (LOSSES,),
    ),
    Mutant(
        "the powers of gelu overflow",
        "functions/activations.py",
        "    c = _within(z, 20)\n    t =",
        "    c = z\n    t =",
        ("tests/test_activations.py",),
    ),
    Mutant(
        "an impossible class that is absent makes the loss NaN",
        "functions/losses.py",
        "np.where(targets == 0, 0, log_probabilities)",
        "log_probabilities",
        (LOSSES,),
    ),
    Mutant(
        "the sum of errors overflows before it is divided",
        "functions/losses.py",
        "return (values / n).sum()",
        "return values.sum() / n",
        (LOSSES,),
    ),
    Mutant(
        "the output is the cache's own array",
        "functions/activations.py",
        "np.may_share_memory(y, z) else y.copy()",
        "np.may_share_memory(y, z) else y",
        (DENSE,),
    ),
    Mutant(
        "an activation reads what it has overwritten",
        "functions/fused.py",
        "z_all[part].copy() if overwrite else z_all[part]",
        "z_all[part]",
        ("tests/test_fused.py::test_the_results_may_be_written_to_the_argument",),
    ),
    Mutant(
        "value and slope share the memory of the argument",
        "functions/fused.py",
        "(np.empty_like(z_all), last) if slope",
        "(last, last) if slope",
        ("tests/test_fused.py::test_the_results_may_be_written_to_the_argument",),
    ),
    Mutant(
        "the last piece of the samples is not drawn",
        "functions/initializers.py",
        "for start in range(0, flat.size, PIECE):",
        "for start in range(0, flat.size // PIECE * PIECE or 1, PIECE):",
        ("tests/test_initializers.py",),
    ),
    Mutant(
        "passes are weighted by their rows, with and without labels",
        "functions/losses.py",
        "(targets >= 0).sum(",
        "(targets >= -1).sum(",
        (ACCUMULATION,),
    ),
    Mutant(
        "the label that PyTorch ignores is refused",
        "functions/losses.py",
        "IGNORED = (-1, -100)",
        "IGNORED = (-1,)",
        (LOSSES,),
    ),
    # ---------------------------------------------------------------- weights of rows
    Mutant(
        "weights: ignored labels count with the weight of their row",
        "functions/losses.py",
        "counted = (terms * weights).sum()",
        "counted = weights.sum() * terms.mean()",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: their sum overflows",
        "functions/losses.py",
        "weights = weights / (weights.max(initial=0) or 1)",
        "weights = weights * 1.0",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: a mean over the rows, not over the weights",
        "functions/losses.py",
        "(terms.sum() / counted)",
        "1",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: the gradient of elements has none",
        "functions/losses.py",
        "return (values * shares).sum(), slopes * shares",
        "return (values * shares).sum(), slopes / _count(predictions)",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: cross-entropy ignores them",
        "functions/losses.py",
        "return self.compute(predictions, targets * _column(factors, predictions))",
        "return self.compute(predictions, targets)",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: the loss of a user is summed",
        "functions/losses.py",
        "shares = factors / _count(factors)",
        "shares = factors",
        (WEIGHTS,),
    ),
    Mutant(
        "weights: the gradient is float64",
        "functions/losses.py",
        "factors.astype(predictions.dtype))",
        "factors)",
        (WEIGHTS,),
    ),
    Mutant(
        "a relu that is 0 multiplies the gradient by 0",
        "functions/activations.py",
        "return zero_where(z.real <= 0, dy)",
        "return dy * (z.real > 0)",
        ("tests/test_activations.py",),
    ),
    Mutant(
        "a relu passes the gradient at 0",
        "functions/activations.py",
        "return zero_where(z.real <= 0, dy)",
        "return zero_where(z.real < 0, dy)",
        ("tests/test_activations.py",),
    ),
]
