"""Rank surgery: truncate, grow and canonicalize low-rank layers, without forming the dense matrix.

The functions accept a `LoRALayer`, an adapter or `AdapterWeights`, and return a new object of the same kind.

Notes
-----
With thin QR factorisations ``A = Q_a R_a`` and ``Bᵀ = Q_b R_b``, the update is ``s A B = Q_a (s R_a R_bᵀ) Q_bᵀ``. Its
singular values are those of the small core ``s R_a R_bᵀ = U Σ Vᵀ``, and its singular vectors are ``Q_a U`` and ``Q_b V``:
the cost is O((d_in + d_out) r²), instead of O(d_in · d_out · min(d_in, d_out)) for decomposing the dense update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from .._typing import RNG, Array
from .._validation import generator, instance, integer, last_axis, positive_int, rank_within, real_array
from ..adapters.base import LoRAAdapterBase
from ..adapters.dora import DoRAAdapter
from ..adapters.rank_choice import rank_choices
from ..errors import ArgumentError, NotSupportedError
from ..functions.initializers import normal
from ..functions.product_svd import product_svd
from ..layers.lora import LoRALayer
from .rank_goal import Goal
from .weights import AdapterWeights

Subject = TypeVar("Subject", LoRALayer, LoRAAdapterBase, AdapterWeights)


def spectrum(layer: LoRALayer) -> Array:
    """The singular values of ``s A B``, in descending order, shape (min(rank, input_size, output_size),).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.surgery import effective_rank, retained_energy, spectrum
    >>> sigma = spectrum(LoRALayer.from_factors(np.eye(4, 2), np.diag([3.0, 4.0])))
    >>> sigma
    array([4., 3.])
    >>> retained_energy(sigma, 1), round(effective_rank(sigma), 2)  # 16 / (16 + 9)
    (0.64, 1.98)
    """
    instance("layer", layer, LoRALayer, "a LoRALayer")
    return _components(layer).sigma


def effective_rank(singular_values: Array) -> float:
    """The exponential of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 for a zero matrix."""
    singular_values = real_array("singular_values", singular_values)
    total = float(singular_values.sum())
    if not total:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def retained_energy(singular_values: Array, rank: int) -> float:
    """The fraction of the squared Frobenius norm in the first `rank` components; 1 for a zero matrix."""
    singular_values = real_array("singular_values", singular_values)
    rank = integer("rank", rank)
    last_axis("singular_values", singular_values, singular_values.size)
    total = float((singular_values**2).sum())
    return float((singular_values[:rank] ** 2).sum()) / total if total else 1.0


def truncate(
    subject: Subject,
    *,
    rank: int | None = None,
    energy: float | None = None,
    ratio: float | None = None,
    parameters: int | None = None,
    max_rank: int | None = None,
    inputs: Array | Mapping[str, Array] | None = None,
) -> Subject:
    """Replace each low-rank layer by its best approximation of a lower rank (Eckart and Young 1936).

    Exactly one of `rank`, `energy`, `ratio` and `parameters` chooses the ranks. Each layer keeps at least rank 1.

    Parameters
    ----------
    subject : LoRALayer, adapter or AdapterWeights
    rank : int, optional
        The new rank, at least 1; layers of this rank or below keep their rank.
    energy : float, optional
        The fraction of the squared Frobenius norm to keep, in (0, 1]. Each layer gets the smallest rank that keeps it.
    ratio : float, optional
        At least 1: keep the singular values that are at least the largest one divided by `ratio`.
    parameters : int, optional
        The largest number of elements of A and B in all layers together. The ranks are those with the largest retained
        energy in total; layers with large updates get more.
    max_rank : int, optional
        An upper bound for the ranks that `energy`, `ratio` or `parameters` choose.
    inputs : array of shape (..., input_size), or mapping of str to such arrays, optional
        Inputs of the layer; for AdapterWeights, by path. The singular values are then those of the outputs ``s X A B`` on
        these inputs instead of those of the update, and the error of the outputs is the smallest possible for the rank.

    Raises
    ------
    ArgumentError
        If not exactly one target is given, or a value is out of range; if `inputs` does not fit a layer, or is missing for
        one.
    NotSupportedError
        If `inputs` are given for layers adapted by DoRA, whose outputs do not depend on the update linearly.

    Notes
    -----
    With the thin QR factorisations ``X A = Q_x R_x`` and ``Bᵀ = Q_b R_b``, the core ``s R_x R_bᵀ = U Σ Vᵀ`` has the
    singular values of the outputs Y on inputs X. With ``P_r = Q_b V_r``, their best approximation of rank r is
    ``Y P_r P_rᵀ``, which is the output of the update with the factors ``s A R_bᵀ V_r`` and ``P_rᵀ``.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.surgery import truncate
    >>> layer = LoRALayer.from_factors(np.eye(4, 3), np.diag([4.0, 2.0, 0.1]))
    >>> truncate(layer, rank=1).rank, truncate(layer, energy=0.99).rank, truncate(layer, ratio=10).rank
    (1, 2, 2)
    >>> truncate(layer, parameters=14).parameter_count  # 7 for each rank
    14
    >>> truncate(layer, rank=1, inputs=np.diag([0, 0, 1, 1])).merge_weights()[2]  # only the last component has an effect
    array([0. , 0. , 0.1])
    """
    goal = Goal.of(rank=rank, energy=energy, ratio=ratio, parameters=parameters, max_rank=max_rank)
    layers = _layers(subject)
    data = _inputs_by_path(subject, layers, inputs)
    components = {path: _components(layer, data.get(path)) for path, layer in layers.items()}
    sizes = [layer.input_size + layer.output_size for layer in layers.values()]
    ranks = dict(zip(layers, goal.ranks([found.sigma for found in components.values()], sizes), strict=True))
    paths = iter(layers)

    def cut(layer: LoRALayer) -> LoRALayer:
        path = next(paths)
        return _cut(layer, components[path], ranks[path])

    return _mapped(subject, cut)


def _scaled_by_rank(adapter: LoRAAdapterBase) -> bool:
    """Whether a branch with active ranks has a scaling that depends on the rank."""
    return any(choice.lora_layer.scaling_rule != "max" for choice in rank_choices(adapter).values())


def grow(subject: Subject, rank: int, *, rng: RNG = None) -> Subject:
    """Add components without changing the function: the new columns of A are random, the new rows of B are zero.

    Parameters
    ----------
    subject : LoRALayer, adapter or AdapterWeights
    rank : int
        The new rank, in 1..min(input_size, output_size); layers of this rank or above are copied unchanged.
    rng : seed or numpy.random.Generator, optional
        The source of the new columns of A, drawn from N(0, 1/rank).

    Raises
    ------
    ArgumentError
        If `rank` is out of range.
    NotSupportedError
        If `subject` has active ranks, and its scaling depends on the rank.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.surgery import grow
    >>> layer = LoRALayer.from_factors(np.eye(4, 1), np.ones((1, 3)))
    >>> grown = grow(layer, 3, rng=0)
    >>> grown.rank, bool((grown.merge_weights() == layer.merge_weights()).all())
    (3, True)
    """
    random = generator(rng)
    target = positive_int("rank", rank)
    if isinstance(subject, LoRAAdapterBase) and _scaled_by_rank(subject):
        raise NotSupportedError(
            "a branch with active ranks can only grow with scaling='max': under the other rules, its scaling "
            "depends on the rank"
        )

    def grown(layer: LoRALayer) -> LoRALayer:
        if layer.rank >= target:
            return layer.clone()
        rank_within(target, layer.input_size, layer.output_size)
        more = target - layer.rank
        columns = normal((layer.input_size, more), layer.dtype, random, std=1 / math.sqrt(target))
        rows = np.zeros((more, layer.output_size), layer.dtype)
        A, B = np.hstack([layer.matrix_a, columns]), np.vstack([layer.matrix_b, rows])
        return _with_scaling(A, B, layer.scaling, layer.scaling_rule, layer)

    return _mapped(subject, grown)


def canonicalize(subject: Subject) -> Subject:
    """Express the same function with components in descending order of singular value, each shared equally by A and B.

    Slices of the first components are then the best approximations of their rank. The sign of each component is chosen such
    that the element of its column of A with the largest magnitude is positive, so that equal functions get equal factors.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.surgery import canonicalize
    >>> layer = LoRALayer.from_factors(np.eye(4, 2), np.diag([-1.0, 9.0]))
    >>> canonicalize(layer).matrix_b
    array([[ 0.,  3.],
           [-1.,  0.]])
    """
    return _mapped(subject, lambda layer: _cut(layer, _components(layer), layer.rank))


def _mapped(subject: Subject, change: Callable[[LoRALayer], LoRALayer]) -> Subject:
    if isinstance(subject, LoRALayer):
        return change(subject)
    if isinstance(subject, LoRAAdapterBase):
        return subject.with_branches(change)
    if isinstance(subject, AdapterWeights):
        layers = {path: change(layer) for path, layer in subject.layers.items()}
        before = {path: layer.scaling for path, layer in subject.layers.items() if layer.scaling != layers[path].scaling}
        biases = {
            path: before[path] / layers[path].scaling * c if path in before else c for path, c in subject.biases.items()
        }
        return replace(subject, layers=layers, nested={}, biases=biases)
    raise ArgumentError(f"subject must be a LoRALayer, an adapter or AdapterWeights, got {subject!r}")


def _layers(subject: Subject) -> dict[str, LoRALayer]:
    """The low-rank layers, in the order in which `_mapped` changes them."""
    found: list[LoRALayer] = []

    def remember(layer: LoRALayer) -> LoRALayer:
        found.append(layer)
        return layer.clone()

    _mapped(subject, remember)
    names = subject.layers if isinstance(subject, AdapterWeights) else map(str, range(len(found)))
    return dict(zip(names, found, strict=True))


def _inputs_by_path(
    subject: LoRALayer | LoRAAdapterBase | AdapterWeights,
    layers: Mapping[str, LoRALayer],
    inputs: Array | Mapping[str, Array] | None,
) -> dict[str, Array]:
    """The inputs of each layer, as matrices."""
    if inputs is None:
        return {}
    if isinstance(subject, AdapterWeights) != isinstance(inputs, Mapping):
        raise ArgumentError("inputs must be a mapping from paths to arrays if, and only if, subject is AdapterWeights")
    if isinstance(subject, DoRAAdapter) or (isinstance(subject, AdapterWeights) and subject.magnitudes):
        raise NotSupportedError("inputs must be None for DoRA, whose outputs do not depend on the update linearly")
    found = {}
    for path, layer in layers.items():
        if isinstance(inputs, Mapping) and path not in inputs:
            raise ArgumentError(f"inputs must have an array for each layer, but {path!r} is missing")
        name = f"inputs[{path!r}]" if isinstance(inputs, Mapping) else "inputs"
        X = real_array(name, inputs[path] if isinstance(inputs, Mapping) else inputs, layer.dtype)
        last_axis(name, X, layer.input_size)
        if not X.size or not np.isfinite(X).all():
            raise ArgumentError(f"{name} must have at least one row, and be finite")
        found[path] = X.reshape(-1, layer.input_size)
    return found


class _Components(NamedTuple):
    """An update as a sum of components: ``s A B = (U · sizes) Vᵀ``."""

    U: Array
    """Unit columns, shape (input_size, k)."""
    sizes: Array
    """The Frobenius norm of each component, shape (k,)."""
    Vt: Array
    """Orthonormal rows, shape (k, output_size)."""
    sigma: Array
    """What a component contributes, in descending order: the singular values of the update, or of the outputs."""


def _components(layer: LoRALayer, X: Array | None = None) -> _Components:
    """The components of an update, k = min(rank, input_size, output_size); or of its outputs on inputs, at most as many."""
    A, B, s = layer.matrix_a, layer.matrix_b, layer.scaling
    U, sigma, Vt = product_svd(A if X is None else X @ A, B, s)
    if X is None:
        return _Components(U, sigma, Vt, sigma)
    P = s * (A @ (B @ Vt.T))  # (in, r) @ (r, out) @ (out, k) -> (in, k)
    sizes = np.linalg.norm(P, axis=0)
    return _Components(P / np.where(sizes == 0, 1, sizes), sizes, Vt, sigma)


def _cut(layer: LoRALayer, components: _Components, rank: int) -> LoRALayer:
    """The first `rank` components, each shared equally by A and B.

    The scaling rule is "max": it scales all slices of the first components alike, as best approximations require.
    """
    U, sizes, Vt, _ = components
    rank = min(rank, len(sizes))
    largest = np.abs(U).argmax(axis=0)
    signs = np.where(U[largest, np.arange(len(sizes))] < 0, -1, 1).astype(layer.dtype)
    scaling = layer.scaling or 1.0  # if alpha is 0, all components are 0, and the function is the same for any scaling
    share = np.sqrt(sizes / scaling) * signs
    A = U * np.where(sizes == 0, 1, share)  # a component without effect keeps its column, so that it can still be trained
    B = share[:, None] * Vt
    return _with_scaling(A[:, :rank], B[:rank], scaling, "max", layer)


def _with_scaling(A: Array, B: Array, scaling: float, rule: str, like: LoRALayer) -> LoRALayer:
    """A layer whose alpha results in the given scaling at its full rank, with the dropout of another layer."""
    alpha = scaling * (math.sqrt(A.shape[1]) if rule == "rslora" else A.shape[1])
    return LoRALayer.from_factors(A, B, alpha, scaling=rule, **like.dropout_choices)
