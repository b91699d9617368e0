"""``lora-np combine``: the weighted sum of adapters as one adapter."""

import argparse
import math
from typing import Any

import numpy as np

from ..errors import NotSupportedError
from ..factors.surgery import combine
from ..factors.weights import AdapterWeights
from ..io.peft import save_peft
from ..terminal.table import table
from ._adapters import base_config, dropped, load_from_options, naming
from ._layers import frobenius, in_dtypes_of, in_float64, spectra
from ._options import ADAPTER, add_drop, add_task, finite, positive
from ._output import add_output, new_output
from ._text import counted, number, printable
from .verb import Verb, add_json, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters",
        metavar="ADAPTER",
        nargs="+",
        help=f"the adapters: each {ADAPTER}; missing layers count as zero; DyLoRA layers are used at full rank",
    )
    add_output(parser, "the PEFT folder to write")
    parser.add_argument(
        "--weights",
        type=finite,
        nargs="+",
        metavar="W",
        help="one factor for each adapter; must follow the adapters (default: all 1)",
    )
    parser.add_argument(
        "--rank", type=positive, metavar="R", help="the rank of the result (default: enough for the exact sum)"
    )
    add_task(parser)
    add_drop(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    paths: list[str] = arguments.adapters
    if arguments.weights is not None and len(arguments.weights) != len(paths):
        arguments.usage_error(f"--weights must have one value per adapter ({len(paths)}), got {len(arguments.weights)}")
    sources = [_additive(path, arguments) for path in paths]
    # A sum that is too large becomes infinite, and `combine` or `spectra` rejects it.
    with naming(" + ".join(paths)), np.errstate(over="ignore", invalid="ignore"):
        combined = combine([in_float64(source) for source in sources], arguments.weights, rank=arguments.rank)
    assert isinstance(combined.result, AdapterWeights)
    result = in_dtypes_of(combined.result, *sources)
    sigma = spectra(result, "the sum")
    with new_output(arguments.output, folder=True, force=arguments.force) as place, naming(place):
        save_peft(place, result, config=base_config(*sources))
    layers = []
    for path, layer in result.layers.items():
        error = combined.error[path]
        norm = math.hypot(frobenius(sigma[path]), error)  # the result and what was truncated are orthogonal
        ranks = [source.layers[path].rank if path in source.layers else 0 for source in sources]
        relative = error / norm if norm else 0.0
        layers.append(
            {"path": path, "ranks": ranks, "rank": layer.rank, "norm": norm, "error": error, "relative": relative}
        )
    if arguments.json:
        values = {"adapters": paths, "weights": arguments.weights, "output": arguments.output}
        print_json(values | {"dropped": dropped(*sources), "layers": layers})
    else:
        print(_text(layers))
        print(f"\n{printable(arguments.output)}: {counted(len(layers), 'layer')}")
    return 0


def _additive(path: str, arguments: argparse.Namespace) -> AdapterWeights:
    """Load an adapter that adds finite matrices to the weights."""
    weights = load_from_options(path, arguments)
    if weights.magnitudes:
        name = next(iter(weights.magnitudes))
        raise NotSupportedError(f"{path}: {name} is adapted by DoRA, which does not add a matrix to the weight")
    spectra(weights, path)  # names the adapter if its factors are not finite; `combine` could not
    return weights


def _text(layers: list[dict[str, Any]]) -> str:
    rows = [
        [
            printable(layer["path"]),
            " + ".join(map(str, layer["ranks"])),
            str(layer["rank"]),
            number(layer["norm"]),
            number(layer["error"]),
            f"{layer['relative']:.1e}" if layer["relative"] else "exact",
        ]
        for layer in layers
    ]
    return table(["layer", "ranks", "rank", "|sum|", "|error|", "relative error"], rows)


COMBINE = Verb(
    name="combine",
    summary="write the weighted sum of adapters as one adapter, a PEFT folder",
    example="lora-np combine french legal -o both --weights 0.7 0.3 --rank 8",
    add_arguments=_add_arguments,
    run=_run,
)
