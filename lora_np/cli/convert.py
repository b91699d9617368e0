"""``lora-np convert``: adapters of any format as a PEFT folder."""

import argparse
import os
from typing import Any

from ..factors.weights import AdapterWeights
from ..io.peft import save_peft
from ..terminal.table import table
from ._adapters import ADAPTER, DEFAULT, add_choice, at_rank, kept_config, load_adapter, naming, read, require_adapters
from ._options import positive
from ._output import add_output, new_output
from ._text import counted, number, printable
from .verb import Verb, add_json, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help=f"{ADAPTER}; or a folder of named PEFT adapters")
    add_output(parser, "the PEFT folder to write; several adapters get a folder each inside it")
    parser.add_argument(
        "--rank",
        type=positive,
        metavar="R",
        help="an active rank at which to take DyLoRA layers, as plain ones (default: whole, with settings in the metadata)",
    )
    add_choice(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    strict = not arguments.lenient
    found = require_adapters(arguments.input, strict=strict)
    if arguments.task is None:
        sets = {name: read(found, name) for name in found.names}
    else:
        sets = {"": load_adapter(arguments.input, task=arguments.task, strict=strict)}
    if arguments.rank is not None:
        sets = {name: at_rank(weights, arguments.rank, found.path) for name, weights in sets.items()}
    with new_output(arguments.output, folder=True, force=arguments.force) as place, naming(place):
        if found.model is not None and arguments.task is None:
            save_peft(place, found.model, rank=arguments.rank)
        else:
            for name, weights in sets.items():
                inner = os.path.join(place, "" if name == DEFAULT else name)
                save_peft(inner, weights, config=kept_config(weights))
    if arguments.json:
        adapters = [{"name": name, "layers": _values(weights)} for name, weights in sets.items()]
        print_json({"input": arguments.input, "kind": found.kind, "output": arguments.output, "adapters": adapters})
        return 0
    for name, weights in sets.items():
        if name:
            print(f"{printable(name)}:")
        print(f"{_text(weights)}\n")
    print(f"{printable(found.path)} -> {printable(arguments.output)}: {found.kind}, {counted(len(sets), 'adapter')}")
    return 0


def _values(weights: AdapterWeights) -> list[dict[str, Any]]:
    return [
        {
            "path": path,
            "input_size": layer.input_size,
            "output_size": layer.output_size,
            "rank": layer.rank,
            "alpha": layer.alpha,
            "scaling": layer.scaling,
        }
        for path, layer in weights.layers.items()
    ]


def _text(weights: AdapterWeights) -> str:
    rows = [[printable(path), *map(number, numbers)] for path, *numbers in map(dict.values, _values(weights))]
    return table(["layer", "in", "out", "rank", "alpha", "scaling"], rows)


CONVERT = Verb(
    name="convert",
    summary="write adapters of any format that lora_np reads as a PEFT folder",
    example="lora-np convert lora.safetensors -o my-adapter\nlora-np convert model.npz -o french --task french --rank 4",
    add_arguments=_add_arguments,
    run=_run,
)
