"""The most important ratios, for the README's chart and the top of the page."""

from collections.abc import Iterator
from typing import NamedTuple

from ..cases.step import label
from ..harness import Measure
from ..peers import PEFT
from ..results import Results

PEER = PEFT

KEY = {
    "step": {
        label(256, 1024, 8): "training step, batch 256, 1024 × 1024",
        label(32, 1024, 8): "training step, batch 32, 1024 × 1024",
        label(8, 1024, 8): "training step, batch 8, 1024 × 1024",
        label(1, 64, 4): "training step, batch 1, 64 × 64",
    },
    "mixed": {"64 tasks uniform, batch 256, 1024 × 1024": "mixed batch, 64 tasks"},
    "mixed-step": {"64 tasks uniform, batch 256, 1024 × 1024": "mixed batch, 64 tasks, training"},
    "encoder-step": {
        "32 × 32 tokens": "training step, MiniLM encoder, equal lengths",
        "32 sentences of up to 64 tokens, 58% full": "training step, MiniLM encoder, different lengths",
    },
    "memory": {"8 layers 1024 × 1024, batch 32, rank 8": "peak memory of training"},
    "start": {"start, import, create a 64 × 64 layer, one output": "cold start, time"},
    "resident": {"the same program": "cold start, memory"},
    "disk": {"the package with its dependencies": "installed size"},
}
"""Short labels by the group's name and the row's label."""


class KeyRatio(NamedTuple):
    """One line of the chart."""

    label: str
    plain: float
    """lora_np in its default configuration, divided by the peer."""
    best: float
    """Its best variant, divided by the peer."""


def key_ratios(results: Results) -> Iterator[KeyRatio]:
    """The key ratios that were measured."""
    for group, labels in KEY.items():
        for row in results.groups.get(group, []):
            mine, its = row.values.get("lora_np"), row.values.get(PEER)
            if row.label in labels and mine is not None and its is not None:
                ours = [m for name, m in row.values.items() if isinstance(m, Measure) and name.startswith("lora_np")]
                yield KeyRatio(labels[row.label], mine.ratio_to(its), min(measure.ratio_to(its) for measure in ours))
