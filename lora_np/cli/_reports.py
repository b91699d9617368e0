"""The reports of ``inspect``: on adapters and their layers, and on the tensors of files."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..factors.surgery import effective_rank, retained_energy
from ..factors.weights import AdapterWeights
from ..io.safetensors import SafetensorsFile
from ..layers.lora import LoRALayer
from ..terminal.table import table
from ._adapters import Adapters, dropped
from ._layer_notes import layer_notes
from ._layers import HEADER, frobenius, singular_values, summary, summary_cells
from ._others import other_reports, others_text
from ._text import counted, natural, number, printable, share

MEASURES = ("|A|", "|B|", "|dW|", "effective rank", "energy at r/2")

LEGEND = (
    "dW = scaling A B is the update of a weight; |.| is the Frobenius norm. The effective rank is defined as in\n"
    "Roy and Vetterli (2007); the energy is the fraction of |dW|^2 kept by the best approximation of half the rank."
)

Report = dict[str, Any]

LONGEST = 80  # characters of a value of the metadata

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
        report["magnitude_of"] = "inputs" if path in weights.by_input else "outputs"
    if path in weights.nested:
        report["dylora"] = weights.nested[path].to_json()
    if path in weights.kernels:
        report["kernel"] = list(weights.kernels[path])
    if (parameter := path.rpartition(".")[0]) in weights.experts:
        report["experts"] = weights.experts[parameter]
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
        **description(weights, adapters.files.get(name)),
        "layers": [layer_report(path, layer, weights) for path, layer in weights.layers.items()],
        "others": other_reports(weights),
    }


def module_reports(layers: list[Report]) -> list[Report]:
    """The reports on kinds of layers: those whose paths differ only in numbers."""
    groups: dict[str, list[Report]] = {}
    for layer in layers:
        groups.setdefault(re.sub(r"\d+", "*", layer["path"]), []).append(layer)
    return [
        {
            "module": module,
            "layers": len(group),
            "parameters": sum(layer["rank"] * (layer["input_size"] + layer["output_size"]) for layer in group),
            "ranks": sorted({layer["rank"] for layer in group}),
            "norm": float(np.sqrt(np.mean([layer["norm"] ** 2 for layer in group]))),
            "largest_norm": max(layer["norm"] for layer in group),
            "effective_rank": float(np.mean([layer["effective_rank"] for layer in group])),
            "energy_at_half_rank": float(np.mean([layer["energy_at_half_rank"] for layer in group])),
        }
        for module, group in groups.items()
    ]


def description(weights: AdapterWeights, file: str | None) -> Report:
    """What an adapter says about itself: base, task and dropout of its configuration, and the metadata of its file."""
    return {
        "base_model": weights.config.get("base_model_name_or_path"),
        "task_type": weights.config.get("task_type"),
        "dropout": weights.config.get("lora_dropout"),
        "metadata": {} if file is None else metadata(file),
    }


def metadata(path: str) -> dict[str, str]:
    """The ``__metadata__`` of a file."""
    with SafetensorsFile(path) as file:
        return dict(file.metadata)


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


def description_lines(report: Report) -> list[str]:
    """The base, the task and the dropout of an adapter, as far as it names them, and an empty line."""
    names = {"base_model": "base model", "task_type": "task type", "dropout": "dropout"}
    lines = [f"{label}: {printable(str(report[name]))}" for name, label in names.items() if report[name]]
    return [*lines, ""] if lines else []


def metadata_lines(report: Report) -> list[str]:
    """The metadata of the file."""
    entries = [
        (printable(name), shortened(value)) for name, value in sorted(report["metadata"].items()) if name != "format"
    ]
    return ["", "metadata:", *(f"  {name}: {value}" for name, value in entries)] if entries else []


def shortened(value: str) -> str:
    """A text of the metadata in one line of bounded length: some files have pages of it."""
    text = printable(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(value):,} characters)"


def adapter_text(report: Report, *, by_module: bool) -> str:
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
    shown = modules_table(report["modules"]) if by_module else table([*HEADER, *MEASURES], rows)
    lines = [*description_lines(report), shown, "", f"{totals}, {size}", *layer_notes(report["layers"])]
    if report["others"]:
        lines += ["", others_text(report["others"])]
    lines += metadata_lines(report)
    return "\n".join(lines)


def modules_table(modules: list[Report]) -> str:
    """The table of kinds of layers."""
    rows = [
        [
            printable(one["module"]),
            str(one["layers"]),
            f"{one['parameters']:,}",
            span(one["ranks"]),
            number(one["norm"]),
            number(one["largest_norm"]),
            f"{one['effective_rank']:.2f}",
            share(one["energy_at_half_rank"]),
        ]
        for one in modules
    ]
    header = [
        "module",
        "layers",
        "parameters",
        "rank",
        "|dW| (RMS)",
        "largest |dW|",
        "mean effective rank",
        "mean energy at r/2",
    ]
    return table(header, rows)


def span(values: list[int]) -> str:
    """The lowest and the highest of ascending numbers."""
    return "" if not values else str(values[0]) if len(values) == 1 else f"{values[0]}..{values[-1]}"


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
