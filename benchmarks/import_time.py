"""The processor time of imports and of `lora-np --version`: python -m benchmarks.import_time"""

import os
import statistics
import subprocess
import sys

from .processes import finished_time

CASES = {
    "python alone": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "a layer of lora_np": ["-c", "from lora_np import DenseLayer"],
    "lora-np --version": ["-m", "lora_np", "--version"],
    "lora-np merge --help": ["-m", "lora_np", "merge", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """The processor time of a new interpreter."""
    # A checkout should have bytecode from the first round on, as an installed package has.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = finished_time()
    subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    return finished_time() - before


def main(rounds: int = 21) -> None:
    """Run the cases in turns, after a round that warms the file cache, and print the median times."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for round_number in range(rounds + 1):
        for name, arguments in CASES.items():
            elapsed = seconds(arguments)
            if round_number:
                times[name].append(elapsed)
    numpy = statistics.median(times["import numpy"])
    print(f"{'':20}{'median':>10}{'minimum':>10}{'/ numpy':>9}   ({rounds} rounds, interleaved)")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:20}{median * 1e3:7.0f} ms{min(values) * 1e3:7.0f} ms{median / numpy:9.2f}")


if __name__ == "__main__":
    main()
