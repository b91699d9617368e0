"""``lora-np diff``: whether two adapters compute the same function."""

import argparse
from dataclasses import asdict, dataclass, replace

import numpy as np

from .._typing import Array
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from ..terminal.table import table
from ._adapters import at_rank, dropped, load_from_options
from ._layers import cast, frobenius, kernel_text, singular_values
from ._options import ADAPTER, add_alpha, add_drop, add_task, positive, tolerance
from ._others import other_changes
from ._text import counted, number, plain, printable
from .verb import Verb, add_json, print_json

TOLERANCE = 1e-6
"""Above the error of several roundings of a factor to float32, and far below the changes that training makes."""

SETTINGS = {"active ranks": "active_ranks", "deployment rank": "current_deployment_rank"}
"""The DyLoRA settings that must agree, by their names in the output."""


@dataclass(frozen=True)
class Difference:
    """The difference between two adapters at one layer."""

    path: str
    problem: str | None = None
    """Why the layers cannot be compared numerically, for instance because their sizes differ."""
    rank: int | None = None
    """The active rank at which DyLoRA layers differ most; None for plain layers."""
    norms: tuple[float, float] | None = None
    """The Frobenius norms of both updates."""
    difference: float | None = None
    """The Frobenius norm of the difference of the updates."""
    largest: float | None = None
    """The spectral norm of the difference: the largest change of an output for an input of length 1."""
    relative: float | None = None
    """The difference relative to the larger norm; for DoRA, the larger of this ratio and that of the magnitudes."""

    def within(self, limit: float) -> bool:
        """Whether the layers are the same up to this relative difference."""
        return self.problem is None and self.relative is not None and self.relative <= limit


# ---------------------------------------------------------------- measurement


def compare(first: AdapterWeights, second: AdapterWeights) -> list[Difference]:
    """The differences of all tensors; those of DyLoRA layers are measured at the active rank where they differ most."""
    layers = [_compared(path, first, second) for path in dict.fromkeys([*first.layers, *second.layers])]
    one, other = other_changes(first), other_changes(second)
    return layers + [_compared_others(key, one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other])]


def _compared_others(key: str, one: tuple[str, Array] | None, other: tuple[str, Array] | None) -> Difference:
    """The difference of a change that is not low-rank, such as a whole tensor."""
    if one is None or other is None:
        return Difference(key, "only in B" if one is None else "only in A")
    if one[0] != other[0] or one[1].shape != other[1].shape:
        parts = [f"{change} {' x '.join(map(str, array.shape))}" for change, array in (one, other)]
        return Difference(key, " vs. ".join(parts))
    norms = frobenius(one[1]), frobenius(other[1])
    if _equal(one[1], other[1]):
        return Difference(key, None, None, norms, 0.0, None, 0.0)
    if not np.isfinite(sum(norms)):
        return Difference(key, "values not finite")
    gap = frobenius(np.asarray(one[1], np.float64) - other[1])
    return Difference(key, None, None, norms, gap, None, _ratio(gap, max(norms)))


def _compared(path: str, first: AdapterWeights, second: AdapterWeights) -> Difference:
    problem = _mismatch(path, first, second)
    if problem:
        return Difference(path, problem)
    one, other = first.layers[path], second.layers[path]
    if path not in first.nested:
        worst = _measured(path, None, one, other)
    else:
        ranks = first.nested[path].active_ranks
        at_ranks = [_measured(path, r, one.at_rank(r), other.at_rank(r)) for r in ranks]
        worst = max(at_ranks, key=lambda found: (found.problem is not None, found.relative or 0))
    if path not in first.magnitudes:
        return worst
    return _with_magnitudes(worst, first.magnitudes[path], second.magnitudes[path])


def _mismatch(path: str, first: AdapterWeights, second: AdapterWeights) -> str | None:
    """Why two layers cannot be compared numerically."""
    if path not in second.layers:
        return "only in A"
    if path not in first.layers:
        return "only in B"
    sizes = [f"{layer.input_size} -> {layer.output_size}" for layer in (first.layers[path], second.layers[path])]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]} vs. {sizes[1]}"
    if (path in first.embeddings) != (path in second.embeddings):
        return f"an embedding only in {'A' if path in first.embeddings else 'B'}"
    kernels = [kernel_text(weights.kernels.get(path, ())) for weights in (first, second)]
    if kernels[0] != kernels[1]:
        return f"{kernels[0]} vs. {kernels[1]}"
    if (path in first.magnitudes) != (path in second.magnitudes):
        return f"DoRA only in {'A' if path in first.magnitudes else 'B'}"
    if (path in first.by_input) != (path in second.by_input):
        return f"DoRA of the inputs only in {'A' if path in first.by_input else 'B'}"
    for label, name in SETTINGS.items():
        values = [source.nested[path].to_json()[name] if path in source.nested else "none" for source in (first, second)]
        if values[0] != values[1]:
            return f"{label} {values[0]} vs. {values[1]}"
    return None


def _measured(path: str, rank: int | None, one: LoRALayer, other: LoRALayer) -> Difference:
    """Measure ``s A B - s' A' B' = [s A, -s' A'] [B; B']`` from its factors, without forming the dense matrix."""
    one, other = cast(one, np.float64), cast(other, np.float64)
    if one.scaling == other.scaling and _equal(one.matrix_a, other.matrix_a) and _equal(one.matrix_b, other.matrix_b):
        norm = frobenius(singular_values(one))
        return Difference(path, None, rank, (norm, norm), 0.0, 0.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        A = np.hstack([one.scaling * one.matrix_a, -other.scaling * other.matrix_a])
    sigma = singular_values(LoRALayer.from_factors(A, np.vstack([one.matrix_b, other.matrix_b])))
    if np.isnan(sigma).any():
        return Difference(path, "factors not finite", rank)
    norms = frobenius(singular_values(one)), frobenius(singular_values(other))
    gap = frobenius(sigma)
    return Difference(path, None, rank, norms, gap, float(sigma[0]), _ratio(gap, max(norms)))


def _with_magnitudes(found: Difference, magnitude: Array, other: Array) -> Difference:
    """The difference of the updates, extended to the magnitudes of DoRA."""
    if found.relative is None or _equal(magnitude, other):
        return found
    norms = frobenius(magnitude), frobenius(other)
    if not np.isfinite(sum(norms)):
        return Difference(found.path, "magnitudes not finite")
    gap = frobenius(np.asarray(magnitude, np.float64) - other)
    return replace(found, relative=max(found.relative, _ratio(gap, max(norms))))


def _equal(array: Array, other: Array) -> bool:
    """Whether all elements are identical; NaN equals NaN here."""
    return np.array_equal(array, other, equal_nan=True)


def _ratio(gap: float, size: float) -> float:
    return gap / size if size else 0.0


# ---------------------------------------------------------------- the verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, word in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=word, help=f"the {name} adapter: {ADAPTER}")
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=TOLERANCE,
        metavar="T",
        help="the largest Frobenius norm of the difference, relative to that of the update, at which layers count as the "
        f"same (default: {TOLERANCE:g}, which allows for rounding to float32)",
    )
    parser.add_argument(
        "--rank",
        type=positive,
        metavar="R",
        help="compare DyLoRA layers as plain LoRA at this active rank (default: at every active rank)",
    )
    add_task(parser)
    parser.set_defaults(base_is_residual=True)
    add_alpha(parser)
    add_drop(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    first, second = (_loaded(path, arguments) for path in (arguments.first, arguments.second))
    found = compare(first, second)
    different = [difference for difference in found if not difference.within(arguments.tolerance)]
    if arguments.json:
        layers = [asdict(one) | {"same": one.within(arguments.tolerance)} for one in found]
        values = {"first": arguments.first, "second": arguments.second, "tolerance": arguments.tolerance}
        values["dropped"] = dropped(first, second)
        print_json(plain(values | {"same": not different, "layers": layers}))
    else:
        print(_text(found, arguments.tolerance))
        verdict = f"{len(different)} of {counted(len(found), 'layer')} differ" if different else "the adapters are the same"
        print(f"\n{verdict} (relative tolerance {arguments.tolerance:g})")
    return 1 if different else 0


def _loaded(path: str, arguments: argparse.Namespace) -> AdapterWeights:
    weights = load_from_options(path, arguments)
    return at_rank(weights, arguments.rank, path) if arguments.rank is not None and weights.nested else weights


def _text(found: list[Difference], limit: float) -> str:
    with_ranks = any(one.rank is not None for one in found)
    header = ["layer", "", *(["at rank"] if with_ranks else []), "|dW| of A", "|dW| of B", "|difference|", "relative"]
    return table(header, [_row(one, limit, with_ranks) for one in found], left=2)


def _row(one: Difference, limit: float, with_ranks: bool) -> list[str]:
    verdict = one.problem or ("same" if one.within(limit) else "differs")
    rank = [str(one.rank or "")] if with_ranks else []
    if one.norms is None or one.difference is None or one.relative is None:
        numbers = [""] * 4
    else:
        numbers = [*map(number, one.norms), number(one.difference), f"{one.relative:.1e}"]
    return [printable(one.path), verdict, *rank, *numbers]


DIFF = Verb(
    name="diff",
    summary="compare two adapters layer by layer; exit with 0 if they are the same, 1 if they differ, 2 after an error",
    example="lora-np diff my-adapter other-adapter\nlora-np diff my-adapter smaller --tolerance 0.05",
    add_arguments=_add_arguments,
    run=_run,
    error_code=2,
)
