"""Combining adapters into one, by the methods of PEFT's ``add_weighted_adapter``.

The exact methods work on the updates ``ΔW_i = s_i A_i B_i``. Their weighted sum is a concatenation of factors ("cat"),
``Σ w_i ΔW_i = [w_1 s_1 A_1, w_2 s_2 A_2, …] [B_1; B_2; …]``, which a singular value decomposition can truncate ("svd"). The
other methods mix tensors element by element, by one of the rules of `mixing.MIXTURES`: either the factors, with
``√|w_i s_i|`` as the weight of both and the sign of ``w_i s_i`` on A; or, if the name ends in "_svd", the dense updates,
which a singular value decomposition factors again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._typing import RNG, Array
from .._validation import finite_float, generator, one_of, positive_int, sequence
from ..errors import ArgumentError, NotSupportedError
from ..layers.dropout import dropout_at
from ..layers.lora import LoRALayer
from .mixing import MIXTURES, Mixing
from .surgery import spectrum, truncate
from .weights import AdapterWeights
from .whole import with_others

METHODS = ("cat", "svd", *MIXTURES, *(f"{name}_svd" for name in MIXTURES if name != "linear"))
"""The methods of `combine`; "svd" is what "linear_svd" would be."""

MAJORITY_SIGNS = ("total", "frequency")

Weights: TypeAlias = Sequence[float] | Mapping[str, Sequence[float]] | None
Term: TypeAlias = tuple[LoRALayer, float]


class Combined(NamedTuple):
    """The result of `combine`."""

    result: LoRALayer | AdapterWeights
    error: dict[str, float]
    """The Frobenius norm of the difference between the result and the weighted sum of the updates, by path; the path of a
    single layer is ``""``. It is exactly 0 if the method is "cat" and the rank suffices."""


def uses_density(method: str) -> bool:
    """Whether a method leaves out elements."""
    return method not in ("cat", "svd", "linear")


def combine(
    subjects: Sequence[LoRALayer] | Sequence[AdapterWeights],
    weights: Weights = None,
    *,
    method: str = "cat",
    rank: int | None = None,
    density: float | None = None,
    majority_sign: str = "total",
    rng: RNG = None,
) -> Combined:
    """Combine several low-rank layers, or several sets of layers, with weights.

    Parameters
    ----------
    subjects : sequence of LoRALayer, or of AdapterWeights
        At least one. Layers with the same path must have the same sizes; a set without a path contributes nothing there.
    weights : sequence of float, or mapping of str to sequences of float, optional
        One per subject, 1 by default. They may depend on the layer: a mapping is from shell patterns such as ``"*.attn.*"``
        to weights, and the first pattern that matches the path counts.
    method : str, default "cat"
        One of those of PEFT's ``add_weighted_adapter``, by the same formulas:

        - "cat": the weighted sum of the updates, by concatenation.
        - "svd": the weighted sum, truncated to `rank` by a singular value decomposition.
        - "linear": the sums of the factors A, and of the factors B, with weights ``√(w_i s_i)``. Cross terms ``A_i B_j``
          make this a rough approximation of the weighted sum.
        - "magnitude_prune": as "linear", with only the largest elements of each factor.
        - "ties": of the largest elements of each factor, the mean of those whose sign is that of the majority, instead of
          the sum (Yadav et al. 2023).
        - "dare_linear", "dare_ties": as "linear" and "ties", with random elements of each factor, rescaled, instead of the
          largest (Yu et al. 2024).
        - "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd": the same for the updates instead of the
          factors. The dense update is formed, one layer at a time.
    rank : int, optional
        The rank of the result, for "cat" and the methods with "svd". By default, "cat" has the sum of the ranks, or
        min(input_size, output_size) if that is less; the others have the largest rank of the subjects, as in PEFT.
    density : float, optional
        The fraction of elements to keep, in (0, 1], for the methods that leave out elements.
    majority_sign : {"total", "frequency"}, default "total"
        Whether the sign of the sum of the values is elected, or that of more values; for the methods with "ties".
    rng : seed or numpy.random.Generator, optional
        The source of what "dare" drops.

    Returns
    -------
    Combined
        The result, and its distance from the weighted sum. Whole tensors and replaced rows are kept if no other subject
        replaces the same tensor with other values. The dropout is that of the first subject, as in PEFT. Layers of DyLoRA
        are combined at their full rank.

    Raises
    ------
    ArgumentError
        If `subjects` is empty, their kinds or sizes differ, the number of weights is wrong, no pattern matches a layer,
        an argument does not suit the method, or the ranks differ for a method that mixes factors.
    NotSupportedError
        If a layer is adapted by DoRA, if adapters replace the same tensor by different ones, if a layer is an embedding for
        only some of them, or if biases are to be combined by a method other than "cat" and "svd".

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.surgery import combine
    >>> one = LoRALayer.from_factors(np.eye(4, 2), np.eye(2, 3))
    >>> two = LoRALayer.from_factors(np.eye(4, 2), 2 * np.eye(2, 3))
    >>> both = combine([one, two], [0.5, 0.5])
    >>> both.result.merge_weights()[:2]
    array([[1.5, 0. , 0. ],
           [0. , 1.5, 0. ]])
    >>> both.result.rank, both.error
    (3, {'': 0.0})
    >>> combine([one, two], method="ties", density=0.5).result.rank
    2
    """
    recipe = _Recipe.of(method, rank, density, majority_sign, rng)
    subjects = sequence("subjects", subjects, "layers or of weights")
    if not subjects:
        raise ArgumentError("subjects must hold at least one layer, got none")
    layers = [subject for subject in subjects if isinstance(subject, LoRALayer)]
    if len(layers) == len(subjects):
        layer, error = recipe.combined(list(zip(layers, _weights_at("", weights, len(layers)), strict=True)))
        return Combined(_with_dropout(layer, layers[0].dropout_choices), {"": error})
    sets = [subject for subject in subjects if isinstance(subject, AdapterWeights)]
    if len(sets) != len(subjects):
        raise ArgumentError("subjects must be all LoRALayer or all AdapterWeights")
    combined, errors, factors = {}, {}, {}
    for path in dict.fromkeys(path for one in sets for path in one.layers):
        factors[path] = _weights_at(path, weights, len(sets))
        terms = [(one.layers[path], w) for one, w in zip(sets, factors[path], strict=True) if path in one.layers]
        recipe.check(path, sets)
        try:
            layer, errors[path] = recipe.combined(terms)
        except ArgumentError as error:
            raise ArgumentError(f"{path}: {error}") from error
        like = sets[0].layers.get(path) or next(iter(sets[0].layers.values()), layer)
        combined[path] = _with_dropout(layer, dropout_at(path, like.dropout))
    return Combined(with_others(combined, sets, factors), errors)


@dataclass(frozen=True)
class _Recipe:
    """A method and its settings."""

    method: str
    rank: int | None
    settings: Mixing

    @classmethod
    def of(cls, method: str, rank: int | None, density: float | None, majority_sign: str, rng: RNG) -> _Recipe:
        one_of("method", method, METHODS)
        one_of("majority_sign", majority_sign, MAJORITY_SIGNS)
        if rank is not None and method in MIXTURES:
            raise ArgumentError(f"rank must be None for the method {method!r}, which keeps the rank, got {rank!r}")
        if uses_density(method) != (density is not None):
            needs = (
                "requires a density" if density is None else f"keeps all elements, so density must be None, got {density!r}"
            )
            raise ArgumentError(f"the method {method!r} {needs}")
        share = 1.0 if density is None else finite_float("density", density)
        if not 0 < share <= 1:
            raise ArgumentError(f"density must lie in (0, 1], got {share}")
        limit = None if rank is None else positive_int("rank", rank)
        return cls(method, limit, Mixing(share, majority_sign, generator(rng)))

    def combined(self, terms: Sequence[Term]) -> tuple[LoRALayer, float]:
        """The combination of layers, and its distance from their weighted sum."""
        _check_sizes(terms)
        exact = _sum(terms)
        largest = max(layer.rank for layer, _ in terms)
        limit = min(exact.input_size, exact.output_size)
        if self.method in ("cat", "svd"):
            wanted = self.rank or (largest if self.method == "svd" else limit)
            target = min(wanted, limit, exact.rank)
            if target == exact.rank:
                return exact, 0.0
            return truncate(exact, rank=target), float(np.linalg.norm(spectrum(exact)[target:]))
        mixture = MIXTURES[self.method.removesuffix("_svd")]
        if self.method in MIXTURES:
            layer = self._mixed_factors(mixture, terms)
        else:
            updates = np.stack([layer.merge_weights() for layer, _ in terms])
            update = mixture(updates, _column([w for _, w in terms], updates), self.settings)
            layer = _factored(update, min(self.rank or largest, limit))
        return layer, _distance(layer, exact)

    def _mixed_factors(self, mixture: Callable[[Array, Array, Mixing], Array], terms: Sequence[Term]) -> LoRALayer:
        ranks = [layer.rank for layer, _ in terms]
        if len(set(ranks)) > 1:
            raise ArgumentError(f"the method {self.method!r} requires equal ranks, got {ranks}")
        scales = np.array([weight * layer.scaling for layer, weight in terms])
        roots = np.sqrt(np.abs(scales))
        A, B = np.stack([layer.matrix_a for layer, _ in terms]), np.stack([layer.matrix_b for layer, _ in terms])
        mixed_A = mixture(A, _column(np.copysign(roots, scales), A), self.settings)
        return LoRALayer.from_factors(mixed_A, mixture(B, _column(roots, B), self.settings))

    def check(self, path: str, sets: Sequence[AdapterWeights]) -> None:
        """Reject layers whose changes the method cannot combine."""
        if any(path in one.magnitudes for one in sets):
            raise NotSupportedError(f"{path!r} is adapted by DoRA, which does not add a matrix to the weight")
        if self.method not in ("cat", "svd") and any(path in one.biases for one in sets):
            raise NotSupportedError(f"{path!r} has a bias, which only the methods 'cat' and 'svd' combine")


def _with_dropout(layer: LoRALayer, choices: Mapping[str, Any]) -> LoRALayer:
    return LoRALayer.from_factors(layer.matrix_a, layer.matrix_b, layer.alpha, scaling=layer.scaling_rule, **choices)


def _sum(terms: Sequence[Term]) -> LoRALayer:
    """The exact weighted sum, as a concatenation."""
    A = np.hstack([weight * layer.scaling * layer.matrix_a for layer, weight in terms])
    return LoRALayer.from_factors(A, np.vstack([layer.matrix_b for layer, _ in terms]))


def _factored(update: Array, rank: int) -> LoRALayer:
    """The best approximation of a dense matrix."""
    if not np.isfinite(update).all():  # otherwise LAPACK may never return
        raise ArgumentError("the factors must be finite, and so must their product")
    U, sigma, Vt = np.linalg.svd(update, full_matrices=False)
    roots = np.sqrt(sigma[:rank])
    return LoRALayer.from_factors(U[:, :rank] * roots, roots[:, None] * Vt[:rank])


def _distance(layer: LoRALayer, other: LoRALayer) -> float:
    """The Frobenius norm of the difference of two updates: ``s A B - s' A' B' = [s A, -s' A'] [B; B']``."""
    return float(np.linalg.norm(spectrum(_sum([(layer, 1.0), (other, -1.0)]))))


def _column(weights: Sequence[float] | Array, tensors: Array) -> Array:
    """Weights that broadcast over stacked matrices, in their dtype."""
    return np.asarray(weights, tensors.dtype).reshape(-1, 1, 1)


def _weights_at(path: str, weights: Weights, count: int) -> list[float]:
    """The weight of each subject at a path."""
    if weights is None:
        return [1.0] * count
    if isinstance(weights, Mapping):
        matching = [values for pattern, values in weights.items() if fnmatchcase(path, pattern)]
        if not matching:
            raise ArgumentError(f"weights must have a pattern that matches {path!r}, got {', '.join(map(repr, weights))}")
        weights = matching[0]
    numbers = sequence("weights", weights, "numbers")
    factors = [finite_float("each of weights", number) for number in numbers]
    if len(factors) != count:
        raise ArgumentError(f"weights must have one element for each of {count} subjects, got {len(factors)}")
    return factors


def _check_sizes(terms: Sequence[Term]) -> None:
    first, _ = terms[0]
    for layer, _ in terms:
        if (layer.input_size, layer.output_size) != (first.input_size, first.output_size):
            raise ArgumentError(
                f"all layers must have the same sizes, got {first.input_size} -> {first.output_size} "
                f"and {layer.input_size} -> {layer.output_size}"
            )
