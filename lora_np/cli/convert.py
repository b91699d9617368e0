"""``lora-np convert``: adapters of any supported format as a PEFT folder."""

import argparse
import os

from ..io.peft import save_peft
from ..terminal.table import table
from ._adapters import DEFAULT, UNNAMED, at_rank, base_config, dropped, naming, require_adapters
from ._layers import HEADER, summary, summary_cells
from ._options import ADAPTER, add_drop, add_task, positive
from ._output import add_output, new_output
from ._text import counted, printable
from .verb import Verb, add_json, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help=f"the adapter: {ADAPTER}; or a folder of named PEFT adapters")
    add_output(parser, "the PEFT folder to write; several adapters are written to one subfolder each")
    parser.add_argument(
        "--rank",
        type=positive,
        metavar="R",
        help="truncate DyLoRA layers to this active rank and write them as plain LoRA (default: write all ranks, with the "
        "DyLoRA settings in the metadata)",
    )
    add_task(parser)
    add_drop(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    found = require_adapters(arguments.input, drop=arguments.drop)
    if arguments.task is None:
        adapters = {name: found.read(name) for name in found.names}
    else:
        adapters = {UNNAMED: found.read(found.choose(arguments.task))}
    if arguments.rank is not None:
        adapters = {name: at_rank(weights, arguments.rank, found.path) for name, weights in adapters.items()}
    with new_output(arguments.output, folder=True, force=arguments.force) as place, naming(place):
        if found.model is not None and arguments.task is None:
            save_peft(place, found.model, rank=arguments.rank)  # checks that tasks can be folder names
        else:
            for name, weights in adapters.items():
                folder = place if name in (UNNAMED, DEFAULT) else os.path.join(place, name)
                save_peft(folder, weights, config=base_config(weights))
    reports = {name: [summary(*item) for item in weights.layers.items()] for name, weights in adapters.items()}
    if arguments.json:
        values = [{"name": name, "layers": layers, "dropped": dropped(adapters[name])} for name, layers in reports.items()]
        print_json({"input": arguments.input, "kind": found.kind, "output": arguments.output, "adapters": values})
        return 0
    for name, layers in reports.items():
        if name:
            print(f"{printable(name)}:")
        print(f"{table(HEADER, map(summary_cells, layers))}\n")
    source, target = printable(found.path), printable(arguments.output)
    print(f"{source} ({found.kind}) -> {target}: {counted(len(reports), 'adapter')}")
    return 0


CONVERT = Verb(
    name="convert",
    summary="convert adapters from any supported format to a PEFT folder",
    example="lora-np convert lora.safetensors -o my-adapter\nlora-np convert model.npz -o french --task french --rank 4",
    add_arguments=_add_arguments,
    run=_run,
)
