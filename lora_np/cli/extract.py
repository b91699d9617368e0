"""``lora-np extract``: an adapter from a base and a fine-tuned checkpoint."""

import argparse
import os
import sys
from collections import Counter
from typing import Any

from ..errors import ArgumentError
from ..io.extract import Extracted, extract_adapter
from ..io.peft import save_peft
from ..terminal.table import table
from ._options import fraction, positive
from ._output import add_output, new_output
from ._text import counted, natural, number, plain, printable, share
from .verb import Verb, add_json, add_seed, print_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "base",
        metavar="BASE",
        help="the checkpoint before training: a safetensors file, a folder with model.safetensors, or one with shards",
    )
    parser.add_argument("tuned", metavar="TUNED", help="the checkpoint after training")
    add_output(parser, "the PEFT folder to write")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--rank", type=positive, metavar="R", help="the rank of every layer")
    goal.add_argument(
        "--energy",
        type=fraction,
        metavar="E",
        help="the fraction of the squared Frobenius norm of each change to keep, in (0, 1]; each layer gets the smallest "
        "sufficient rank",
    )
    parser.add_argument("--max-rank", type=positive, metavar="R", help="the largest rank that --energy may select")
    parser.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help="approximate only layers whose path is NAME or ends in it; can be repeated (default: all matrices except "
        "embeddings; what is not approximated is stored whole)",
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out the changed tensors whose names match a shell pattern such as '*.bias'; can be repeated",
    )
    parser.add_argument(
        "--fan-in-fan-out",
        action="store_true",
        help="the checkpoints store weights as (in, out), like Conv1D in transformers",
    )
    add_seed(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.max_rank is not None and arguments.energy is None:
        arguments.usage_error("--max-rank requires --energy")
    for path in (arguments.base, arguments.tuned):
        if not os.path.exists(path):
            raise ArgumentError(f"{path}: no such file or folder")
    with new_output(arguments.output, folder=True, force=arguments.force) as place:
        found = extract_adapter(
            arguments.base,
            arguments.tuned,
            rank=arguments.rank,
            energy=arguments.energy,
            max_rank=arguments.max_rank,
            targets=arguments.target,
            drop=arguments.drop,
            fan_in_fan_out=arguments.fan_in_fan_out,
            rng=arguments.seed,
        )
        config = {"base_model_name_or_path": arguments.base, "fan_in_fan_out": arguments.fan_in_fan_out}
        save_peft(place, found.adapter, config=config)
    for key in found.adapter.dropped:
        print(f"lora-np: {printable(arguments.tuned)}: dropped {printable(key)}", file=sys.stderr)
    if arguments.json:
        print_json(_values(found, arguments))
    else:
        print(_text(found, arguments.output))
    return 0


def _values(found: Extracted, arguments: argparse.Namespace) -> Any:
    layers = [{"path": path, **found.layers[path]._asdict()} for path in sorted(found.layers, key=natural)]
    whole = [{"name": name, "shape": list(array.shape)} for name, array in found.adapter.whole.items()]
    values = {name: getattr(arguments, name) for name in ("base", "tuned", "output", "seed")}
    return plain(
        values | {"layers": layers, "whole": whole, "missing": list(found.missing), "dropped": list(found.adapter.dropped)}
    )


def _text(found: Extracted, output: str) -> str:
    rows = [
        [printable(path), str(layer.rank), number(layer.norm), share(layer.energy)]
        for path, layer in sorted(found.layers.items(), key=lambda item: natural(item[0]))
    ]
    lines = [table(["layer", "rank", "|dW|", "energy kept"], rows), ""] if rows else []
    whole = found.adapter.whole
    lines += [f"stored whole: {printable(name)} ({_shape(array.shape)})" for name, array in whole.items()]
    lines += [f"only in BASE, so not in the adapter: {printable(name)}" for name in found.missing]
    ranks = Counter(layer.rank for layer in found.layers.values())
    used = ", ".join(f"{count} of rank {rank}" for rank, count in sorted(ranks.items()))
    totals = f"{counted(len(rows), 'layer')}{f' ({used})' if len(ranks) > 1 else ''}, {counted(len(whole), 'whole tensor')}"
    return "\n".join([*lines, f"{printable(output)}: {totals}, {counted(found.adapter.parameter_count, 'parameter')}"])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


EXTRACT = Verb(
    name="extract",
    summary="write the low-rank difference of a fine-tuned checkpoint from its base as an adapter, a PEFT folder",
    example="lora-np extract base-model tuned-model -o my-adapter --rank 16\n"
    "lora-np extract base.safetensors tuned.safetensors -o my-adapter --energy 0.95 --max-rank 64",
    add_arguments=_add_arguments,
    run=_run,
)
