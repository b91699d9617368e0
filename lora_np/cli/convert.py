"""``lora-np convert``: adapters from any supported format to PEFT, kohya, diffusers or mlx-lm."""

import argparse
import os
from collections.abc import Callable

from ..errors import ArgumentError
from ..factors.weights import AdapterWeights
from ..io.base_names import COMPONENTS, components, needs_base_names, with_base_names, with_tensor_names
from ..io.diffusers import save_diffusers
from ..io.kohya import save_kohya
from ..io.mlx import save_mlx
from ..io.peft import save_peft
from ..terminal.table import table
from ._adapters import DEFAULT, UNNAMED, Adapters, at_rank, base_config, dropped, naming, require_adapters
from ._layers import HEADER, summary, summary_cells
from ._options import ADAPTER, add_alpha, add_drop, add_task, positive
from ._output import add_output, new_output
from ._text import counted, printable
from .verb import Verb, add_json, print_json

FORMATS = ("peft", "kohya", "diffusers", "mlx")
FOLDERS = ("peft", "mlx")
"""The formats that are folders; the others are files."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help=f"the adapter: {ADAPTER}; or a folder of named PEFT adapters")
    add_output(
        parser,
        "the folder to write (peft, mlx) or the file (kohya, diffusers); several adapters, and the components of a "
        "pipeline, become subfolders of a PEFT folder",
    )
    parser.add_argument("--to", choices=FORMATS, default="peft", help="the format to write (default: peft)")
    parser.add_argument(
        "--base",
        metavar="BASE",
        help="the model, or the folder of a diffusers pipeline, that has the module names for the layers of a kohya or "
        "diffusers file, or the sizes of those of VeRA",
    )
    parser.add_argument(
        "--component",
        choices=COMPONENTS,
        metavar="NAME",
        help=f"the component of a pipeline that the adapter, or BASE, belongs to: {', '.join(COMPONENTS)}",
    )
    parser.add_argument(
        "--rank",
        type=positive,
        metavar="R",
        help="truncate DyLoRA layers to this active rank and write them as plain LoRA (default: write all ranks, with the "
        "DyLoRA settings in the metadata)",
    )
    add_task(parser)
    add_alpha(parser)
    add_drop(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    found = require_adapters(arguments.input, drop=arguments.drop, alpha=arguments.alpha)
    adapters = {name: _named(found, weights, arguments) for name, weights in _read(found, arguments).items()}
    if arguments.rank is not None:
        adapters = {name: at_rank(weights, arguments.rank, found.path) for name, weights in adapters.items()}
    parts = _parts(found, adapters, arguments)
    with new_output(arguments.output, folder=arguments.to in FOLDERS, force=arguments.force) as place, naming(place):
        if found.model is not None and arguments.task is None and arguments.to == "peft":
            save_peft(place, found.model, rank=arguments.rank)  # checks that tasks can be folder names
        else:
            for name, weights in parts.items():
                folder = place if name in (UNNAMED, DEFAULT) else os.path.join(place, name)
                _writer(arguments)(folder, weights)
    _report(found, parts, arguments)
    return 0


def _read(found: Adapters, arguments: argparse.Namespace) -> dict[str, AdapterWeights]:
    """The adapters to convert; formats other than PEFT hold one."""
    if arguments.task is None and arguments.to == "peft":
        return {name: found.read(name) for name in found.names}
    return {UNNAMED: found.read(found.choose(arguments.task))}


def _named(found: Adapters, weights: AdapterWeights, arguments: argparse.Namespace) -> AdapterWeights:
    """The adapter with the names and sizes of a base, where the file does not tell them."""
    if found.by_base is None and arguments.base is not None:
        raise ArgumentError(f"{found.path}: --base is for files that do not name their modules, and this one does")
    if found.by_base is not with_tensor_names and arguments.component and arguments.to in FOLDERS:
        raise ArgumentError(
            f"{found.path}: --component is for image models, and neither this nor {arguments.to} is for one"
        )
    if found.by_base is not None and arguments.base is not None:
        if found.by_base is not with_tensor_names:
            return found.by_base(weights, arguments.base)
        return with_base_names(weights, arguments.base, component=arguments.component)
    needs_names = arguments.to != "kohya" and needs_base_names(weights)
    if needs_names or (found.by_base is not None and found.by_base is not with_tensor_names):
        raise ArgumentError(
            f"{found.path}: the file does not tell the {_unknown(needs_names)} of the layers; --base gives them"
        )
    return weights


def _unknown(names: bool) -> str:
    return "module names" if names else "input sizes"


def _parts(
    found: Adapters, adapters: dict[str, AdapterWeights], arguments: argparse.Namespace
) -> dict[str, AdapterWeights]:
    """The adapters to write, by name; a PEFT folder has one for each component of a pipeline."""
    if found.by_base is not with_tensor_names or arguments.to not in FOLDERS:
        return adapters
    (parts,) = map(components, adapters.values())
    if len(parts) == 1:
        return dict(zip([UNNAMED], parts.values(), strict=True))
    if arguments.to == "mlx":
        raise ArgumentError(f"{found.path}: an mlx-lm adapter is for one model, and this is for {', '.join(parts)}")
    return parts


def _writer(arguments: argparse.Namespace) -> Callable[[str, AdapterWeights], None]:
    """The function that writes an adapter in the chosen format."""
    return {
        "peft": lambda place, weights: save_peft(place, weights, config=base_config(weights)),
        "mlx": save_mlx,
        "kohya": lambda place, weights: save_kohya(place, weights, component=arguments.component),
        "diffusers": lambda place, weights: save_diffusers(place, weights, component=arguments.component),
    }[arguments.to]


def _report(found: Adapters, parts: dict[str, AdapterWeights], arguments: argparse.Namespace) -> None:
    reports = {name: [summary(*item) for item in weights.layers.items()] for name, weights in parts.items()}
    if arguments.json:
        values = [{"name": name, "layers": layers, "dropped": dropped(parts[name])} for name, layers in reports.items()]
        print_json(
            {
                "input": arguments.input,
                "kind": found.kind,
                "output": arguments.output,
                "format": arguments.to,
                "adapters": values,
            }
        )
        return
    for name, layers in reports.items():
        if name:
            print(f"{printable(name)}:")
        print(f"{table(HEADER, map(summary_cells, layers))}\n")
    source, target = printable(found.path), printable(arguments.output)
    print(f"{source} ({found.kind}) -> {target}: {counted(len(reports), 'adapter')}")


CONVERT = Verb(
    name="convert",
    summary="convert adapters between PEFT, kohya, diffusers and mlx-lm, and from npz files",
    example="lora-np convert lora.safetensors --base unet -o my-adapter\n"
    "lora-np convert my-adapter --to kohya --component unet -o lora.safetensors\n"
    "lora-np convert model.npz -o french --task french --rank 4",
    add_arguments=_add_arguments,
    run=_run,
)
