"""LoRA adapters in the folders of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT stores lora_A as (r, in) and lora_B as (out, r), both transposes of A and B here. It only warns, and then adds nothing,
where a factor is missing or a key is unknown; the functions here raise an error.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from .._archive import atomic_file
from .._typing import Array
from ..adapters.base import LoRAAdapterBase
from ..adapters.dora import DoRAAdapter
from ..adapters.dylora import DyLoRAAdapter
from ..adapters.multilora import MultiLoRAAdapter
from ..adapters.standard import StandardLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.weights import AdapterWeights, extract, extract_tasks
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from ..models.adapting import apply_adapters
from ..models.finding import has_multi_lora_adapters
from ._factors import factors_by_path, layer_of, magnitude, matrix
from .safetensors import save_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
KEY = re.compile(rf"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|{MAGNITUDE})")
OTHER_FUNCTIONS = (
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
)
OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights that change the base's weights as well
DEFAULT = 8  # PEFT's own, of r and of lora_alpha
NESTED = {"active_ranks", "alpha", "mode", "scaling", "rank_distribution", "current_deployment_rank"}

Path = str | os.PathLike[str]


def peft_adapters(folder: Path) -> dict[str, str]:
    """The adapters of a PEFT folder, by name: the one in the folder itself is "default", others have a subfolder each.

    Raises
    ------
    FormatError
        There is none.
    """
    root = os.fspath(folder)
    inner = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if os.path.isdir(root) else []
    places = [("default", root), *((name, os.path.join(root, name)) for name in inner)]
    found: dict[str, str] = {}
    for name, place in places:
        if os.path.isfile(os.path.join(place, CONFIG)):
            found.setdefault(name, place)
    if not found:
        raise FormatError(f"{root}: there is no {CONFIG} in it, nor in a folder inside it")
    return found


def load_peft(folder: Path, *, strict: bool = True) -> AdapterWeights:
    """The low-rank layers of one PEFT adapter.

    Parameters
    ----------
    folder : path
        With adapter_config.json and adapter_model.safetensors directly in it.
    strict : bool, default True
        Whether a key that is no LoRA factor, or that the configuration does not target, is an error; otherwise it is left
        out. A missing factor or a wrong shape always is one.

    Returns
    -------
    AdapterWeights
        In float64 where the file has it, in float32 otherwise. A whole DyLoRAAdapter that `save_peft` wrote has its
        settings in `nested`.

    Raises
    ------
    FormatError
        The folder is not a LoRA adapter of PEFT, or breaks a rule; the message names the file and the key.
    NotSupportedError
        The weights are a pickle (adapter_model.bin), or factors of something else than a matrix.
    """
    root = os.fspath(folder)
    places = peft_adapters(root)
    if "default" not in places or places["default"] != root:
        raise FormatError(f"{root}: it holds the adapters {', '.join(places)} in folders of their own; give one of these")
    config = _config(os.path.join(root, CONFIG))
    file = os.path.join(root, WEIGHTS)
    if not os.path.isfile(file):
        if os.path.isfile(os.path.join(root, "adapter_model.bin")):
            raise NotSupportedError(f"{root}: adapter_model.bin is a pickle, which can run any code, so it is not read")
        raise FormatError(f"{root}: there is no {WEIGHTS} in it")
    parts, metadata = factors_by_path(file, KEY, strict)
    nested = _nested(metadata, file)
    layers, magnitudes = {}, {}
    for path, factors in parts.items():
        where = f"{file}: {PREFIX}{path}"
        if strict and not _targeted(path, config["target_modules"]):
            raise FormatError(f"{where}: target_modules of {CONFIG} does not name it")
        layers[path] = _layer(factors, path, config, nested.get(path), where)
        if bool(config.get("use_dora")) != (MAGNITUDE in factors):
            raise FormatError(f"{where}.{MAGNITUDE} must be there if and only if use_dora is true")
        if MAGNITUDE in factors:
            magnitudes[path] = magnitude(factors, MAGNITUDE, layers[path], where)
    kept = {path: settings for path, settings in nested.items() if path in layers}
    return AdapterWeights(layers, magnitudes, kept, config)


def save_peft(
    folder: Path,
    adapters: AdapterWeights | Layer,
    *,
    rank: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write adapters as a PEFT folder.

    Parameters
    ----------
    folder : path
        Made if it is not there. A model with MultiLoRA adapters gets a folder inside it for each task.
    adapters : AdapterWeights, or a model with adapters
    rank : int, optional
        The active rank at which to write DyLoRA adapters, as plain LoRA. If left out they are written whole, with their
        ranks in the metadata of the file, from which `load_peft` and `apply_peft` restore them; PEFT itself uses them at
        max_rank.
    config : mapping, optional
        More entries for adapter_config.json, such as base_model_name_or_path, task_type and fan_in_fan_out.

    Raises
    ------
    ArgumentError
        A task's name cannot be the name of a folder, or there is nothing to write; nothing is written.
    NotSupportedError
        An adapter that PEFT's LoRA does not have.
    """
    extra = {} if config is None else dict(config)
    if rank is not None and not isinstance(adapters, Layer):
        raise ArgumentError(f"rank needs a model with DyLoRA adapters, got {type(adapters).__name__}")
    if isinstance(adapters, Layer) and has_multi_lora_adapters(adapters):
        for task, weights in extract_tasks(adapters, _tasks(adapters), rank=rank).items():
            _write(os.path.join(folder, task), weights, extra)
        return
    _write(os.fspath(folder), extract(adapters, rank=rank) if isinstance(adapters, Layer) else adapters, extra)


def apply_peft(model: Layer, folder: Path | Mapping[str, Path], *, strict: bool = True) -> Layer:
    """A model with the adapters of PEFT folders on its dense layers; the model itself is left as it is.

    Parameters
    ----------
    model : Layer
        Its dense layers are found by the dotted paths that the adapter names.
    folder : path, or paths by task
        A folder with one adapter gives StandardLoRAAdapter, DoRAAdapter or DyLoRAAdapter layers. Named adapters in folders
        inside it become the tasks of MultiLoRAAdapter layers, the first by name being the current one; and so do those of a
        mapping, from the name of a task to the folder of its adapter, wherever it is. A task that a layer does not have
        adds nothing there.
    strict : bool, default True
        As in `load_peft`.

    Raises
    ------
    ArgumentError
        The mapping is empty, or holds a name that no task can have.
    FormatError
        As in `load_peft`; or a path or a shape does not fit the model.
    NotSupportedError
        As in `load_peft`; or a task is DoRA.
    """
    places = _task_folders(folder) if isinstance(folder, Mapping) else peft_adapters(folder)
    if "default" in places and not isinstance(folder, Mapping):
        weights = load_peft(places["default"], strict=strict)
        factories = {path: _factory(weights, path) for path in weights.layers}
    else:
        sets = {name: load_peft(place, strict=strict) for name, place in places.items()}
        special = [name for name, weights in sets.items() if weights.magnitudes]
        if special:
            raise NotSupportedError(f"{places[special[0]]}: {special[0]!r} is DoRA, which cannot be a task of MultiLoRA")
        paths = dict.fromkeys(path for weights in sets.values() for path in weights.layers)
        factories = {path: _multi_factory(sets, path) for path in paths}
    try:
        return apply_adapters(model, factories)
    except ArgumentError as error:
        where = "folder" if isinstance(folder, Mapping) else os.fspath(folder)
        raise FormatError(f"{where}: it does not fit the model: {error}") from error


def _task_folders(folders: Mapping[str, Path]) -> dict[str, str]:
    for task in folders:
        if not isinstance(task, str) or not task.strip():
            raise ArgumentError(f"folder must map names of tasks to folders, got {task!r}")
    if not folders:
        raise ArgumentError("folder must hold at least one task, got none")
    return {task: os.fspath(place) for task, place in folders.items()}


def _config(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as text:
            config = json.load(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: it is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise FormatError(f"{file}: peft_type must be 'LORA', got {kind!r}")
    if not isinstance(config.get("target_modules"), str | list):
        raise FormatError(f"{file}: target_modules must be a string or a list of names")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise FormatError(f"{file}: {name} must map patterns to numbers")
    patterns = [_anchored(key) for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or {}]
    try:
        for pattern in [*patterns, *([config["target_modules"]] if isinstance(config["target_modules"], str) else [])]:
            re.compile(pattern)
    except re.error as error:
        raise FormatError(f"{file}: {pattern!r} is not a regular expression: {error}") from error
    for name in OTHER_FUNCTIONS:
        if config.get(name):
            raise NotSupportedError(f"{file}: {name} makes it another function than LoRA's, which is not supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OTHER_BASES):
        raise NotSupportedError(
            f"{file}: init_lora_weights={start!r} has changed the base's weights, which are not in the folder; "
            "PEFT's save_pretrained converts it with path_initial_model_for_weight_conversion"
        )
    return config


def _layer(
    factors: Mapping[str, Array], path: str, config: Mapping[str, Any], nested: Mapping[str, Any] | None, where: str
) -> LoRALayer:
    A, B = matrix(factors, "lora_A.weight", where).T, matrix(factors, "lora_B.weight", where).T
    rank = _by_pattern(config.get("rank_pattern"), path, config.get("r", DEFAULT))
    if rank != A.shape[1]:
        raise FormatError(f"{where}.lora_A.weight must have the rank {rank!r} of {CONFIG}, got shape {A.T.shape}")
    if nested is not None:
        return layer_of(A, B, nested.get("alpha"), where, scaling=nested.get("scaling", "max"))
    alpha = _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", DEFAULT))
    return layer_of(A, B, alpha, where, scaling="rslora" if config.get("use_rslora") else "max")


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """What PEFT takes from rank_pattern and alpha_pattern: the first pattern that the end of the path matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(_anchored(pattern), path):
            return value
    return default


def _anchored(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _targeted(path: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in targets)


def _nested(metadata: Mapping[str, str], file: str) -> dict[str, dict[str, Any]]:
    """The settings of whole DyLoRA adapters, from the metadata of a file of ours."""
    try:
        nested = json.loads(metadata.get("lora_np", "{}")).get("nested", {})
        if any(settings.keys() != NESTED for settings in nested.values()):
            raise ValueError(f"the settings of a DyLoRA adapter are {', '.join(sorted(NESTED))}")
        return dict(nested)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{file}: its lora_np metadata is damaged: {error}") from error


def _write(folder: str, weights: AdapterWeights, extra: Mapping[str, Any]) -> None:
    if not weights.layers:
        raise ArgumentError("adapters must hold at least one layer, got none")
    if weights.magnitudes and len(weights.magnitudes) < len(weights.layers):
        raise NotSupportedError("a PEFT adapter is DoRA on all of its layers or on none")
    tensors: dict[str, Array] = {}
    for path, layer in weights.layers.items():
        if not path:
            raise ArgumentError("PEFT needs a path for each layer: put the adapter into a Sequential with a name")
        tensors[f"{PREFIX}{path}.lora_A.weight"] = layer.matrix_a.T
        tensors[f"{PREFIX}{path}.lora_B.weight"] = layer.matrix_b.T
        if path in weights.magnitudes:
            tensors[f"{PREFIX}{path}.{MAGNITUDE}"] = weights.magnitudes[path]
    config = json.dumps(_written_config(weights) | dict(extra), indent=2, sort_keys=True, ensure_ascii=False).encode()
    metadata = {"format": "pt"}
    if weights.nested:
        metadata["lora_np"] = json.dumps({"nested": weights.nested}, sort_keys=True)
    os.makedirs(folder, exist_ok=True)
    save_safetensors(os.path.join(folder, WEIGHTS), tensors, metadata)
    with atomic_file(os.path.join(folder, CONFIG)) as file:
        file.write(config + b"\n")


def _written_config(weights: AdapterWeights) -> dict[str, Any]:
    """A configuration that names every layer with its own rank and alpha."""
    rslora = all(layer.scaling_rule == "rslora" for layer in weights.layers.values())
    ranks = {path: layer.rank for path, layer in weights.layers.items()}
    alphas = {
        path: layer.alpha if rslora or layer.scaling_rule != "rslora" else layer.scaling * layer.rank
        for path, layer in weights.layers.items()
    }
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "target_modules": sorted(weights.layers),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(path)}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(path)}": value for path, value in alphas.items() if value != alpha},
        "use_rslora": rslora,
        "use_dora": bool(weights.magnitudes),
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _tasks(model: Layer) -> list[str]:
    """The tasks of a model's MultiLoRA adapters, all of which must have them, as names of folders."""
    adapters = [layer for layer in model.walk().values() if isinstance(layer, MultiLoRAAdapter)]
    tasks = list(adapters[0].task_adapters)
    for task in tasks:
        if task in (".", "..", "__base__", "default") or re.search(r'[/\\\x00-\x1f:*?"<>|]', task) or task != task.strip():
            raise ArgumentError(f"the task {task!r} cannot be the name of a folder; rename it")
    for adapter in adapters:
        if set(adapter.task_adapters) != set(tasks):
            raise ArgumentError(f"{adapter.layer_name} must have the tasks {tasks}, it has {list(adapter.task_adapters)}")
    return tasks


def _factory(weights: AdapterWeights, path: str) -> Callable[[AffineLayer], LoRAAdapterBase]:
    layer, settings = weights.layers[path], weights.nested.get(path)

    def build(linear: AffineLayer) -> LoRAAdapterBase:
        branch = _fitted(layer, linear, path)
        adapter: LoRAAdapterBase
        if settings is not None:
            given = {name: value for name, value in settings.items() if name != "current_deployment_rank"}
            adapter = DyLoRAAdapter(linear, branch.rank, **given).with_branches(lambda _: branch)
            assert isinstance(adapter, DyLoRAAdapter)
            adapter.current_deployment_rank = settings["current_deployment_rank"]
        elif path in weights.magnitudes:
            adapter = DoRAAdapter(linear, 1).with_branches(lambda _: branch)
            assert isinstance(adapter, DoRAAdapter)
            adapter.set_parameter("magnitude", weights.magnitudes[path])
        else:
            adapter = StandardLoRAAdapter(linear, 1).with_branches(lambda _: branch)
        return adapter

    return build


def _multi_factory(sets: Mapping[str, AdapterWeights], path: str) -> Callable[[AffineLayer], LoRAAdapterBase]:
    def build(linear: AffineLayer) -> MultiLoRAAdapter:
        branches = {
            name: _fitted(weights.layers[path], linear, path) for name, weights in sets.items() if path in weights.layers
        }
        first, *others = sets
        adapter = MultiLoRAAdapter(linear, first, 1)
        for name in others:
            adapter.add_task(name, 1)
        for name, branch in branches.items():
            adapter.replace_task(name, branch)
        return adapter

    return build


def _fitted(layer: LoRALayer, linear: AffineLayer, path: str) -> LoRALayer:
    """The layer in the dtype of a base of its sizes."""
    if (layer.input_size, layer.output_size) != (linear.input_size, linear.output_size):
        raise ArgumentError(
            f"{path}: the adapter is {layer.input_size} -> {layer.output_size}, "
            f"the layer {linear.input_size} -> {linear.output_size}"
        )
    A, B = layer.matrix_a.astype(linear.dtype), layer.matrix_b.astype(linear.dtype)
    return LoRALayer.from_factors(A, B, layer.alpha, scaling=layer.scaling_rule)
