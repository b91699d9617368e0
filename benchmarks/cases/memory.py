"""The peak memory of training."""

import json
from collections.abc import Iterator

from .. import processes
from ..groups import Group, Row, Settings
from ..harness import DisagreementError, Measure
from ..ours import MEMORY
from ..peers import LIBRARIES, PEFT, is_installed

OURS = {"lora_np": "lean", "lora_np fast": "fast", "lora_np max": "max"}
FULL, FULL_TORCH = "full fine-tuning, lora_np", "full fine-tuning, torch"

SIZES = [(1024, 8, 32, 8), (1024, 8, 256, 8), (2048, 4, 32, 8)]


def contenders(settings: Settings, *, full: bool = True) -> dict[str, tuple[str, str] | None]:
    """Library and mode by the candidate's name."""
    found: dict[str, tuple[str, str] | None] = {FULL: ("lora_np", "full")} if full else {}
    found |= {name: ("lora_np", mode) for name, mode in OURS.items() if mode in MEMORY}
    if PEFT in settings.peers:
        installed = is_installed(*LIBRARIES[PEFT])
        found |= {FULL_TORCH: ("torch", "full") if installed else None} if full else {}
        found |= {PEFT: ("torch", "lora") if installed else None}
    return found


def row(
    settings: Settings, label: str, size: tuple[int, int, int, int], *, full: bool = True, x: float | None = None
) -> Row:
    """The measures of all candidates, which must train the same number of parameters."""
    values: dict[str, Measure | None] = {}
    trained: dict[bool, int] = {}
    for name, contender in contenders(settings, full=full).items():
        if contender is None:
            values[name] = None
            continue
        arguments = json.dumps([*contender, *size])
        results = [processes.run("-m", "benchmarks.trainings", arguments) for _ in range(settings.trainings)]
        values[name] = Measure(tuple(result["bytes"] for result in results))
        count = trained.setdefault(contender[1] == "full", results[0]["trained"])
        if results[0]["trained"] != count:
            raise DisagreementError(f"{label}: {name} trains {results[0]['trained']} parameters, others {count}")
    return Row(label, values, x)


def rows(settings: Settings) -> Iterator[Row]:
    if not processes.can_measure_memory():
        return
    for width, depth, batch, rank in settings.sizes(SIZES, [(256, 2, 4, 2)]):
        label = f"{depth} layers {width} × {width}, batch {batch}, rank {rank}"
        yield row(settings, label, (width, depth, batch, rank))


GROUPS = (
    Group(
        "memory",
        "Peak memory of training",
        "Dense layers with ReLU, three steps with Adam: either all weights and biases are trained, or a LoRA on each layer "
        "with everything else frozen. Each training run has a separate process; the number is the peak of its resident "
        "memory (VmHWM on Linux) minus the resident memory after the imports and a step on a tiny model. It includes "
        "weights, activations, gradients, the optimizer's state and temporary arrays, but not the libraries themselves.",
        rows,
        FULL,
        unit="B",
    ),
)
