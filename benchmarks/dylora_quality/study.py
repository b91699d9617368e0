"""The runs of the study: learning rates chosen on validation rows of other seeds, then scores on test rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_np import DyLoRAAdapter, find, fit
from lora_np._archive import atomic_file
from lora_np.training import LinearDecay

from .sentences import sentences
from .sets import NETWORKS, Problem, Rows, network, score
from .ways import RANKS, WAYS, Way, adapter_of, deploy, options_of

SETS: dict[str, Callable[[int, Path], Problem]] = {name: partial(network, name) for name in NETWORKS}
SETS["sentences"] = sentences
RATES = (0.006, 0.012, 0.024, 0.048, 0.096)
"""The learning rates to choose from; the encoder needs lower ones."""
ENCODER_RATES = (0.001, 0.002, 0.004)
CHOICE_SEED = 1000
"""The first seed for choosing the learning rate; those of the report start at 0."""


class Plan(NamedTuple):
    """How much to run."""

    epochs: int = 12
    seeds: int = 10
    choice_seeds: int = 4


def run(way: Way, problem: Problem, rates: Iterable[float], epochs: int, rows: Rows) -> np.ndarray:
    """Adapt the base, with a learning rate for each rank; the score and the loss at each rank, shape (ranks, 2)."""
    epochs = max(1, round(epochs * way.epochs))
    steps = epochs * math.ceil(len(problem.train.targets) / problem.batch)
    scores: list[tuple[float, float]] = []
    model = None
    for rank, rate in zip(RANKS, rates, strict=True):
        if model is None or way.is_dedicated:
            rng = np.random.default_rng((problem.seed, 2, rank))
            model = problem.adapt(adapter_of(way, rank, rng))
            optimizer, options = options_of(way, steps, rate)
            options |= {"rng": rng, "schedule": LinearDecay() if way.decays else None}
            fit(model, problem.train, problem.loss, optimizer, epochs, problem.batch, **options)
            if way.cut is not None:
                for adapter in find(model, DyLoRAAdapter).values():
                    way.cut(adapter)
        deploy(model, rank)
        scores.append(score(problem.predict(model, rows.inputs), rows.targets))
    return np.array(scores)


def measure(
    way: Way, plan: Plan, rates: Sequence[float], choosing: list[Problem], testing: list[Problem]
) -> dict[str, Any]:
    """Choose the learning rate, for each rank if each has its own LoRA, and score each seed on test rows."""
    grid = np.array(
        [[run(way, each, [rate] * len(RANKS), plan.epochs, each.choosing)[:, 0] for each in choosing] for rate in rates]
    ).mean(axis=1)  # (rates, ranks)
    best = grid.argmax(axis=0) if way.is_dedicated else np.full(len(RANKS), grid.mean(axis=1).argmax())
    chosen = [rates[index] for index in best]
    scores = np.array([run(way, each, chosen, plan.epochs, each.test) for each in testing])
    return {
        "rates": chosen,
        "cost": way.cost,
        "grid": grid.round(2).tolist(),
        "scores": scores[..., 0].round(2).tolist(),
        "losses": scores[..., 1].round(3).tolist(),
    }


def study(
    path: Path, folder: Path, names: Iterable[str], ways: Iterable[str], plan: Plan, say: Callable[[str], None]
) -> None:
    """Measure the ways on the sets, and keep each result in a file; those that it has already are not measured again."""
    results = json.loads(path.read_text()) if path.exists() else {"ranks": RANKS, "results": {}}
    ways = list(ways)
    for name in names:
        found = results["results"].setdefault(f"{name}, {plan.epochs} epochs", {})
        missing = [label for label in ways if label not in found]
        if not missing:
            continue
        rates = ENCODER_RATES if name == "sentences" else RATES
        choosing = [SETS[name](seed, folder) for seed in range(CHOICE_SEED, CHOICE_SEED + plan.choice_seeds)]
        testing = [SETS[name](seed, folder) for seed in range(plan.seeds)]
        for label in missing:
            found[label] = measure(WAYS[label], plan, rates, choosing, testing)
            with atomic_file(path) as file:
                file.write(json.dumps(results, separators=(",", ":")).encode())
            mean = np.mean(found[label]["scores"], axis=0)
            say(f"{name:10} {plan.epochs} {label:50} {mean.mean():6.2f}  {mean.round(1).tolist()}  {found[label]['rates']}")
