"""Measurements that need a process of their own, and what such a process can say about itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run(*command: str) -> Any:
    """What a fresh interpreter prints last, as JSON. It inherits the one core and the one thread."""
    # An installed package has its bytecode; so must a checkout.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def status(field: str) -> float:
    """Bytes, from what Linux says of this process: VmRSS is resident now, VmHWM was at the peak.

    Unlike ``ru_maxrss``, VmHWM begins anew in a new program, and knows nothing of the process that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def can_measure_memory() -> bool:
    return Path("/proc/self/status").exists()


def forget_peak() -> None:
    """Make VmHWM begin anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
