"""Quality of one DyLoRA at every rank, compared with one LoRA per rank: python -m benchmarks.dylora_quality

Three tasks, each on a network pretrained on different data: shifted digits (rotated and inverted, as in the demo), digits
of other classes, and a regression. Every method uses the learning rate that was best for it on validation rows with other
seeds (`--choose` searches for it). The report shows the accuracy, or R², on test rows, in percent.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lora_np import (
    SGD,
    Adam,
    DenseLayer,
    DyLoRAAdapter,
    Layer,
    Loss,
    MeanSquaredError,
    Sequential,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    apply_lora,
    find,
    fit,
    relu,
)
from lora_np._archive import atomic_file
from lora_np.data import load_digits
from lora_np.demo.digits import shifted, upright
from lora_np.functions.initializers import he_uniform
from lora_np.training import LinearDecay, RankSchedule, rank_per_row, shared_rank
from lora_np.training.step import Descent

RANKS = (1, 2, 4, 8)
BATCH, HIDDEN, BASE_EPOCHS, BASE_RATE = 16, 128, 20, 0.003
RATES = (0.01, 0.015, 0.02, 0.03)
"""The learning rates of adapters that `--choose` tries."""
CHOICE_SEEDS = 1000
"""The first seed of `--choose`; the seeds of the report begin at 0."""


# ---------------------------------------------------------------- tasks


class Rows(NamedTuple):
    """Inputs and targets."""

    inputs: np.ndarray
    targets: np.ndarray


class Data(NamedTuple):
    """The training rows of the base, and the training and test rows of the adapters."""

    base: Rows
    train: Rows
    test: Rows


class Task(NamedTuple):
    """How to draw the data of a seed (if `choosing`, with validation rows instead of test rows), and how to train."""

    data: Callable[[int, bool], Data]
    loss: Loss
    epochs: int
    outputs: int


def _split(rows: np.ndarray, tested: int, choosing: bool) -> tuple[np.ndarray, np.ndarray]:
    """The training and test rows; if `choosing`, a quarter of the training rows replaces the test rows."""
    test, train = np.split(rows, [tested])
    return np.split(train, [len(train) // 4])[::-1] if choosing else (train, test)  # type: ignore[return-value]


def shifted_digits(seed: int, choosing: bool) -> Data:
    """The base is trained on upright digits, the adapters on rotated, inverted ones."""
    images, labels = load_digits()
    train, test = _split(np.random.default_rng((seed, 0)).permutation(len(images)), 600, choosing)

    def seen(view: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> Rows:
        return Rows(view(images[rows]).reshape(len(rows), -1), labels[rows])

    return Data(seen(upright, train), seen(shifted, train), seen(shifted, test))


def other_digits(seed: int, choosing: bool) -> Data:
    """The base is trained on the digits 0 to 4, the adapters on 5 to 9."""
    images, labels = load_digits()
    random = np.random.default_rng((seed, 0))
    train, test = _split(random.permutation(np.flatnonzero(labels > 4)), 300, choosing)
    flat = images.reshape(len(images), -1)
    return Data(*(Rows(flat[rows], labels[rows]) for rows in (np.flatnonzero(labels < 5), train, test)))


def regression(seed: int, choosing: bool) -> Data:
    """The base is trained on a random function of three layers, the adapters on a similar one."""
    random = np.random.default_rng((seed, 0))
    sizes = ((32, 64), (64, 64), (64, 10))
    old = [random.normal(size=size) / math.sqrt(size[0]) for size in sizes]
    new = [W + 0.7 * random.normal(size=W.shape) / math.sqrt(len(W)) for W in old]

    def rows(count: int, function: list[np.ndarray]) -> Rows:
        x = random.normal(size=(count, 32))
        h = x
        for W in function[:-1]:
            h = np.tanh(1.5 * h @ W)
        return Rows(x, h @ function[-1] + 0.05 * random.normal(size=(count, 10)))

    base, known = rows(3000, old), rows(2500, new)
    train, test = _split(np.arange(2500), 1000, choosing)
    return Data(base, *(Rows(known.inputs[part], known.targets[part]) for part in (train, test)))


TASKS = {
    "shifted digits": Task(shifted_digits, SoftmaxCrossEntropy(), 50, 10),
    "other digits": Task(other_digits, SoftmaxCrossEntropy(), 50, 10),
    "regression": Task(regression, MeanSquaredError(), 20, 10),
}


def score(outputs: np.ndarray, targets: np.ndarray) -> float:
    """The accuracy if the targets are labels, otherwise the coefficient of determination R²; in percent."""
    if targets.ndim == 1:
        return float(100 * (outputs.argmax(axis=-1) == targets).mean())
    return float(100 * (1 - np.square(outputs - targets).sum() / np.square(targets - targets.mean(axis=0)).sum()))


# ---------------------------------------------------------------- methods


class Way(NamedTuple):
    """A method to obtain an adapter for every rank."""

    schedule: RankSchedule | None
    """None: one LoRA per rank."""
    weights: tuple[float, ...] = (1, 1, 1, 1)
    """The weights of the ranks in their distribution."""
    epochs: float = 1
    """As a multiple of the task's."""


LORA, PASS, ROW = "one LoRA per rank", "DyLoRA, rank per step", "DyLoRA, rank per row"
WAYS = {
    LORA: Way(None),
    f"{LORA}, 1/4 of the steps": Way(None, epochs=1 / len(RANKS)),
    PASS: Way(shared_rank),
    f"{PASS}, 2:1:1:1": Way(shared_rank, (2, 1, 1, 1)),
    ROW: Way(rank_per_row),
    f"{ROW}, 2:1:1:1": Way(rank_per_row, (2, 1, 1, 1)),
    f"{ROW}, 2:1:1:1, 2/3 of the steps": Way(rank_per_row, (2, 1, 1, 1), epochs=2 / 3),
    f"{ROW}, 2:1:1:1, twice the steps": Way(rank_per_row, (2, 1, 1, 1), epochs=2),
}


def chosen_rate(task: str, way: str) -> float:
    """The best learning rate on validation rows: see docs/dylora-quality.md."""
    if way.startswith(ROW) and task != "regression":
        return 0.015  # every step updates every component
    return 0.02


def train(
    model: Layer, rows: Rows, loss: Loss, epochs: int, rate: float, rng: np.random.Generator, **options: Any
) -> float:
    """Train with Adam, the learning rate falling linearly to zero; returns the seconds."""
    start = time.perf_counter()
    fit(model, rows, loss, Adam(rate), epochs, BATCH, rng=rng, schedule=LinearDecay(), **options)
    return time.perf_counter() - start


def pretrained(task: Task, data: Data, seed: int) -> Layer:
    """A network with two hidden layers, trained on the rows of the base."""
    rng = np.random.default_rng((seed, 1))
    sizes = (data.base.inputs.shape[-1], HIDDEN, HIDDEN)
    layers = [DenseLayer(*pair, relu, initializer=he_uniform, rng=rng) for pair in itertools.pairwise(sizes)]
    base = Sequential([*layers, DenseLayer(HIDDEN, task.outputs, rng=rng)])
    train(base, data.base, task.loss, BASE_EPOCHS, BASE_RATE, rng)
    return base


class Result(NamedTuple):
    """The result of one method with one seed."""

    scores: tuple[float, ...]
    """One per rank."""
    seconds: float
    """The total time of all training runs."""


def run(task: Task, data: Data, base: Layer, way: Way, rate: float, seed: int) -> Result:
    """Adapt every layer of the base, and score each rank."""
    learn = partial(train, rows=data.train, loss=task.loss, epochs=round(task.epochs * way.epochs), rate=rate)
    outputs: dict[int, np.ndarray] = {}
    if way.schedule is None:
        seconds = 0.0
        for rank in RANKS:
            rng = np.random.default_rng((seed, 2, rank))
            model = apply_lora(base, partial(StandardLoRAAdapter, rank=rank, rng=rng))
            seconds += learn(model, rng=rng)
            outputs[rank] = model.predict(data.test.inputs)
    else:
        rng = np.random.default_rng((seed, 3))
        choices = {"max_rank": RANKS[-1], "active_ranks": RANKS, "rank_distribution": way.weights}
        model = apply_lora(base, partial(DyLoRAAdapter, **choices, rng=rng))
        seconds = learn(model, rng=rng, rank_schedule=way.schedule)
        outputs = {rank: model.predict(data.test.inputs, rank=rank) for rank in RANKS}
    return Result(tuple(score(outputs[rank], data.test.targets) for rank in RANKS), seconds)


# ---------------------------------------------------------------- tables


def choose(names: list[str], seeds: int) -> None:
    """For each task and method, print the mean over ranks and seeds on validation rows at each learning rate."""
    for name in names:
        task = TASKS[name]
        drawn = [(seed, task.data(seed, True)) for seed in range(CHOICE_SEEDS, CHOICE_SEEDS + seeds)]
        bases = [pretrained(task, data, seed) for seed, data in drawn]
        for label, way in WAYS.items():
            means = {
                rate: statistics.mean(
                    statistics.mean(run(task, data, base, way, rate, seed).scores)
                    for (seed, data), base in zip(drawn, bases, strict=True)
                )
                for rate in RATES
            }
            print(f"{name:15} {label:48} " + "  ".join(f"{rate:g}: {mean:.2f}" for rate, mean in means.items()), flush=True)


def report(name: str, seeds: int) -> dict[str, list[Result]]:
    """Run every method with every seed, and print means, spreads and differences."""
    task = TASKS[name]
    results: dict[str, list[Result]] = {label: [] for label in WAYS}
    for seed in range(seeds):
        data = task.data(seed, False)
        base = pretrained(task, data, seed)
        for label, way in WAYS.items():
            results[label].append(run(task, data, base, way, chosen_rate(name, label), seed))
    what = "R²" if task.loss.__class__ is MeanSquaredError else "accuracy"
    print(f"\n{name}: {what} on test rows in percent, mean ± standard deviation over {seeds} seeds")
    heads = "".join(f"{f'rank {rank}':>13}" for rank in RANKS)
    print(f"{'':48}{'rate':>6}{heads}{'ranks 2-8':>11}{'rank 1':>9}{'seconds':>9}")
    lora = _mean(results[LORA])
    for label, runs in results.items():
        scores = np.array([each.scores for each in runs])
        spread = scores.std(axis=0, ddof=1) if seeds > 1 else np.zeros(len(RANKS))
        cells = "".join(f"{mean:7.2f} ±{sd:4.1f}" for mean, sd in zip(_mean(runs), spread, strict=True))
        gap = _mean(runs) - lora
        seconds = statistics.mean(each.seconds for each in runs)
        print(f"{label:48}{chosen_rate(name, label):6g}{cells}{gap[1:].mean():+11.2f}{gap[0]:+9.2f}{seconds:9.2f}")
    print(f"The columns 'ranks 2-8' and 'rank 1' are differences from {LORA}. Differences from '{PASS}', ± standard error:")
    for label, runs in results.items():
        if label != PASS and seeds > 1:
            difference = np.array([a.scores for a in runs]) - np.array([b.scores for b in results[PASS]])
            error = difference.std(axis=0, ddof=1) / math.sqrt(seeds)
            print(
                f"{label:48}" + "".join(f"{d:+7.2f} ±{e:4.2f}" for d, e in zip(difference.mean(axis=0), error, strict=True))
            )
    return results


def _mean(runs: list[Result]) -> np.ndarray:
    return np.array([each.scores for each in runs]).mean(axis=0)


# ---------------------------------------------------------------- the cost of a step


SIZES = {"16 x 128 x 128, 3 layers": (16, 128, 3), "32 x 1024 x 1024": (32, 1024, 1), "256 x 1024 x 1024": (256, 1024, 1)}


def step_times(rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a training step in float32, with the kinds interleaved."""
    kinds: dict[str, RankSchedule | None] = {
        "rank-8 LoRA": None,
        "rank per step": shared_rank,
        "rank per row": rank_per_row,
    }
    table = {}
    for size, (rows, width, depth) in SIZES.items():
        random = np.random.default_rng(0)
        x, target = (random.normal(size=(rows, width)).astype(np.float32) for _ in range(2))
        base = Sequential([DenseLayer(width, width, dtype=np.float32, rng=random) for _ in range(depth)])
        steps = {kind: _step(base, schedule, x, target) for kind, schedule in kinds.items()}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, step in steps.items():
                start = time.perf_counter()
                step()
                times[kind].append(1e3 * (time.perf_counter() - start))
        table[size] = {kind: statistics.median(values) for kind, values in times.items()}
    print(f"\nmilliseconds of a training step (SGD, float32), median of {rounds}; in brackets, relative to a rank per step")
    for size, medians in table.items():
        own = medians["rank per step"]
        print(f"{size:28}" + "".join(f"{kind}: {ms:.3f} ({ms / own:.2f})   " for kind, ms in medians.items()))
    return table


def _step(base: Layer, schedule: RankSchedule | None, x: np.ndarray, target: np.ndarray) -> Callable[[], object]:
    if schedule is None:
        model = apply_lora(base, StandardLoRAAdapter, rank=RANKS[-1], rng=0)
    else:
        model = apply_lora(base, DyLoRAAdapter, max_rank=RANKS[-1], active_ranks=RANKS, rng=0)
    adapters = list(find(model, DyLoRAAdapter).values())
    descent, rng = Descent(model, MeanSquaredError(), SGD(1e-6)), np.random.default_rng(0)

    def step() -> None:
        rank = None if schedule is None else schedule(adapters, rng, len(x))
        descent.step(partial(model.forward, x, rank=rank), target)

    return step


# ---------------------------------------------------------------- files


def draw(folder: str, results: dict[str, dict[str, list[Result]]]) -> None:
    """Plot the score at each rank for each task, with standard errors."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    os.makedirs(folder, exist_ok=True)
    shown = [label for label, way in WAYS.items() if way.epochs == 1]
    for name, ways in results.items():
        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        for label in shown:
            scores = np.array([each.scores for each in ways[label]])
            error = scores.std(axis=0, ddof=1) / math.sqrt(len(scores)) if len(scores) > 1 else None
            axes.errorbar(range(len(RANKS)), scores.mean(axis=0), error, marker="o", capsize=3, label=label)
        axes.set_xticks(range(len(RANKS)), [str(rank) for rank in RANKS])
        axes.set_xlabel("rank")
        axes.set_ylabel("R² on test rows (%)" if name == "regression" else "accuracy on test rows (%)")
        axes.set_title(name)
        axes.legend(fontsize="small")
        figure.savefig(os.path.join(folder, f"dylora-quality-{name.replace(' ', '-')}.svg"), metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    """Print the tables, and write the requested files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["shifted digits", "regression"])
    parser.add_argument("--choose", action="store_true", help="only search for the learning rates, on validation rows")
    parser.add_argument("--rounds", type=int, default=100, help="repetitions of the step times (default: 100; 0: none)")
    parser.add_argument("--json", metavar="PATH", help="write all scores")
    parser.add_argument("--svg", metavar="DIR", help="write a chart of each task (requires matplotlib)")
    arguments = parser.parse_args()
    if arguments.choose:
        choose(arguments.tasks, arguments.seeds)
        return
    results = {name: report(name, arguments.seeds) for name in arguments.tasks}
    times = step_times(arguments.rounds) if arguments.rounds else {}
    if arguments.json:
        runs = {
            name: {way: [each._asdict() for each in runs] for way, runs in ways.items()} for name, ways in results.items()
        }
        rates = {name: {way: chosen_rate(name, way) for way in ways} for name, ways in results.items()}
        with atomic_file(arguments.json) as file:
            file.write(json.dumps({"ranks": RANKS, "rates": rates, "runs": runs, "step_ms": times}, indent=1).encode())
    if arguments.svg:
        draw(arguments.svg, results)


if __name__ == "__main__":
    main()
