"""``lora-np inspect``: the contents of files and folders."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from glob import escape, glob

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, FormatError, InvalidOperationError, NotSupportedError
from ..io import mlx, peft
from ..io.merge import INDEX, SINGLE, checkpoint_files
from ..io.safetensors import SafetensorsFile
from ..terminal.table import table
from ._adapters import EXPECTED, Adapters, find_adapters
from ._options import ADAPTER, add_alpha, add_drop
from ._output import new_output
from ._plot import draw_spectra, figure_format
from ._reports import (
    LEGEND,
    Report,
    adapter_report,
    adapter_text,
    metadata,
    metadata_lines,
    module_reports,
    span,
    tensor_reports,
    tensors_text,
)
from ._text import as_options, counted, natural, plain, printable
from .verb import Verb, add_json, print_json

# ---------------------------------------------------------------- finding


def files_below(folder: str) -> Iterator[str]:
    """The adapters and checkpoints in a folder and its subfolders: folders of a known format, and single files."""
    for place, folders, names in os.walk(folder):
        folders.sort(key=natural)
        if {peft.CONFIG, mlx.WEIGHTS, peft.WEIGHTS, INDEX, SINGLE} & set(names):
            yield place
        else:
            yield from (
                os.path.join(place, name) for name in sorted(names, key=natural) if name.endswith((".safetensors", ".npz"))
            )


# ---------------------------------------------------------------- the verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help=f"an adapter: {ADAPTER}; a folder of named PEFT adapters; or a checkpoint: a safetensors file, a folder with "
        f"{SINGLE} or {INDEX}, or such an index file",
    )
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="list all adapters and checkpoints in folders and their subfolders"
    )
    parser.add_argument(
        "--by-module",
        action="store_true",
        help="one row for each kind of layer: paths that differ only in numbers, such as those of one layer in all blocks",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=figure_format,
        help="plot the singular values to a .png or .svg file, which is overwritten",
    )
    parser.set_defaults(base_is_residual=True)
    add_alpha(parser)
    add_drop(parser)
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    paths = [os.path.normpath(path) for path in arguments.paths]
    if arguments.recursive:
        paths = [found for path in paths for found in (files_below(path) if os.path.isdir(path) else [path])]
    if not paths:
        raise ArgumentError(f"{', '.join(arguments.paths)}: no adapter or checkpoint found; {EXPECTED}")
    if len(paths) == 1 and not arguments.recursive:
        report = inspected(paths[0], arguments)
        _print(report, arguments)
        return 0
    if arguments.plot:
        arguments.usage_error("--plot requires a single PATH")
    reports = [_attempted(path, arguments) for path in paths]
    if arguments.json:
        print_json(plain(reports))
    else:
        for report in reports if not arguments.recursive else []:
            if "error" not in report:
                _print(report, arguments)
                print()
        print(overview(reports))
    return 1 if any("error" in report for report in reports) else 0


def _attempted(path: str, arguments: argparse.Namespace) -> Report:
    """The report on a path, which may be an error: one damaged file does not hide the others."""
    try:
        return inspected(path, arguments)
    except (ArgumentError, InvalidOperationError, NotSupportedError, OSError) as error:
        print(f"lora-np: error: {printable(as_options(str(error)))}", file=sys.stderr)
        return {"path": path, "kind": None, "error": str(error)}


def inspected(path: str, arguments: argparse.Namespace) -> Report:
    """The report on a path."""
    try:
        adapters = None if path.endswith(".json") else _found(path, arguments)
        if adapters is None:
            return _checkpoint(path, arguments)
        reports = [adapter_report(name, adapters) for name in adapters.names]
    except (FormatError, NotSupportedError) as error:
        files = readable_files(path)
        if arguments.plot or not files:
            raise
        return _tensors(path, files, str(error))
    if arguments.by_module:
        for report in reports:
            report["modules"] = module_reports(report["layers"])
    if arguments.plot:
        with new_output(arguments.plot, folder=False, force=True) as place, open(place, "wb") as file:
            draw_spectra(_curves(reports), file, arguments.plot)
    return {"path": adapters.path, "kind": adapters.kind, "adapters": reports}


def _print(report: Report, arguments: argparse.Namespace) -> None:
    """Print the report on a path."""
    if arguments.json:
        print_json(plain(report))
    elif "tensors" in report:
        kind = "safetensors checkpoint"
        if report["problem"] is not None:
            kind = f"safetensors, not understood as an adapter:\n{printable(as_options(report['problem']))}"
        lines = [f"{printable(report['path'])}: {kind}", "", tensors_text(report["tensors"]), *metadata_lines(report)]
        print("\n".join(lines))
    else:
        print(f"{printable(report['path'])}: {report['kind']}\n")
        for adapter in report["adapters"]:
            if adapter["name"]:
                print(f"{printable(adapter['name'])}:")
            print(f"{adapter_text(adapter, by_module=arguments.by_module)}\n")
        print(LEGEND)


def overview(reports: list[Report]) -> str:
    """One row for each adapter or checkpoint."""
    rows = []
    for report in reports:
        path = printable(report["path"])
        for adapter in report.get("adapters", []):
            ranks = span(sorted({layer["rank"] for layer in adapter["layers"]}))
            name = f"{path} ({printable(adapter['name'])})" if adapter["name"] else path
            base = printable(str(adapter["base_model"] or ""))
            rows.append([name, report["kind"], base, str(len(adapter["layers"])), ranks, f"{adapter['parameters']:,}"])
        if "tensors" in report:
            size = sum(tensor["parameters"] for tensor in report["tensors"])
            kind = "checkpoint" if report["problem"] is None else "not understood"
            rows.append([path, kind, "", counted(len(report["tensors"]), "tensor"), "", f"{size:,}"])
        if "error" in report:
            rows.append([path, "damaged or unknown", "", "", "", ""])
    return table(["path", "kind", "base model", "layers", "rank", "parameters"], rows, left=3)


def _found(path: str, arguments: argparse.Namespace) -> Adapters | None:
    return find_adapters(path, drop=arguments.drop, alpha=arguments.alpha, base_is_residual=arguments.base_is_residual)


def _checkpoint(path: str, arguments: argparse.Namespace) -> Report:
    if os.path.isdir(path) and not any(os.path.isfile(os.path.join(path, name)) for name in (INDEX, SINGLE)):
        raise FormatError(f"{path}: no adapter or checkpoint found; {EXPECTED}; or a checkpoint with {SINGLE} or {INDEX}")
    if arguments.plot:
        raise ArgumentError(f"{path}: --plot requires an adapter, and this is a checkpoint")
    return _tensors(path, checkpoint_files(path))


def readable_files(path: str) -> dict[str, str]:
    """The safetensors files of an adapter that is not understood, by name; none if one of them is damaged."""
    inside = os.path.join(escape(path), "**", "*.safetensors")
    places = [path] if os.path.isfile(path) else sorted(glob(inside, recursive=True))
    try:
        for place in places:
            SafetensorsFile(place).close()
    except FormatError:
        return {}
    return {os.path.relpath(place, path) if place != path else os.path.basename(path): place for place in places}


def _tensors(path: str, files: Mapping[str, str], problem: str | None = None) -> Report:
    """The report on files whose tensors are listed."""
    said = {name: value for place in files.values() for name, value in metadata(place).items()}
    return {"path": path, "kind": "safetensors", "problem": problem, "metadata": said, "tensors": tensor_reports(files)}


def _curves(reports: list[Report]) -> dict[str, Array]:
    return {
        (f"{report['name']}: {layer['path']}" if report["name"] else layer["path"]): np.array(layer["singular_values"])
        for report in reports
        for layer in report["layers"]
    }


INSPECT = Verb(
    name="inspect",
    summary="show the ranks, norms and spectra of adapters, list the tensors of checkpoints, or all of these in a folder",
    example="lora-np inspect my-adapter --plot spectra.svg\nlora-np inspect model.safetensors --json\n"
    "lora-np inspect -r adapters",
    add_arguments=_add_arguments,
    run=_run,
)
