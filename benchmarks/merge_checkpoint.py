"""Time and memory of merging an adapter into a large BF16 checkpoint: python -m benchmarks.merge_checkpoint

Creates a checkpoint of about 1 GB in a temporary folder, with the shapes of a small language model, merges rank-8 adapters
into it (for the attention queries and values, or for every layer), verifies each result, and removes everything.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from lora_np.factors.weights import AdapterWeights
from lora_np.io.merge import merge_checkpoint, verify_checkpoint
from lora_np.io.safetensors import TensorInfo, stream_safetensors
from lora_np.layers import LoRALayer

from .machine import describe
from .processes import ROOT, finished_time, status

PAGE = ROOT / "docs" / "files.md"
RESULTS = ROOT / "docs" / "benchmarks" / "merge.json"
START, END = "<!-- the table of benchmarks/merge_checkpoint.py -->\n\n", "\n<!-- the end of the table -->"
WORDS = {"read and write": "copy by read and write (`dd`)", "cp": "copy in the kernel (`cp`: `copy_file_range`)"}

LAYERS, WIDTH, HIDDEN, KEYS, VOCABULARY = 8, 2048, 8192, 512, 16_000
CASES = {"queries and values": ("q_proj", "v_proj"), "every linear layer": ("proj",)}
COPIES = {"read and write": ("dd", "bs=128K", "if={}", "of={}"), "cp": ("cp", "{}", "{}")}
"""A copy through the memory of a process, as a merge does it, and that of coreutils, which is in the kernel since 9.0."""


def shapes(scale: float) -> dict[str, tuple[int, int]]:
    """The shapes of the weights, (d_out, d_in); the number of layers and the vocabulary grow with the scale."""
    block = {"q": (WIDTH, WIDTH), "k": (KEYS, WIDTH), "v": (KEYS, WIDTH), "o": (WIDTH, WIDTH)}
    block |= {"up": (HIDDEN, WIDTH), "gate": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}
    weights = {
        f"model.layers.{number}.{name}_proj.weight": shape
        for number in range(max(1, round(LAYERS * scale)))
        for name, shape in block.items()
    }
    return weights | {"model.embed_tokens.weight": (max(1, round(VOCABULARY * scale)), WIDTH)}


def make_checkpoint(path: str, weights: dict[str, tuple[int, int]]) -> None:
    """Write random weights in pieces."""
    noise = (0.02 * np.random.default_rng(0).standard_normal(1 << 20)).astype(np.float32)

    def content(name: str) -> Iterator[np.ndarray]:
        size = weights[name][0] * weights[name][1]
        for start in range(0, size, noise.size):
            yield noise[: size - start]

    stream_safetensors(path, {name: TensorInfo("BF16", shape) for name, shape in weights.items()}, content)


def make_adapter(weights: dict[str, tuple[int, int]], chosen: tuple[str, ...], rank: int = 8) -> AdapterWeights:
    """Random factors for the layers whose name contains one of the chosen words."""
    rng = np.random.default_rng(1)
    layers = {}
    for name, (outputs, inputs) in weights.items():
        if any(word in name for word in chosen):
            A, B = rng.standard_normal((inputs, rank)), 0.02 * rng.standard_normal((rank, outputs))
            layers[name.removesuffix(".weight")] = LoRALayer.from_factors(A.astype(np.float32), B.astype(np.float32))
    return AdapterWeights(layers)


def merge_once(base: str, output: str, case: str, threads: str, scale: float) -> None:
    """Merge in a subprocess, and print the wall time, the processor time and the peak memory of the process."""
    adapter = make_adapter(shapes(scale), CASES[case])
    wall, processor = time.perf_counter(), time.process_time()
    merge_checkpoint(base, adapter, output, threads=int(threads))
    print(time.perf_counter() - wall, time.process_time() - processor, status("VmHWM") / 2**20)


def copy_once(copy: str, base: str, output: str) -> tuple[float, float]:
    """The wall time and the processor time of a copy."""
    *words, source, target = COPIES[copy]
    wall, processor = time.perf_counter(), finished_time()
    subprocess.run([*words, source.format(base), target.format(output)], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - wall, finished_time() - processor


def warm_up(base: str, output: str) -> None:
    """Copy once unmeasured: a virtual machine gets memory from its host on first use, at several times the cost."""
    copy_once("cp", base, output)
    os.remove(output)


def main() -> None:
    """Measure all cases, in turns with copies of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="relative size of the checkpoint (default: 1, about 1 GB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to create the checkpoint (default: the system's temporary folder)")
    parser.add_argument("--docs", action="store_true", help=f"write {RESULTS.name} and the table of docs/{PAGE.name}")
    parser.add_argument("--once", nargs=4, metavar=("BASE", "OUTPUT", "CASE", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        merge_once(*arguments.once, arguments.scale)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(folder, arguments.scale, arguments.rounds)
    print(f"{found['bytes'] / 1e9:.2f} GB of BF16, medians of {found['rounds']} interleaved rounds\n\n{table(found)}")
    for case, error in found["errors"].items():
        print(f"{case}: largest error relative to the largest element of its tensor {error:.1e}; BF16 rounds to 3.9e-03")
    if arguments.docs:
        write(found)


def measure(folder: str, scale: float, rounds: int) -> dict[str, Any]:
    """Measure all cases: medians of the times, the largest peak memory, the largest errors."""
    weights = shapes(scale)
    base, output = os.path.join(folder, "base.safetensors"), os.path.join(folder, "merged.safetensors")
    make_checkpoint(base, weights)
    results: dict[str, list[list[float]]] = {}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for name in COPIES:
            warm_up(base, output)
            results.setdefault(name, []).append([*copy_once(name, base, output), 0.0])
            os.remove(output)
        for case, threads in itertools.product(CASES, ("1", "2")):
            command = [sys.executable, "-m", "benchmarks.merge_checkpoint", "--scale", str(scale)]
            warm_up(base, output)
            run = [*command, "--once", base, output, case, threads]
            printed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            results.setdefault(f"merge, {case}, {threads} thread{'s' * (threads > '1')}", []).append(
                [*map(float, printed.split())]
            )
            if case not in errors:
                verified = verify_checkpoint(base, make_adapter(weights, CASES[case]), output)
                errors[case] = max(tensor.error or 0.0 for tensor in verified)
            os.remove(output)
    return {
        "machine": describe() | {"cores": str(os.cpu_count())},
        "bytes": os.path.getsize(base),
        "rounds": rounds,
        "rows": {name: [*map(statistics.median, (*zip(*rows, strict=True),))] for name, rows in results.items()},
        "peaks": {name: max(row[2] for row in rows) for name, rows in results.items() if name not in COPIES},
        "errors": errors,
    }


def table(found: dict[str, Any]) -> str:
    """The results in Markdown, with times relative to the copy by read and write."""
    copy = found["rows"]["read and write"]
    lines = ["| | wall time | / copy | processor time | / copy | peak memory |", "|---|---|---|---|---|---|"]
    for name, (wall, processor, _) in found["rows"].items():
        peak = f"{found['peaks'][name]:.0f} MB" if name in found["peaks"] else ""
        times = f"{wall:.2f} s | {wall / copy[0]:.1f} | {processor:.2f} s | {processor / copy[1]:.1f}"
        lines.append(f"| {WORDS.get(name, name)} | {times} | {peak} |")
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any]) -> None:
    """Write the results, and their table on the page."""
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(before + START + table(found) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
