"""The adapters of a model in an ONNX file: which of their arrays can be inputs, and the metadata that describe them."""

from __future__ import annotations

import json
from typing import TypeAlias

from ..adapters import DyLoRAAdapter, LoRAAdapterBase, MultiLoRAAdapter
from ..adapters.rank_choice import RankChoice
from ..base import Layer, prefixed
from ..layers.low_rank import LowRankLayer
from ._onnx_rows import mixed_tasks

RANK_AXES = {"matrix_a": 1, "matrix_b": 0, "projection_a": 1, "projection_b": 0, "vector_d": 0}
"""The axis of each array along which the components of the adapter lie."""

FreeAxes: TypeAlias = dict[str, tuple[int, str] | None]
"""For each array, the axis of the components and the name of that axis; None if all its sizes are fixed."""


def adapter_axes(layer: Layer) -> FreeAxes:
    """The arrays and scalings of all adapters by name."""
    found: FreeAxes = {}
    for path, inner in layer.walk().items():
        own: FreeAxes = {}
        if isinstance(inner, LowRankLayer):
            own["scaling"] = None
        if isinstance(inner, LowRankLayer | LoRAAdapterBase):
            for name in inner.parameter_names:
                axis = f"{path}.rank".lstrip(".")
                own[name] = (RANK_AXES[name], axis) if name in RANK_AXES else None
        found |= prefixed(path, own) if path else own
    return found


def _ranks(choice: RankChoice) -> dict[str, str]:
    return {"rank": str(choice.current_deployment_rank), "ranks": json.dumps(choice.active_ranks)}


def metadata(layer: Layer, adapters: str) -> dict[str, str]:
    """The properties of a file: how it holds the adapters, and the kind, tasks, ranks and alpha of each.

    ``first.kind`` describes the adapter at the path ``first``, ``first.lora.rank`` its branch. Lists are JSON. A task
    with ranks is deployed at ``first.tasks.ner.deployed.rank``.
    """
    is_mixed = adapters == "mixed"
    found = {"adapters": adapters}
    if is_mixed and mixed_tasks(layer):
        found["tasks"] = json.dumps(mixed_tasks(layer))
    absent: set[str] = set()
    for path, inner in layer.walk().items():
        own: dict[str, str] = {}
        prefix = f"{path}." if path else ""
        if isinstance(inner, LoRAAdapterBase):
            own["kind"] = type(inner).__name__
        if isinstance(inner, MultiLoRAAdapter) and not is_mixed:
            own["task"] = inner.current_task
            absent |= {f"{prefix}tasks.{name}" for name in inner.task_adapters if name != inner.current_task}
        if isinstance(inner, DyLoRAAdapter):
            own |= _ranks(inner)
        if isinstance(inner, MultiLoRAAdapter):
            for name, ranks in inner.task_ranks.items():
                if is_mixed or name == inner.current_task:
                    own |= prefixed(f"tasks.{name}.deployed", _ranks(ranks))
        if isinstance(inner, LowRankLayer) and path not in absent:
            own |= {"rank": str(inner.rank), "alpha": repr(float(inner.alpha))}
        found |= {f"{prefix}{name}": value for name, value in own.items()}
    return found
