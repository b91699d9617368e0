"""``lora-np gradcheck``: compare every gradient of the package with its numerical value."""

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ..adapters import DoRAAdapter, DyLoRAAdapter, MultiLoRAAdapter, StandardLoRAAdapter, VeRAAdapter, VeRALayer
from ..functions.activations import ACTIVATIONS, Activation, identity, softplus, tanh
from ..functions.regularization import Regularization
from ..layers import ActivationLayer, AffineLayer, DenseLayer, FullyConnectedLayer, Layer, LoRALayer, Sequential
from ..layers.low_rank import SCALINGS
from ..terminal.table import table
from ..testing import TOLERANCES, gradient_errors
from .verb import Verb, add_json, add_seed, print_json

LIMIT = TOLERANCES["complex"]

SIZES: tuple[tuple[int, int, tuple[int, ...]], ...] = ((7, 4, (4,)), (3, 6, (2, 3)), (4, 2, ()))
"""Input size, output size and leading axes. No layer is square, so a transposed factor cannot go unnoticed."""

ROUTED_SIZES = ((5, 3, (6,)), (3, 6, (6, 2)))
"""The same for mixed batches, whose first leading axis matches the tasks in `_multilora_cases`."""


@dataclass(frozen=True)
class Case:
    """A layer to check, and the run to check it in."""

    kind: str
    layer: Layer
    leading: tuple[int, ...]
    """The leading axes of the input."""
    training: bool = False
    tasks: tuple[str | None, ...] | None = None
    rank: int | None = None
    active_only: bool = False


@dataclass(frozen=True)
class Row:
    """The largest error of an array's gradient over all cases of a kind."""

    kind: str
    array: str
    cases: int
    error: float
    ok: bool


# ---------------------------------------------------------------- cases


def cases() -> Iterator[Case]:
    """Every layer, activation and adapter, with several sizes, ranks and settings."""
    yield from _layer_cases()
    yield from _low_rank_cases()
    yield from _adapter_cases()
    yield from _dylora_cases()
    yield from _multilora_cases()


def _layer_cases() -> Iterator[Case]:
    penalty = Regularization(l1=0.1, l2=0.2)
    for (inputs, outputs, leading), activation in itertools.product(SIZES, ACTIVATIONS):
        yield Case("DenseLayer", DenseLayer(inputs, outputs, activation, regularization=penalty), leading)
        yield Case("FullyConnectedLayer", FullyConnectedLayer(inputs, outputs, activation), leading)
    for activation, (inputs, _, leading) in itertools.product(ACTIVATIONS, SIZES):
        yield Case(f"ActivationLayer {activation.name}", ActivationLayer(inputs, activation), leading)
    for inputs, outputs, leading in SIZES:
        layers = [DenseLayer(inputs, 4, tanh), FullyConnectedLayer(4, 5, softplus), DenseLayer(5, outputs)]
        yield Case("Sequential", Sequential(layers), leading)
        yield Case("Sequential", Sequential(layers, frozen=["1"]), leading)


def _low_rank_cases() -> Iterator[Case]:
    for (inputs, outputs, leading), scaling in itertools.product(SIZES, SCALINGS):
        for rank in _ranks(inputs, outputs):
            yield Case("LoRALayer", LoRALayer(inputs, outputs, rank, 3.0, scaling=scaling), leading)
            yield Case("VeRALayer", VeRALayer(inputs, outputs, rank + 4, 3.0), leading)


class _Setting(NamedTuple):
    """A base layer, and how to adapt it."""

    base: AffineLayer
    freeze: bool
    ranks: list[int]
    leading: tuple[int, ...]


def _settings(
    activation: Activation = tanh, sizes: Iterable[tuple[int, int, tuple[int, ...]]] = SIZES
) -> Iterator[_Setting]:
    for inputs, outputs, leading in sizes:
        for layout, freeze in itertools.product((DenseLayer, FullyConnectedLayer), (True, False)):
            yield _Setting(layout(inputs, outputs, activation), freeze, _ranks(inputs, outputs), leading)


def _ranks(inputs: int, outputs: int) -> list[int]:
    """The lowest rank, a middle one if there is one, and the highest."""
    highest = min(inputs, outputs)
    return sorted({1, (highest + 1) // 2, highest})


def _adapter_cases() -> Iterator[Case]:
    for base, freeze, ranks, leading in _settings():
        for rank in ranks:
            yield Case("StandardLoRAAdapter", StandardLoRAAdapter(base, rank, 3.0, freeze), leading)
            yield Case("VeRAAdapter", VeRAAdapter(base, rank, 3.0, freeze), leading)
    for base, freeze, ranks, leading in _settings(identity):
        for rank in ranks:
            yield Case("DoRAAdapter", DoRAAdapter(base, rank, 3.0, freeze), leading)


def _dylora_cases() -> Iterator[Case]:
    for (base, freeze, ranks, leading), scaling in itertools.product(_settings(), SCALINGS):
        for rank in ranks:
            full = DyLoRAAdapter(base, ranks[-1], ranks, 3.0, freeze, scaling=scaling)  # type: ignore[arg-type]
            full.set_deployment_rank(rank)
            yield Case("DyLoRAAdapter full", full, leading)
            # The frozen mode omits part of the true gradient by design, so only the active part can be compared.
            frozen = DyLoRAAdapter(base, ranks[-1], ranks, 3.0, freeze, mode="frozen", scaling=scaling)  # type: ignore[arg-type]
            yield Case("DyLoRAAdapter frozen", frozen, leading, training=True, rank=rank, active_only=True)


def _multilora_cases() -> Iterator[Case]:
    for base, freeze, ranks, leading in _settings():
        adapter = _multilora(base, freeze, ranks)
        adapter.current_task = "b"
        yield Case("MultiLoRAAdapter switched", adapter, leading)
    for base, freeze, ranks, leading in _settings(sizes=ROUTED_SIZES):
        adapter = _multilora(base, freeze, ranks)
        yield Case("MultiLoRAAdapter mixed batch", adapter, leading, tasks=("b", None, "a", "b", "a", "a"))


def _multilora(base: AffineLayer, freeze: bool, ranks: list[int]) -> MultiLoRAAdapter:
    adapter = MultiLoRAAdapter(base, "a", ranks[0], 3.0, freeze)
    adapter.add_task("b", ranks[-1], 0.5)
    adapter.add_task("c", 1)
    return adapter


# ---------------------------------------------------------------- the check


def check(cases: Iterable[Case], rng: np.random.Generator) -> list[Row]:
    """Check every case with random values in all of its arrays, using the complex step.

    Returns
    -------
    list of Row
        One for each kind and array, in the order of the cases.
    """
    errors: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        # In a new adapter B is zero, so the gradient of A is zero and checking it would prove nothing.
        for values in case.layer.named_parameters(frozen=True).values():
            values[...] = rng.standard_normal(values.shape)
        x = rng.standard_normal((*case.leading, case.layer.input_size))
        run: dict[str, Any] = {"training": case.training, "tasks": case.tasks, "rank": case.rank}
        found = gradient_errors(case.layer, x, **run, active_only=case.active_only, method="complex", rng=rng)
        for array, error in found.items():
            if np.isnan(error):
                continue  # a relu that is 0 for every row, say: its zero gradients prove nothing
            errors.setdefault(case.kind, {}).setdefault(array, []).append(error)
    return [
        Row(kind, array, len(of_array), max(of_array), all(error <= LIMIT for error in of_array))
        for kind, of_kind in errors.items()
        for array, of_array in of_kind.items()
    ]


# ---------------------------------------------------------------- the verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_seed(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    rows = check(cases(), np.random.default_rng(arguments.seed))
    wrong = [f"{row.kind} {row.array}" for row in rows if not row.ok]
    if arguments.json:
        values = [asdict(row) | {"error": row.error if math.isfinite(row.error) else None} for row in rows]
        print_json({"ok": not wrong, "limit": LIMIT, "seed": arguments.seed, "gradients": values})
    else:
        header = ["layer", "gradient of", "cases", "largest relative error", ""]
        cells = [[row.kind, row.array, str(row.cases), f"{row.error:.1e}", "ok" if row.ok else "WRONG"] for row in rows]
        print(table(header, cells, left=2))
        total = sum(row.cases for row in rows)
        verdict = f"wrong: {', '.join(wrong)}" if wrong else f"all correct to a relative error of {LIMIT:g}"
        print(f"\n{total:,} gradients checked with the complex step: {verdict}")
    return 1 if wrong else 0


GRADCHECK = Verb(
    name="gradcheck",
    summary="compare the gradients of every layer, activation and adapter with numerical derivatives",
    example="lora-np gradcheck --seed 7",
    add_arguments=_add_arguments,
    run=_run,
)
