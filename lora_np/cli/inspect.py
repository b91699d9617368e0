"""``lora-np inspect``: what a file or folder holds."""

import argparse
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, FormatError
from ..factors.surgery import effective_rank, retained_energy
from ..factors.weights import AdapterWeights
from ..io.merge import INDEX, SINGLE, checkpoint_files
from ..io.safetensors import SafetensorsFile
from ..layers.lora import LoRALayer
from ..terminal.table import table
from ._adapters import LOOKED_FOR, Adapters, add_lenient, find_adapters, read
from ._output import new_output
from ._plot import draw_spectra, figure_format
from ._spectra import frobenius, singular_values
from ._text import counted, natural, number, plain, printable, share
from .verb import Verb, add_json, print_json

HEADER = ("layer", "in", "out", "rank", "alpha", "scaling", "|A|", "|B|", "|dW|", "effective rank", "energy at r/2")

LEGEND = (
    "dW = scaling A B is what the adapter adds to a weight; |.| are Frobenius norms. The effective rank is that of\n"
    "Roy and Vetterli (2007); the energy is the share of |dW|^2 that the best half of the rank keeps."
)

Report = dict[str, Any]

# ---------------------------------------------------------------- what is measured


def layer_report(path: str, layer: LoRALayer, weights: AdapterWeights) -> Report:
    """What there is to say of one layer."""
    sigma = singular_values(layer)
    half = (layer.rank + 1) // 2
    is_finite = not np.isnan(sigma).any()
    report: Report = {
        "path": path,
        "input_size": layer.input_size,
        "output_size": layer.output_size,
        "rank": layer.rank,
        "alpha": layer.alpha,
        "scaling": layer.scaling,
        "scaling_rule": layer.scaling_rule,
        "norm_a": frobenius(layer.matrix_a),
        "norm_b": frobenius(layer.matrix_b),
        "norm": frobenius(sigma),
        "effective_rank": effective_rank(sigma) if is_finite else np.nan,
        "half_rank": half,
        "energy_at_half_rank": retained_energy(sigma, half) if is_finite else np.nan,
        "singular_values": sigma.tolist(),
    }
    if path in weights.magnitudes:
        report["norm_magnitude"] = frobenius(weights.magnitudes[path])
    if path in weights.nested:
        report["dylora"] = dict(weights.nested[path])
    return report


def adapter_report(name: str, adapters: Adapters) -> Report:
    """What there is to say of one adapter."""
    weights = read(adapters, name)
    dtypes: Iterable[str]
    if name in adapters.files:
        with SafetensorsFile(adapters.files[name]) as file:
            infos = [file.info(key) for key in file]
        size, dtypes = sum(info.nbytes for info in infos), {info.dtype for info in infos}
    else:
        arrays = [array for layer in weights.layers.values() for array in (layer.matrix_a, layer.matrix_b)]
        arrays += weights.magnitudes.values()
        size, dtypes = sum(array.nbytes for array in arrays), {f"F{8 * array.itemsize}" for array in arrays}
    return {
        "name": name,
        "parameters": weights.parameter_count,
        "bytes": size,
        "dtypes": sorted(dtypes),
        "layers": [layer_report(path, layer, weights) for path, layer in weights.layers.items()],
    }


def tensor_reports(path: str) -> list[Report]:
    """The tensors of a checkpoint."""
    reports = []
    for name, place in checkpoint_files(path).items():
        with SafetensorsFile(place) as file:
            for key in sorted(file, key=natural):
                info = file.info(key)
                report = {"name": key, "file": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.nbytes}
                reports.append(report | {"parameters": info.size})
    return reports


# ---------------------------------------------------------------- what is printed


def adapter_text(report: Report) -> str:
    """The table of an adapter, its totals, and the settings of DyLoRA and DoRA layers."""
    rows = [
        [
            printable(layer["path"]),
            *(str(layer[name]) for name in ("input_size", "output_size", "rank")),
            *(number(layer[name]) for name in ("alpha", "scaling", "norm_a", "norm_b", "norm")),
            f"{layer['effective_rank']:.2f}",
            share(layer["energy_at_half_rank"]),
        ]
        for layer in report["layers"]
    ]
    totals = f"{counted(len(rows), 'layer')}, {counted(report['parameters'], 'parameter')}"
    lines = [table(HEADER, rows), "", f"{totals}, {counted(report['bytes'], 'byte')} of {', '.join(report['dtypes'])}"]
    nested = [(layer["path"], layer["dylora"]) for layer in report["layers"] if "dylora" in layer]
    lines += [
        f"DyLoRA ({_some(paths)}): {settings}"
        for settings, paths in _grouped((_dylora_text(settings), path) for path, settings in nested).items()
    ]
    magnitudes = [layer["path"] for layer in report["layers"] if "norm_magnitude" in layer]
    if magnitudes:
        lines.append(f"DoRA ({_some(magnitudes)}): the rows of weight + dW are scaled to lengths that the adapter holds")
    return "\n".join(lines)


def tensors_text(tensors: list[Report]) -> str:
    """The table of a checkpoint, and its totals."""
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
    totals = f"{counted(len(tensors), 'tensor')}, {counted(parameters, 'number')}, {counted(size, 'byte')}"
    return f"{table(header, rows, left=len(header) - 2)}\n\n{totals}"


def _dylora_text(settings: Mapping[str, Any]) -> str:
    ranks = ", ".join(map(str, settings["active_ranks"]))
    odds = ", ".join(number(odd) for odd in settings["rank_distribution"])
    return (
        f"active ranks {ranks}, drawn with probabilities {odds}; deployed at rank {settings['current_deployment_rank']}; "
        f"mode {settings['mode']}, scaling {settings['scaling']}"
    )


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _some(paths: list[str]) -> str:
    return printable(paths[0]) if len(paths) == 1 else f"{len(paths)} layers"


# ---------------------------------------------------------------- the verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a PEFT folder, a folder of named PEFT adapters, an mlx-lm folder, a kohya file, an npz file of lora_np, "
        "or a checkpoint: a safetensors file, or a folder of them with an index",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=figure_format,
        help="draw the singular values into a .png or .svg file, which is replaced",
    )
    add_lenient(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    path = os.path.normpath(arguments.path)
    adapters = None if path.endswith(".json") else find_adapters(path, strict=not arguments.lenient)
    if adapters is None:
        return _inspect_tensors(path, arguments)
    reports = [adapter_report(name, adapters) for name in adapters.names]
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


def _inspect_tensors(path: str, arguments: argparse.Namespace) -> int:
    if os.path.isdir(path) and not any(os.path.isfile(os.path.join(path, name)) for name in (INDEX, SINGLE)):
        raise FormatError(f"{path}: neither an adapter nor a checkpoint in it; {LOOKED_FOR}, and {INDEX} or {SINGLE}")
    if arguments.plot:
        raise ArgumentError(f"{path}: --plot draws adapters, and there is none in it")
    tensors = tensor_reports(path)
    if arguments.json:
        print_json({"path": path, "kind": "safetensors", "tensors": tensors})
    else:
        print(f"{printable(path)}: safetensors, no adapter\n\n{tensors_text(tensors)}")
    return 0


def _curves(reports: list[Report]) -> dict[str, Array]:
    return {
        (f"{report['name']}: {layer['path']}" if report["name"] else layer["path"]): np.array(layer["singular_values"])
        for report in reports
        for layer in report["layers"]
    }


INSPECT = Verb(
    name="inspect",
    summary="list the layers of an adapter, with their ranks, norms and spectra, or the tensors of a checkpoint",
    example="lora-np inspect my-adapter --plot spectra.svg\nlora-np inspect model.safetensors --json",
    add_arguments=_add_arguments,
    run=_run,
)
