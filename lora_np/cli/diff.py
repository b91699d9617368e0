"""``lora-np diff``: whether two adapters do the same."""

import argparse
from dataclasses import asdict, dataclass, replace

import numpy as np

from .._typing import Array
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from ..terminal.table import table
from ._adapters import ADAPTER, add_choice, at_rank, first_components, load_adapter
from ._options import positive, tolerance
from ._spectra import cast, frobenius, singular_values
from ._text import counted, number, plain, printable
from .verb import Verb, add_json, print_json

TOLERANCE = 1e-6
"""Twice what rounding a factor to float32 costs, with room for a few such steps; far below what training changes."""


@dataclass(frozen=True)
class Difference:
    """How one layer differs between two adapters."""

    path: str
    problem: str | None = None
    """Why there is no number: only one adapter has it, or its sizes or kinds differ."""
    rank: int | None = None
    """The rank of DyLoRA at which they differ most; of plain layers none."""
    norms: tuple[float, float] | None = None
    """The Frobenius norms of both updates."""
    difference: float | None = None
    """The Frobenius norm of the difference of the updates."""
    largest: float | None = None
    """Its largest singular value: the most that it changes an output, for an input of length 1."""
    relative: float | None = None
    """The difference relative to the larger of the two norms; of DoRA, the larger one of this and the magnitudes'."""

    def within(self, limit: float) -> bool:
        """Whether it is no difference, up to a relative one of this size."""
        return self.problem is None and self.relative is not None and self.relative <= limit


# ---------------------------------------------------------------- what is measured


def compare(first: AdapterWeights, second: AdapterWeights) -> list[Difference]:
    """How the layers of two adapters differ, by path; DyLoRA layers at the active rank where they differ most."""
    return [_compared(path, first, second) for path in dict.fromkeys([*first.layers, *second.layers])]


def _compared(path: str, first: AdapterWeights, second: AdapterWeights) -> Difference:
    problem = _mismatch(path, first, second)
    if problem:
        return Difference(path, problem)
    one, other = first.layers[path], second.layers[path]
    if path not in first.nested:
        worst = _measured(path, None, one, other)
    else:
        ranks = first.nested[path]["active_ranks"]
        at_ranks = [_measured(path, r, first_components(one, r), first_components(other, r)) for r in ranks]
        worst = max(at_ranks, key=lambda found: (found.problem is not None, found.relative or 0))
    if path in first.magnitudes and worst.relative is not None:
        lengths, others = (np.asarray(source.magnitudes[path], np.float64) for source in (first, second))
        if _equal(lengths, others):
            return worst
        gap, sizes = frobenius(lengths - others), (frobenius(lengths), frobenius(others))
        if not np.isfinite(sum(sizes)):
            return Difference(path, "its magnitudes are not finite")
        worst = replace(worst, relative=max(worst.relative, _ratio(gap, max(sizes))))
    return worst


def _mismatch(path: str, first: AdapterWeights, second: AdapterWeights) -> str | None:
    """Why two layers cannot be compared by a number."""
    if path not in second.layers:
        return "only in the first"
    if path not in first.layers:
        return "only in the second"
    sizes = [f"{layer.input_size} -> {layer.output_size}" for layer in (first.layers[path], second.layers[path])]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]} and {sizes[1]}"
    if (path in first.magnitudes) != (path in second.magnitudes):
        return f"DoRA only in the {'first' if path in first.magnitudes else 'second'}"
    for name in ("active_ranks", "current_deployment_rank"):
        values = [source.nested[path][name] if path in source.nested else None for source in (first, second)]
        if values[0] != values[1]:
            return f"{name.replace('current_', '').replace('_', ' ')} {_or_none(values[0])} and {_or_none(values[1])}"
    return None


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)


def _measured(path: str, rank: int | None, one: LoRALayer, other: LoRALayer) -> Difference:
    """``s A B - s' A' B' = [s A, -s' A'] [B; B']``: its spectrum gives the norms, and no dense matrix is made."""
    one, other = cast(one, np.float64), cast(other, np.float64)
    if one.scaling == other.scaling and _equal(one.matrix_a, other.matrix_a) and _equal(one.matrix_b, other.matrix_b):
        norm = frobenius(singular_values(one))
        return Difference(path, None, rank, (norm, norm), 0.0, 0.0, 0.0)
    A = np.hstack([one.scaling * one.matrix_a, -other.scaling * other.matrix_a])
    sigma = singular_values(LoRALayer.from_factors(A, np.vstack([one.matrix_b, other.matrix_b])))
    if np.isnan(sigma).any():
        return Difference(path, "its factors are not finite", rank)
    norms = frobenius(singular_values(one)), frobenius(singular_values(other))
    gap = frobenius(sigma)
    return Difference(path, None, rank, norms, gap, float(sigma[0]), _ratio(gap, max(norms)))


def _equal(array: Array, other: Array) -> bool:
    """Whether every element is the same; then not even rounding is between them, and NaN is no difference."""
    return np.array_equal(array, other, equal_nan=True)


def _ratio(gap: float, size: float) -> float:
    return gap / size if size else 0.0


# ---------------------------------------------------------------- the verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, word in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=word, help=ADAPTER)
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=TOLERANCE,
        metavar="T",
        help="how large the Frobenius norm of a difference may be, relative to the update itself, to count as none; "
        f"the default, {TOLERANCE:g}, lets rounding to float32 pass",
    )
    parser.add_argument(
        "--rank",
        type=positive,
        metavar="R",
        help="compare DyLoRA layers at this active rank, as plain ones (default: at each)",
    )
    add_choice(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    first, second = (_loaded(path, arguments) for path in (arguments.first, arguments.second))
    found = compare(first, second)
    different = [difference for difference in found if not difference.within(arguments.tolerance)]
    if arguments.json:
        layers = [asdict(one) | {"same": one.within(arguments.tolerance)} for one in found]
        values = {"first": arguments.first, "second": arguments.second, "tolerance": arguments.tolerance}
        print_json(plain(values | {"same": not different, "layers": layers}))
    else:
        print(_text(found, arguments.tolerance))
        verdict = f"{len(different)} of {counted(len(found), 'layer')} differ" if different else "the adapters are the same"
        print(f"\n{verdict}, up to a relative {arguments.tolerance:g}")
    return 1 if different else 0


def _loaded(path: str, arguments: argparse.Namespace) -> AdapterWeights:
    weights = load_adapter(path, task=arguments.task, strict=not arguments.lenient)
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
    summary="compare what two adapters add, layer by layer; the exit code is 0 if it is the same, 1 if it differs",
    example="lora-np diff my-adapter other-adapter\nlora-np diff my-adapter smaller --tolerance 0.05",
    add_arguments=_add_arguments,
    run=_run,
)
