"""Many tasks on one layer: python -m benchmarks.multilora_scale

Measures mixed batches relative to the plain product of the base (forward) or two of them (training), the time to add a
task, the memory of a task in addition to its factors, and the time to load a thousand PEFT folders. Each case is first
compared with a loop over rows.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is first imported

import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable

import numpy as np

from lora_np import DenseLayer, LoRALayer, MultiLoRAAdapter, Sequential
from lora_np.factors.weights import AdapterWeights
from lora_np.io.peft import apply_peft, save_peft

RANKS = (4, 8, 16)
ROWS = 256
CASES = [(1024, 1), (1024, 16), (1024, 64), (1024, 1000), (256, 1000), (256, 10_000), (64, 1000), (64, 10_000)]


def adapter_with(tasks: int, width: int, ranks: Iterable[int] = RANKS) -> MultiLoRAAdapter:
    """An adapter of a float32 layer with tasks "0", "1", ..., of cycling ranks and with random factors."""
    rng, ranks = np.random.default_rng(0), tuple(ranks)
    adapter = MultiLoRAAdapter(DenseLayer(width, width, dtype=np.float32, rng=rng), "0", ranks[0], rng=rng)
    for number in range(1, tasks):
        rank = ranks[number % len(ranks)]
        adapter.add_task(str(number), rank, 2.0 * rank)
    for branch in adapter.task_adapters.values():
        branch.matrix_b[...] = rng.standard_normal(branch.matrix_b.shape, np.float32) / width
    return adapter


def mixed_tasks(tasks: int, mix: str, rows: int = ROWS) -> list[str]:
    """A task for each row, drawn uniformly or by Zipf's law with exponent 1.1."""
    rng = np.random.default_rng(1)
    weights = np.ones(tasks) if mix == "uniform" else np.arange(1, tasks + 1) ** -1.1
    return [str(number) for number in rng.choice(tasks, rows, p=weights / weights.sum())]


def check(adapter: MultiLoRAAdapter, x: np.ndarray, dy: np.ndarray, tasks: list[str]) -> None:
    """Compare a mixed pass with a loop over rows in float64."""
    y, dx = adapter.forward(x, tasks=tasks), adapter.backward(dy)
    gradients = adapter.gradients
    expected = {name: np.zeros(gradient.shape) for name, gradient in gradients.items()}
    W, b = adapter.base_layer.weight.astype(np.float64), adapter.base_layer.bias.astype(np.float64)
    for row, (x_row, dy_row, task) in enumerate(zip(x.astype(np.float64), dy.astype(np.float64), tasks, strict=True)):
        branch = adapter.get_task_adapter(task)
        A, B, s = branch.matrix_a.astype(np.float64), branch.matrix_b.astype(np.float64), branch.scaling
        np.testing.assert_allclose(y[row], x_row @ W + b + s * (x_row @ A) @ B, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(dx[row], dy_row @ W.T + s * (dy_row @ B.T) @ A.T, rtol=1e-4, atol=1e-4)
        expected[f"tasks.{task}.matrix_a"] += s * np.outer(x_row, dy_row @ B.T)
        expected[f"tasks.{task}.matrix_b"] += s * np.outer(x_row @ A, dy_row)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-3, atol=1e-3)


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median CPU time of each candidate in seconds, in turns; CPU time is least affected by other programs."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    try:
        for call in candidates.values():
            call()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
            for name, call in candidates.items():
                start = time.thread_time()
                call()
                times[name].append(time.thread_time() - start)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def mixed_batch(tasks: int, width: int, mix: str, *, packed: bool = False, seconds: float = 1.0) -> dict[str, float]:
    """Times of a mixed batch relative to plain products of the base: forward pass, both passes, and both with the step."""
    adapter, names = adapter_with(tasks, width), mixed_tasks(tasks, mix)
    if packed:
        adapter.pack("max")
    rng = np.random.default_rng(2)
    x, dy = rng.standard_normal((2, ROWS, width), np.float32)
    check(adapter, x, dy, names)
    W, y = adapter.base_layer.weight, np.empty_like(x)

    def passes() -> None:
        adapter.forward(x, tasks=names)
        adapter.backward(dy)

    def step() -> None:
        passes()
        adapter.update_parameters(1e-6)

    times = interleaved(
        {
            "one product": lambda: np.matmul(x, W, out=y),
            "two products": lambda: (np.matmul(x, W, out=y), np.matmul(dy, W.T, out=y)),
            "predict": lambda: adapter.predict(x, tasks=names),
            "passes": passes,
            "step": step,
        },
        seconds,
    )
    return {
        "tasks present": len(set(names)),
        "product": times["one product"],
        "forward": times["predict"] / times["one product"],
        "passes": times["passes"] / times["two products"],
        "step": times["step"] / times["two products"],
    }


def add_task_seconds(tasks: int, width: int, rank: int = 8) -> float:
    """The median time to add a task of the given rank to an adapter with many tasks."""
    adapter = adapter_with(tasks, width, ranks=(1,))
    times = []
    for number in range(100):
        start = time.perf_counter()
        adapter.add_task(f"new {number}", rank)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bytes_beyond_factors(width: int, rank: int = 8, tasks: int = 1000) -> float:
    """The memory of a task in addition to its factors, averaged over many tasks."""
    adapter = adapter_with(1, width)
    names = [f"task {number}" for number in range(tasks)]
    tracemalloc.start()
    for name in names:
        adapter.add_task(name, rank)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / tasks - 2 * width * rank * 4


def peft_load_seconds(folders: int = 1000, width: int = 256, rank: int = 8) -> float:
    """The time to load PEFT folders, with factors for two layers each, as tasks of one model."""
    model = Sequential({name: DenseLayer(width, width, dtype=np.float32, rng=0) for name in ("up", "down")})
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as root:
        sets = {}
        for number in range(folders):
            A, B = rng.standard_normal((width, rank), np.float32), rng.standard_normal((rank, width), np.float32)
            layer = LoRALayer.from_factors(A, B)
            sets[f"task {number}"] = layer
            save_peft(os.path.join(root, f"task {number}"), AdapterWeights({"up": layer, "down": layer}))
        start = time.perf_counter()
        adapted = apply_peft(model, root)
        seconds = time.perf_counter() - start
    layers = adapted.walk()
    for name, layer in sets.items():
        for path in ("up", "down"):
            np.testing.assert_array_equal(layers[path].get_task_adapter(name).matrix_b, layer.matrix_b)
    return seconds


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per case (default: 1)")
    parser.add_argument("--packed", action="store_true", help="pack the base's weight first")
    arguments = parser.parse_args()
    print(f"Mixed batches of {ROWS} rows, float32, ranks {RANKS}; relative to the base product (training: two products)")
    print(f"{'width':>6}{'tasks':>8}{'mix':>9}{'present':>9}{'product':>12}{'forward':>9}{'passes':>8}{'step':>8}")
    for width, tasks in CASES:
        for mix in ("uniform", "zipf"):
            found = mixed_batch(tasks, width, mix, packed=arguments.packed, seconds=arguments.seconds)
            print(
                f"{width:6}{tasks:8}{mix:>9}{found['tasks present']:9}{found['product'] * 1e6:9.0f} µs"
                f"{found['forward']:9.2f}{found['passes']:8.2f}{found['step']:8.2f}",
                flush=True,
            )
    print("Adding a task of rank 8")
    for width in (64, 1024):
        times = [f"{add_task_seconds(tasks, width) * 1e6:.0f} µs with {tasks:,} tasks" for tasks in (10, 1000, 10_000)]
        print(f"  width {width:4}: {', '.join(times)}; {bytes_beyond_factors(width):.0f} bytes in addition to the factors")
    print(f"Loading 1,000 PEFT folders of rank 8 for 2 layers of width 256: {peft_load_seconds():.2f} s")


if __name__ == "__main__":
    main()
