"""The time of `import lora_np` beyond `import numpy`: python -m benchmarks.import_time"""

import os
import statistics
import subprocess
import sys
import time

CASES = {"python alone": "pass", "import numpy": "import numpy", "import lora_np": "import lora_np"}


def seconds(statement: str) -> float:
    """The wall time of a new interpreter that runs one statement."""
    # A checkout should have bytecode from the first round on, as an installed package has.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    return time.perf_counter() - start


def main(rounds: int = 21) -> None:
    """Run the cases in turns, after a round that warms the file cache, and print the median times."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for round_number in range(rounds + 1):
        for name, statement in CASES.items():
            elapsed = seconds(statement)
            if round_number:
                times[name].append(elapsed)
    print(f"{'':16}{'median':>10}{'minimum':>10}   ({rounds} rounds, interleaved)")
    for name, values in times.items():
        print(f"{name:16}{statistics.median(values) * 1e3:7.1f} ms{min(values) * 1e3:7.1f} ms")
    extra = [mine - numpys for mine, numpys in zip(times["import lora_np"], times["import numpy"], strict=True)]
    print(f"lora_np in addition to numpy: median {statistics.median(extra) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
