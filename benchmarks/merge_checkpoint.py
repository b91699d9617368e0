"""Time and memory of merging an adapter into a large BF16 checkpoint: python -m benchmarks.merge_checkpoint

Creates a checkpoint of about 1 GB in a temporary folder, with the shapes of a small language model, merges rank-8 adapters
into it (for the attention queries and values, or for every layer), verifies each result, and removes everything.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from lora_np.factors.weights import AdapterWeights
from lora_np.io.merge import merge_checkpoint, verify_checkpoint
from lora_np.io.safetensors import TensorInfo, stream_safetensors
from lora_np.layers import LoRALayer

from .processes import status

LAYERS, WIDTH, HIDDEN, KEYS, VOCABULARY = 8, 2048, 8192, 512, 16_000
CASES = {"queries and values": ("q_proj", "v_proj"), "every layer": ("proj",)}


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


def peak_megabytes() -> float:
    """The peak resident memory of this process."""
    return status("VmHWM") / 2**20


def merge_once(base: str, output: str, case: str, scale: float) -> None:
    """Merge in a subprocess, and print the seconds and the additional megabytes."""
    adapter = make_adapter(shapes(scale), CASES[case])
    before, start = peak_megabytes(), time.perf_counter()
    merge_checkpoint(base, adapter, output)
    print(time.perf_counter() - start, peak_megabytes() - before)


def main() -> None:
    """Measure all cases, in turns with plain copies of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="relative size of the checkpoint (default: 1, about 1 GB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", nargs=3, metavar=("BASE", "OUTPUT", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        merge_once(*arguments.once, arguments.scale)
        return
    weights = shapes(arguments.scale)
    seconds: dict[str, list[float]] = {"copy of the file": [], **{case: [] for case in CASES}}
    megabytes: dict[str, float] = dict.fromkeys(CASES, 0.0)
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base, output = os.path.join(folder, "base.safetensors"), os.path.join(folder, "merged.safetensors")
        make_checkpoint(base, weights)
        size = os.path.getsize(base) / 1e9
        print(f"{size:.2f} GB of BF16 in {len(weights)} tensors, {arguments.rounds} interleaved rounds")
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            shutil.copyfile(base, output)
            seconds["copy of the file"].append(time.perf_counter() - start)
            os.remove(output)
            for case in CASES:
                command = [sys.executable, "-m", "benchmarks.merge_checkpoint", "--scale", str(arguments.scale)]
                result = subprocess.run(
                    [*command, "--once", base, output, case], check=True, capture_output=True, text=True
                ).stdout.split()
                seconds[case].append(float(result[0]))
                megabytes[case] = max(megabytes[case], float(result[1]))
                if case not in errors:
                    verified = verify_checkpoint(base, make_adapter(weights, CASES[case]), output)
                    errors[case] = max(tensor.error or 0.0 for tensor in verified)
                os.remove(output)
    copy = statistics.median(seconds["copy of the file"])
    print(f"{'':20}{'median':>9}{'minimum':>9}{'/ copy':>8}{'peak memory':>14}{'largest error':>15}")
    for case, values in seconds.items():
        line = f"{case:20}{statistics.median(values):7.2f} s{min(values):7.2f} s{statistics.median(values) / copy:8.1f}"
        print(line + (f"{megabytes[case]:11.0f} MB{errors[case]:15.1e}" if case in errors else ""))
    print("Peak memory excludes the memory in use before the merge.")
    print("Errors are relative to each tensor's largest element; the precision of BF16 is 3.9e-03.")


if __name__ == "__main__":
    main()
