"""Measurements in a separate process, and what such a process can report about itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run(*command: str) -> Any:
    """Run a new interpreter, and parse the last line it prints as JSON. It inherits the restriction to one core."""
    # A checkout should have bytecode, as an installed package has.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def finished_time() -> float:
    """The processor time in seconds of all processes that were started by this one and have ended."""
    import resource  # not on Windows

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def status(field: str) -> float:
    """A memory field of this process on Linux, in bytes: VmRSS is the current resident memory, VmHWM its peak.

    Unlike ``ru_maxrss``, VmHWM is reset when a program starts and does not include the parent process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def can_measure_memory() -> bool:
    return Path("/proc/self/status").exists()


def forget_peak() -> None:
    """Reset VmHWM to the current resident memory."""
    Path("/proc/self/clear_refs").write_text("5")
