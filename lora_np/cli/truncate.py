"""``lora-np truncate``: an adapter at a lower rank."""

import argparse
from typing import Any

from ..factors.surgery import retained_energy, truncate
from ..io.peft import save_peft
from ..terminal.table import table
from ._adapters import base_config, dropped, load_from_options, naming
from ._layers import in_dtypes_of, in_float64, spectra
from ._options import ADAPTER, add_drop, add_task, at_least_1, fraction, positive
from ._output import add_output, new_output
from ._text import counted, printable, share
from .verb import Verb, add_json, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        help=f"the adapter: {ADAPTER}; DyLoRA layers are used at full rank and become plain LoRA",
    )
    add_output(parser, "the PEFT folder to write")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--rank", type=positive, metavar="R", help="the new rank; layers of lower rank keep theirs")
    goal.add_argument(
        "--energy",
        type=fraction,
        metavar="E",
        help="the fraction of the squared Frobenius norm to keep, in (0, 1]; each layer gets the smallest sufficient rank",
    )
    goal.add_argument(
        "--ratio",
        type=at_least_1,
        metavar="Q",
        help="keep the singular values that are at least the largest of their layer divided by Q",
    )
    goal.add_argument(
        "--parameters",
        type=positive,
        metavar="N",
        help="one budget for all layers: the ranks that keep the most energy in total with at most N elements of A and B",
    )
    parser.add_argument(
        "--max-rank", type=positive, metavar="R", help="an upper bound for the ranks chosen by other options"
    )
    add_task(parser)
    add_drop(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.rank is not None and arguments.max_rank is not None:
        arguments.usage_error("--max-rank is for --energy, --ratio and --parameters, not for --rank")
    weights = load_from_options(arguments.adapter, arguments)
    sigma = spectra(weights, arguments.adapter)
    with naming(arguments.adapter):
        exact = truncate(
            in_float64(weights),
            rank=arguments.rank,
            energy=arguments.energy,
            ratio=arguments.ratio,
            parameters=arguments.parameters,
            max_rank=arguments.max_rank,
        )
    smaller = in_dtypes_of(exact, weights)
    with new_output(arguments.output, folder=True, force=arguments.force) as place, naming(place):
        save_peft(place, smaller, config=base_config(weights))
    layers: list[dict[str, Any]] = [
        {
            "path": path,
            "rank_before": weights.layers[path].rank,
            "rank": layer.rank,
            "retained_energy": retained_energy(sigma[path], layer.rank),
        }
        for path, layer in smaller.layers.items()
    ]
    before, after = weights.parameter_count, smaller.parameter_count
    if arguments.json:
        values = {"adapter": arguments.adapter, "output": arguments.output, "dropped": dropped(weights), "layers": layers}
        print_json(values | {"parameters_before": before, "parameters": after})
        return 0
    rows = [
        [printable(layer["path"]), str(layer["rank_before"]), str(layer["rank"]), share(layer["retained_energy"])]
        for layer in layers
    ]
    print(table(["layer", "rank before", "rank after", "energy kept"], rows))
    print(f"\n{printable(arguments.output)}: {counted(len(rows), 'layer')}, {before:,} -> {after:,} parameters")
    return 0


TRUNCATE = Verb(
    name="truncate",
    summary="write the best approximation of an adapter at a lower rank, as a PEFT folder",
    example="lora-np truncate my-adapter -o smaller --rank 4\n"
    "lora-np truncate my-adapter -o smaller --energy 0.99 --max-rank 32\n"
    "lora-np truncate my-adapter -o smaller --parameters 1000000",
    add_arguments=_add_arguments,
    run=_run,
)
