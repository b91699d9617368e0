"""``lora-np combine``: several adapters as one."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import NotSupportedError
from ..factors.combining import MAJORITY_SIGNS, METHODS, combine, uses_density
from ..factors.mixing import MIXTURES
from ..factors.weights import AdapterWeights
from ..io.peft import save_peft
from ..terminal.table import table
from ._adapters import base_config, dropped, load_from_options, naming
from ._layers import frobenius, in_dtypes_of, in_float64, spectra
from ._options import ADAPTER, add_drop, add_task, finite, fraction, positive
from ._output import add_output, new_output
from ._text import counted, number, printable
from .verb import Verb, add_json, add_seed, print_json

SETTINGS = ("adapters", "weights", "weights_for", "method", "rank", "density", "majority_sign", "seed", "output")
"""The options that the JSON report repeats."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters",
        metavar="ADAPTER",
        nargs="+",
        help=f"the adapters: each {ADAPTER}; missing layers contribute nothing; DyLoRA layers are used at full rank",
    )
    add_output(parser, "the PEFT folder to write")
    _add_weights(parser)
    _add_method(parser)
    add_seed(parser)
    add_task(parser)
    add_drop(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=finite,
        nargs="+",
        metavar="W",
        help="one factor for each adapter; must follow the adapters (default: all 1)",
    )
    parser.add_argument(
        "--weights-for",
        nargs="+",
        action="append",
        default=[],
        metavar=("PATTERN", "W"),
        help="other factors for the layers whose paths match a shell pattern such as '*.mlp.*'; can be repeated, and the "
        "first pattern that matches counts",
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="cat",
        metavar="METHOD",
        help="how to combine, as in PEFT's add_weighted_adapter (default: cat, the weighted sum): one of "
        f"{', '.join(METHODS)}",
    )
    parser.add_argument(
        "--rank",
        type=positive,
        metavar="R",
        help="the rank of the result, for cat (default: enough for the exact sum) and the methods with svd (default: the "
        "largest of the ranks)",
    )
    parser.add_argument(
        "--density",
        type=fraction,
        metavar="D",
        help="the fraction of elements to keep, in (0, 1], for ties, dare and magnitude_prune",
    )
    parser.add_argument(
        "--majority-sign",
        choices=MAJORITY_SIGNS,
        default="total",
        help="for ties: the sign of the sum of the values, or that of more values (default: total)",
    )


def _run(arguments: argparse.Namespace) -> int:
    paths: list[str] = arguments.adapters
    weights = _weights(arguments)
    _check_usage(arguments)
    sources = [_additive(path, arguments) for path in paths]
    wide = [in_float64(source) for source in sources]
    # A sum that is too large becomes infinite, and `combine` or `spectra` rejects it.
    with naming(" + ".join(paths)), np.errstate(over="ignore", invalid="ignore"):
        combined = combine(
            wide,
            weights,
            method=arguments.method,
            rank=arguments.rank,
            density=arguments.density,
            majority_sign=arguments.majority_sign,
            rng=arguments.seed,
        )
        exact = combine(wide, weights)
    assert isinstance(combined.result, AdapterWeights)
    assert isinstance(exact.result, AdapterWeights)
    result = in_dtypes_of(combined.result, *sources)
    spectra(result, "the sum")  # rejects what is not finite
    with new_output(arguments.output, folder=True, force=arguments.force) as place, naming(place):
        save_peft(place, result, config=base_config(*sources))
    layers = _reports(result, spectra(exact.result, "the sum"), combined.error, sources)
    if arguments.json:
        values = {name: getattr(arguments, name) for name in SETTINGS}
        print_json(values | {"dropped": dropped(*sources), "layers": layers})
    else:
        print(_text(layers))
        print(f"\n{printable(arguments.output)}: {counted(len(layers), 'layer')}")
    return 0


def _weights(arguments: argparse.Namespace) -> list[float] | dict[str, list[float]] | None:
    """The weights, by pattern if some are."""
    count = len(arguments.adapters)
    if arguments.weights is not None and len(arguments.weights) != count:
        arguments.usage_error(f"--weights must have one value per adapter ({count}), got {len(arguments.weights)}")
    if not arguments.weights_for:
        weights: list[float] | None = arguments.weights
        return weights
    by_pattern: dict[str, list[float]] = {}
    for pattern, *texts in arguments.weights_for:
        if len(texts) != count:
            arguments.usage_error(
                f"--weights-for must have a pattern and one value per adapter ({count}), got {len(texts)}"
            )
        try:
            by_pattern.setdefault(pattern, [finite(text) for text in texts])
        except argparse.ArgumentTypeError as error:
            arguments.usage_error(f"argument --weights-for: {error}")
    return {**by_pattern, "*": by_pattern.get("*", arguments.weights or [1.0] * count)}


def _check_usage(arguments: argparse.Namespace) -> None:
    """Reject options that do not suit the method."""
    needed = uses_density(arguments.method)
    if needed != (arguments.density is not None):
        arguments.usage_error(f"--method {arguments.method} {'requires' if needed else 'does not use'} --density")
    if arguments.rank is not None and arguments.method in MIXTURES:
        arguments.usage_error(f"--method {arguments.method} keeps the rank: it does not use --rank")


def _reports(
    result: AdapterWeights, sigma: Mapping[str, Array], errors: Mapping[str, float], sources: Sequence[AdapterWeights]
) -> list[dict[str, Any]]:
    """The ranks of each layer, and its distance from the weighted sum, whose singular values are given."""
    reports: list[dict[str, Any]] = []
    for path, layer in result.layers.items():
        norm, error = frobenius(sigma[path]), errors[path]
        ranks = [source.layers[path].rank if path in source.layers else 0 for source in sources]
        relative = error / norm if norm else 0.0
        reports.append(
            {"path": path, "ranks": ranks, "rank": layer.rank, "norm": norm, "error": error, "relative": relative}
        )
    return reports


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
    return table(["layer", "ranks", "rank", "|sum|", "|difference|", "relative"], rows)


COMBINE = Verb(
    name="combine",
    summary="combine adapters into one, a PEFT folder: by their weighted sum, or by the other methods of PEFT",
    example="lora-np combine french legal -o both --weights 0.7 0.3 --rank 8\n"
    "lora-np combine french legal -o both --method ties --density 0.2 --weights-for '*.mlp.*' 0.5 1",
    add_arguments=_add_arguments,
    run=_run,
)
