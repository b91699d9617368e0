"""What ``inspect`` says below its table: which layers are of DyLoRA, DoRA, convolutions or experts, and what that means."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ._layers import kernel_text
from ._text import number, printable


def layer_notes(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each kind of layer that is there, given the reports on all layers."""
    found: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        for note in _notes(layer):
            found.setdefault(note, []).append(layer["path"])
    return [f"{kind} ({_which(paths)}): {meaning}" for (kind, meaning), paths in found.items()]


def _notes(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The kinds that a layer is of, and what they mean."""
    if "dylora" in layer:
        yield "DyLoRA", _dylora_text(layer["dylora"])
    if "magnitude_of" in layer:
        axis = "columns" if layer["magnitude_of"] == "inputs" else "rows"
        yield "DoRA", f"the {axis} of weight + dW are rescaled to trained norms"
    if "kernel" in layer:
        yield kernel_text(layer["kernel"]), "in counts the elements of a patch"
    if "experts" in layer:
        yield "experts", "only the shapes of a base tell which parameter of a module is which"


def _dylora_text(settings: Mapping[str, Any]) -> str:
    ranks = ", ".join(map(str, settings["active_ranks"]))
    odds = ", ".join(number(odd) for odd in settings["rank_distribution"])
    return (
        f"active ranks {ranks} with probabilities {odds}; deployment rank {settings['current_deployment_rank']}; "
        f"mode {settings['mode']}; scaling {settings['scaling']}"
    )


def _which(paths: list[str]) -> str:
    return printable(paths[0]) if len(paths) == 1 else f"{len(paths)} layers"
