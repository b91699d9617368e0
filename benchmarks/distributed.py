"""Speed of data-parallel training of adapters: python -m benchmarks.distributed

Trains the adapters of a network on shards of random rows: in one process, in threads, in processes and on Dask. It first
asserts that all of them end with bit-identical parameters, and then times steps on all rows of all shards, in turns. BLAS
uses one thread, so that only the number of workers makes a difference. The fastest step of each engine is reported, because
other programs disturbed it least.
"""

# ruff: noqa: E402  the environment must be set before NumPy is imported

import argparse
import json
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = "1"

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np

from lora_np import SGD, DenseLayer, Layer, MeanSquaredError, Sequential, StandardLoRAAdapter, apply_lora, relu
from lora_np.distributed import dask_executor, fit_shards
from lora_np.terminal.table import table
from lora_np.training import Progress

WIDTH, DEPTH, RANK = 512, 4, 8


def build() -> Layer:
    """The network: frozen dense layers with adapters."""
    dense = [DenseLayer(WIDTH, WIDTH, relu, dtype=np.float32, rng=number) for number in range(DEPTH)]
    return apply_lora(Sequential(dense), StandardLoRAAdapter, rank=RANK, rng=0)


def shard(number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random rows."""
    random = np.random.default_rng(number)
    return random.random((rows, WIDTH), np.float32), random.random((rows, WIDTH), np.float32)


def train(executor: Executor | None, shards: int, rows: int, steps: int) -> tuple[np.ndarray, list[float]]:
    """The final parameters, and the seconds of each step except the first."""
    model, loaders, marks = build(), [partial(shard, number, rows) for number in range(shards)], []

    def mark(progress: Progress) -> None:
        marks.append(time.perf_counter())

    fit_shards(
        model,
        loaders,
        MeanSquaredError(),
        SGD(0.1),
        steps,
        replica=build,
        executor=executor,
        shuffle=False,
        callbacks=[mark],
    )
    return model.get_parameters(), np.diff(marks).tolist()


@contextmanager
def engines(workers: int) -> Iterator[dict[str, Executor | None]]:
    """Context manager: the executors by name, started once."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        found: dict[str, Executor | None] = {"one process": None}
        for count in range(1, workers + 1):
            found[f"threads: {count}"] = stack.enter_context(ThreadPoolExecutor(count))
            found[f"processes: {count}"] = stack.enter_context(ProcessPoolExecutor(count, mp_context=spawn))
            found[f"Dask workers: {count}"] = stack.enter_context(dask_executor(workers=count))
        yield found


def break_even(rows: list[int], ratios: list[float]) -> str:
    """The shard size from which on a step is faster than in one process."""
    for size, later in zip(rows, (ratios[i:] for i in range(len(ratios))), strict=True):
        if all(ratio < 1 for ratio in later):
            return f"{size} rows"
    return "none"


def show(rows: list[int], shards: int, seconds: dict[str, list[float]]) -> None:
    """Print the times relative to one process."""
    one = seconds["one process"]
    lines = [["one process, ms", *(f"{value * 1e3:.1f}" for value in one), ""]]
    for name, values in seconds.items():
        if name != "one process":
            ratios = [value / single for value, single in zip(values, one, strict=True)]
            lines.append([name, *(f"{ratio:.2f}" for ratio in ratios), break_even(rows, ratios)])
    parameters = build().parameter_count
    print(f"A step with {shards} shards; {DEPTH} layers of {WIDTH} x {WIDTH} in float32, rank {RANK},")
    print(f"{parameters:,} trainable parameters. Times are relative to one process; break-even is the shard size from")
    print("which on a step is faster than in one process.\n")
    print(table(["rows per shard", *map(str, rows), "break-even"], lines))


def main() -> None:
    """Assert that the results are equal, then time the engines in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256, 1024, 4096], help="rows per shard")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="at most (default: number of processors)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps per round")
    parser.add_argument("--json", metavar="PATH", help="also write the seconds as JSON")
    arguments = parser.parse_args()
    with engines(arguments.workers) as executors:
        seconds: dict[str, list[float]] = {name: [] for name in executors}
        for rows in arguments.rows:
            expected, _ = train(None, arguments.shards, rows, 2)
            for name, executor in executors.items():
                assert np.array_equal(train(executor, arguments.shards, rows, 2)[0], expected), name
            times: dict[str, list[float]] = {name: [] for name in executors}
            for _ in range(arguments.rounds):
                for name, executor in executors.items():
                    times[name] += train(executor, arguments.shards, rows, arguments.steps + 1)[1]
            for name, values in times.items():
                seconds[name].append(min(values))
    show(arguments.rows, arguments.shards, seconds)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"rows": arguments.rows, "shards": arguments.shards, "seconds": seconds}, file, indent=2)


if __name__ == "__main__":
    main()
