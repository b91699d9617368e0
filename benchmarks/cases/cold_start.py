"""The cost of the first output: time, memory, and disk space."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import lora_np

from .. import processes
from ..groups import Group, Row, Settings
from ..harness import Measure
from ..peers import JAX, LIBRARIES, PEFT, TORCH, is_installed

SAY = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
"""The last line of each program: print the peak memory in kB, without importing anything."""

PROGRAMS = {
    "NumPy alone": """
import numpy as np
x = np.ones((4, 64), np.float32)
y = x @ np.ones((64, 64), np.float32)
""",
    "lora_np": """
import numpy as np
from lora_np import DenseLayer, StandardLoRAAdapter
adapter = StandardLoRAAdapter(DenseLayer(64, 64, dtype=np.float32, rng=0), rank=4, rng=1)
y = adapter.predict(np.ones((4, 64), np.float32))
""",
    PEFT: """
import torch
from peft import LoraConfig, get_peft_model
torch.set_num_threads(1)
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), LoraConfig(r=4, target_modules=["0"]))
with torch.no_grad():
    y = model(torch.ones(4, 64))
""",
    TORCH: """
import torch
torch.set_num_threads(1)
base, A, B = torch.nn.Linear(64, 64), torch.randn(64, 4), torch.zeros(4, 64)
with torch.no_grad():
    x = torch.ones(4, 64)
    y = base(x) + (x @ A) @ B
""",
    JAX: """
import jax
import jax.numpy as jnp
x, W, A, B = jnp.ones((4, 64)), jnp.ones((64, 64)), jnp.ones((64, 4)), jnp.zeros((4, 64))
y = jax.jit(lambda x, W, A, B: x @ W + (x @ A) @ B)(x, W, A, B).block_until_ready()
""",
}
CHECK = "assert y.shape == (4, 64)\n"


def contenders(settings: Settings) -> dict[str, bool]:
    """The candidates, and whether they are installed."""
    wanted = ["NumPy alone", "lora_np", *(peer for peer in settings.peers if peer in PROGRAMS)]
    return {name: is_installed(*LIBRARIES.get(name, ("numpy",))) for name in wanted}


def alternating(programs: Mapping[str, str | None], rounds: int) -> dict[str, tuple[Measure, Measure] | None]:
    """Seconds and bytes of each program. The programs take turns; a first round warms the file cache."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name, program in programs.items() if program is not None}
    for turn in range(rounds + 1):
        for name, pairs in found.items():
            begin = processes.finished_time()
            peak = 1024 * processes.run("-c", f"{programs[name]}\n{SAY}")
            if turn:
                pairs.append((processes.finished_time() - begin, peak))
    return {name: (*map(Measure, zip(*found[name], strict=True)),) if name in found else None for name in programs}


@cache
def starts(settings: Settings) -> dict[str, tuple[Measure, Measure] | None]:
    """Time and memory of each program."""
    installed = contenders(settings)
    programs = {name: PROGRAMS[name] + CHECK if installed[name] else None for name in installed}
    return alternating(programs, settings.starts)


def time_rows(settings: Settings) -> Iterator[Row]:
    if processes.can_measure_memory():
        values = {name: measures and measures[0] for name, measures in starts(settings).items()}
        yield Row("start, import, create a 64 × 64 layer, one output", values)


def resident_rows(settings: Settings) -> Iterator[Row]:
    if processes.can_measure_memory():
        values = {name: measures and measures[1] for name, measures in starts(settings).items()}
        yield Row("the same program", values)


def disk_rows(settings: Settings) -> Iterator[Row]:
    """The size of the installed packages; for lora_np, of the folder, because it may run from a checkout."""
    values: dict[str, Measure | None] = {}
    for name, installed in contenders(settings).items():
        roots = LIBRARIES.get(name, ("numpy",))
        size = sum(map(distribution_bytes, requirements(*roots))) + (folder_bytes() if name == "lora_np" else 0)
        values[name] = Measure((float(size),)) if installed else None
    yield Row("the package with its dependencies", values)


def requirements(*names: str) -> set[str]:
    """The given distributions and their dependencies, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # a requirement for other systems
        found.add(name)
        waiting += [re.match(r"[\w.-]+", need).group() for need in needs if "extra ==" not in need]
    return found


def distribution_bytes(name: str) -> int:
    paths = (path for path in metadata.files(name) or () if path.suffix != ".pyc")
    return sum(located.stat().st_size for located in map(Path, (path.locate() for path in paths)) if located.is_file())


def folder_bytes() -> int:
    files = (path for path in Path(lora_np.__file__).parent.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files)


GROUPS = (
    Group(
        "start",
        "Cold start: time",
        "A new interpreter imports what it needs, creates one adapted layer, computes one output and exits; all files are "
        "in the system's cache. The start and exit of Python itself are included.",
        time_rows,
        "lora_np",
    ),
    Group(
        "resident",
        "Cold start: memory",
        "The peak resident memory (VmHWM on Linux) of the same programs, including Python.",
        resident_rows,
        "lora_np",
        unit="B",
    ),
    Group(
        "disk",
        "Cold start: disk",
        "The installed size of each package with its dependencies, without bytecode and Python. For torch, this is the "
        "CPU-only build.",
        disk_rows,
        "lora_np",
        unit="B",
    ),
)
