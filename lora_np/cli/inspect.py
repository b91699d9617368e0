"""``lora-np inspect``: the contents of a file or folder."""

import argparse
import os
from collections.abc import Mapping
from glob import escape, glob
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.surgery import effective_rank, retained_energy
from ..factors.weights import AdapterWeights
from ..io.merge import INDEX, SINGLE, checkpoint_files
from ..io.safetensors import SafetensorsFile
from ..layers.lora import LoRALayer
from ..terminal.table import table
from ._adapters import EXPECTED, Adapters, dropped, find_adapters
from ._layers import HEADER, frobenius, singular_values, summary, summary_cells
from ._options import ADAPTER, add_alpha, add_drop
from ._others import other_reports, others_text
from ._output import new_output
from ._plot import draw_spectra, figure_format
from ._text import as_options, counted, natural, number, plain, printable, share
from .verb import Verb, add_json, print_json

MEASURES = ("|A|", "|B|", "|dW|", "effective rank", "energy at r/2")

LEGEND = (
    "dW = scaling A B is the update of a weight; |.| is the Frobenius norm. The effective rank is defined as in\n"
    "Roy and Vetterli (2007); the energy is the fraction of |dW|^2 kept by the best approximation of half the rank."
)

Report = dict[str, Any]

# ---------------------------------------------------------------- measurement


def layer_report(path: str, layer: LoRALayer, weights: AdapterWeights) -> Report:
    """The report on one layer."""
    sigma = singular_values(layer)
    norm = frobenius(sigma)
    is_finite = np.isfinite(norm)
    half = (layer.rank + 1) // 2
    report = summary(path, layer) | {
        "scaling_rule": layer.scaling_rule,
        "norm_a": frobenius(layer.matrix_a),
        "norm_b": frobenius(layer.matrix_b),
        "norm": norm,
        "effective_rank": effective_rank(sigma) if is_finite else np.nan,
        "half_rank": half,
        "energy_at_half_rank": retained_energy(sigma, half) if is_finite else np.nan,
        "singular_values": sigma.tolist(),
    }
    if path in weights.magnitudes:
        report["norm_magnitude"] = frobenius(weights.magnitudes[path])
    if path in weights.nested:
        report["dylora"] = weights.nested[path].to_json()
    return report


def adapter_report(name: str, adapters: Adapters) -> Report:
    """The report on one adapter."""
    weights = adapters.read(name)
    size, dtypes = _stored(adapters.files[name]) if name in adapters.files else _in_memory(weights)
    return {
        "name": name,
        "parameters": weights.parameter_count,
        "bytes": size,
        "dtypes": sorted(dtypes),
        "dropped": dropped(weights),
        "layers": [layer_report(path, layer, weights) for path, layer in weights.layers.items()],
        "others": other_reports(weights),
    }


def _stored(path: str) -> tuple[int, set[str]]:
    """The number of bytes and the dtypes of the tensors in a file."""
    with SafetensorsFile(path) as file:
        infos = [file.info(key) for key in file]
    return sum(info.nbytes for info in infos), {info.dtype for info in infos}


def _in_memory(weights: AdapterWeights) -> tuple[int, set[str]]:
    """The number of bytes and the dtypes of the arrays of an adapter."""
    arrays = [array for layer in weights.layers.values() for array in (layer.matrix_a, layer.matrix_b)]
    arrays += [*weights.magnitudes.values(), *weights.whole.values()]
    return sum(array.nbytes for array in arrays), {f"F{8 * array.itemsize}" for array in arrays}


def tensor_reports(files: Mapping[str, str]) -> list[Report]:
    """The reports on the tensors of files, of which the paths are given by name."""
    reports = []
    for name, place in files.items():
        with SafetensorsFile(place) as file:
            for key in sorted(file, key=natural):
                info = file.info(key)
                report = {"name": key, "file": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.nbytes}
                reports.append(report | {"parameters": info.size})
    return reports


# ---------------------------------------------------------------- output


def adapter_text(report: Report) -> str:
    """The table of an adapter, its totals, and notes on its DyLoRA and DoRA layers."""
    rows = [
        [
            *summary_cells(layer),
            *(number(layer[name]) for name in ("norm_a", "norm_b", "norm")),
            f"{layer['effective_rank']:.2f}",
            share(layer["energy_at_half_rank"]),
        ]
        for layer in report["layers"]
    ]
    totals = f"{counted(len(rows), 'layer')}, {counted(report['parameters'], 'parameter')}"
    size = f"{counted(report['bytes'], 'byte')} ({', '.join(report['dtypes'])})"
    lines = [table([*HEADER, *MEASURES], rows), "", f"{totals}, {size}"]
    groups: dict[str, list[str]] = {}
    for layer in report["layers"]:
        if "dylora" in layer:
            groups.setdefault(_dylora_text(layer["dylora"]), []).append(layer["path"])
    lines += [f"DyLoRA ({_which(paths)}): {settings}" for settings, paths in groups.items()]
    magnitudes = [layer["path"] for layer in report["layers"] if "norm_magnitude" in layer]
    if magnitudes:
        lines.append(f"DoRA ({_which(magnitudes)}): the rows of weight + dW are rescaled to trained norms")
    if report["others"]:
        lines += ["", others_text(report["others"])]
    return "\n".join(lines)


def tensors_text(tensors: list[Report]) -> str:
    """The table of a checkpoint and its totals."""
    several = len({tensor["file"] for tensor in tensors}) > 1
    rows = [
        [
            printable(tensor["name"]),
            *([printable(tensor["file"])] if several else []),
            tensor["dtype"],
            " x ".join(map(str, tensor["shape"])) or "scalar",
            f"{tensor['bytes']:,}",
        ]
        for tensor in tensors
    ]
    header = ["tensor", *(["file"] if several else []), "dtype", "shape", "bytes"]
    parameters, size = (sum(tensor[name] for tensor in tensors) for name in ("parameters", "bytes"))
    totals = f"{counted(len(tensors), 'tensor')}, {counted(parameters, 'element')}, {counted(size, 'byte')}"
    return f"{table(header, rows, left=len(header) - 2)}\n\n{totals}"


def _dylora_text(settings: Mapping[str, Any]) -> str:
    ranks = ", ".join(map(str, settings["active_ranks"]))
    odds = ", ".join(number(odd) for odd in settings["rank_distribution"])
    return (
        f"active ranks {ranks} with probabilities {odds}; deployment rank {settings['current_deployment_rank']}; "
        f"mode {settings['mode']}; scaling {settings['scaling']}"
    )


def _which(paths: list[str]) -> str:
    return printable(paths[0]) if len(paths) == 1 else f"{len(paths)} layers"


# ---------------------------------------------------------------- the verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help=f"an adapter: {ADAPTER}; a folder of named PEFT adapters; or a checkpoint: a safetensors file, a folder with "
        f"{SINGLE} or {INDEX}, or such an index file",
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


def _run(arguments: argparse.Namespace) -> int:
    path = os.path.normpath(arguments.path)
    try:
        adapters = None if path.endswith(".json") else _found(path, arguments)
        if adapters is None:
            return _inspect_checkpoint(path, arguments)
        reports = [adapter_report(name, adapters) for name in adapters.names]
    except (FormatError, NotSupportedError) as error:
        files = _readable(path)
        if arguments.plot or not files:
            raise
        return _print_tensors(path, files, arguments, str(error))
    if arguments.plot:
        with new_output(arguments.plot, folder=False, force=True) as place, open(place, "wb") as file:
            draw_spectra(_curves(reports), file, arguments.plot)
    if arguments.json:
        print_json(plain({"path": adapters.path, "kind": adapters.kind, "adapters": reports}))
        return 0
    print(f"{printable(adapters.path)}: {adapters.kind}\n")
    for report in reports:
        if report["name"]:
            print(f"{printable(report['name'])}:")
        print(f"{adapter_text(report)}\n")
    print(LEGEND)
    return 0


def _found(path: str, arguments: argparse.Namespace) -> Adapters | None:
    return find_adapters(path, drop=arguments.drop, alpha=arguments.alpha, base_is_residual=arguments.base_is_residual)


def _inspect_checkpoint(path: str, arguments: argparse.Namespace) -> int:
    if os.path.isdir(path) and not any(os.path.isfile(os.path.join(path, name)) for name in (INDEX, SINGLE)):
        raise FormatError(f"{path}: no adapter or checkpoint found; {EXPECTED}; or a checkpoint with {SINGLE} or {INDEX}")
    if arguments.plot:
        raise ArgumentError(f"{path}: --plot requires an adapter, and this is a checkpoint")
    return _print_tensors(path, checkpoint_files(path), arguments)


def _readable(path: str) -> dict[str, str]:
    """The safetensors files of an adapter that is not understood, by name; none if one of them is damaged."""
    inside = os.path.join(escape(path), "**", "*.safetensors")
    places = [path] if os.path.isfile(path) else sorted(glob(inside, recursive=True))
    try:
        for place in places:
            SafetensorsFile(place).close()
    except FormatError:
        return {}
    return {os.path.relpath(place, path) if place != path else os.path.basename(path): place for place in places}


def _print_tensors(path: str, files: Mapping[str, str], arguments: argparse.Namespace, problem: str | None = None) -> int:
    tensors = tensor_reports(files)
    if arguments.json:
        print_json({"path": path, "kind": "safetensors", "problem": problem, "tensors": tensors})
        return 0
    kind = "safetensors checkpoint"
    if problem is not None:
        kind = f"safetensors, not understood as an adapter:\n{printable(as_options(problem))}"
    print(f"{printable(path)}: {kind}\n\n{tensors_text(tensors)}")
    return 0


def _curves(reports: list[Report]) -> dict[str, Array]:
    return {
        (f"{report['name']}: {layer['path']}" if report["name"] else layer["path"]): np.array(layer["singular_values"])
        for report in reports
        for layer in report["layers"]
    }


INSPECT = Verb(
    name="inspect",
    summary="show the ranks, norms and spectra of an adapter's layers, or list the tensors of a checkpoint",
    example="lora-np inspect my-adapter --plot spectra.svg\nlora-np inspect model.safetensors --json",
    add_arguments=_add_arguments,
    run=_run,
)
