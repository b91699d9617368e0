"""``lora-np combine``: the weighted sum of adapters as one adapter."""

import argparse
import math
from typing import Any

from ..errors import ArgumentError, NotSupportedError
from ..factors.surgery import combine
from ..factors.weights import AdapterWeights
from ..io.peft import save_peft
from ..terminal.table import table
from ._adapters import ADAPTER, add_choice, kept_config, load_adapter, naming
from ._options import finite, positive
from ._output import add_output, new_output
from ._spectra import finite_spectra, frobenius, in_dtypes_of, in_float64
from ._text import counted, number, printable
from .verb import Verb, add_json, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters",
        metavar="ADAPTER",
        nargs="+",
        help=f"{ADAPTER}; a layer that one does not have gets nothing from it; DyLoRA layers are taken at their full rank",
    )
    add_output(parser, "the PEFT folder to write")
    parser.add_argument(
        "--weights",
        type=finite,
        nargs="+",
        metavar="W",
        help="a factor for each adapter, after the adapters (default: all 1)",
    )
    parser.add_argument(
        "--rank", type=positive, metavar="R", help="the rank of the result (default: as high as the exact sum needs)"
    )
    add_choice(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    paths: list[str] = arguments.adapters
    if arguments.weights is not None and len(arguments.weights) != len(paths):
        arguments.usage_error(f"--weights must be one for each of {len(paths)} adapters, got {len(arguments.weights)}")
    sources = [_additive(path, arguments) for path in paths]
    _check_size(sources, arguments.weights or [1.0] * len(paths))
    with naming(" + ".join(paths)):
        combined = combine([in_float64(source) for source in sources], arguments.weights, rank=arguments.rank)
        assert isinstance(combined.result, AdapterWeights)
        result = in_dtypes_of(combined.result, *sources)
    spectra = finite_spectra(result, "the sum")
    with new_output(arguments.output, folder=True, force=arguments.force) as place, naming(place):
        save_peft(place, result, config=kept_config(*sources))
    layers = []
    for path, layer in result.layers.items():
        error = combined.error[path]
        norm = math.hypot(frobenius(spectra[path]), error)  # what is kept and what is cut off are orthogonal
        ranks = [source.layers[path].rank if path in source.layers else 0 for source in sources]
        relative = error / norm if norm else 0.0
        layers.append(
            {"path": path, "ranks": ranks, "rank": layer.rank, "norm": norm, "error": error, "relative": relative}
        )
    if arguments.json:
        print_json({"adapters": paths, "weights": arguments.weights, "output": arguments.output, "layers": layers})
    else:
        print(_text(layers))
        print(f"\n{printable(arguments.output)}: {counted(len(layers), 'layer')}")
    return 0


def _additive(path: str, arguments: argparse.Namespace) -> AdapterWeights:
    """An adapter that adds finite numbers to weights."""
    weights = load_adapter(path, task=arguments.task, strict=not arguments.lenient)
    if weights.magnitudes:
        name = next(iter(weights.magnitudes))
        raise NotSupportedError(f"{path}: {name} is adapted by DoRA, which does not add a matrix to the weight")
    finite_spectra(weights, path)
    return weights


def _check_size(sources: list[AdapterWeights], weights: list[float]) -> None:
    """Refuse a sum that float64 cannot hold: LAPACK may never return from the decomposition of an infinite matrix."""
    for path in {path for source in sources for path in source.layers}:
        parts = [(source.layers[path], abs(w)) for source, w in zip(sources, weights, strict=True) if path in source.layers]
        left = sum(weight * layer.scaling * frobenius(layer.matrix_a) for layer, weight in parts)
        right = sum(frobenius(layer.matrix_b) for layer, _ in parts)
        if not math.isfinite(left * right):
            raise ArgumentError(f"{path}: the weighted sum is too large for float64")


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
    return table(["layer", "ranks", "rank", "|sum|", "|cut off|", "relative"], rows)


COMBINE = Verb(
    name="combine",
    summary="write the weighted sum of adapters as one adapter, a PEFT folder",
    example="lora-np combine french legal -o both --weights 0.7 0.3 --rank 8",
    add_arguments=_add_arguments,
    run=_run,
)
