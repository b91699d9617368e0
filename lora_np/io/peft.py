"""LoRA adapters in the folders of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT stores lora_A as (r, in) and lora_B as (out, r), the transposes of A and B here. If a factor is missing or a key is
unknown, PEFT warns and adds nothing; the functions here raise an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .._archive import atomic_file
from .._typing import Array
from ..adapters.base import LoRAAdapterBase
from ..adapters.dora import DoRAAdapter
from ..adapters.multilora import MultiLoRAAdapter
from ..adapters.standard import StandardLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.settings import DyLoRASettings
from ..factors.weights import AdapterWeights, extract, extract_tasks
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from ..models.adapting import Factory, apply_adapters
from ..models.finding import find, has_multi_lora_adapters
from ._factors import PREFIX, AdapterFile, factors_by_path, layer_of, magnitude, matrix
from ._peft_config import alpha_of, config_of, is_target, rank_of, read_config
from .safetensors import save_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAGNITUDE = "lora_magnitude_vector"
KEY = re.compile(rf"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|{MAGNITUDE})")

Path = str | os.PathLike[str]


# ---------------------------------------------------------------- reading


def peft_adapters(folder: Path) -> dict[str, str]:
    """The adapters of a PEFT folder, by name: the one in the folder itself is "default"; others are in subfolders.

    Raises
    ------
    FormatError
        If there is none.
    """
    root = os.fspath(folder)
    inner = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if os.path.isdir(root) else []
    places = [("default", root), *((name, os.path.join(root, name)) for name in inner)]
    found: dict[str, str] = {}
    for name, place in places:
        if os.path.isfile(os.path.join(place, CONFIG)):
            found.setdefault(name, place)
    if not found:
        raise FormatError(f"{root}: contains no {CONFIG}, and neither does any of its subfolders")
    return found


def load_peft(folder: Path, *, drop: Iterable[str] = ()) -> AdapterWeights:
    """The low-rank layers of one PEFT adapter.

    Parameters
    ----------
    folder : path
        The folder that contains adapter_config.json and adapter_model.safetensors.
    drop : iterable of str, optional
        Shell patterns of names of tensors to leave out, which `AdapterWeights.dropped` then lists. Any other tensor that is
        not understood, or that the configuration does not name, is an error.

    Returns
    -------
    AdapterWeights
        In float64 if the file is, in float32 otherwise. If `save_peft` wrote a whole DyLoRAAdapter, `nested` holds its
        settings.

    Raises
    ------
    FormatError
        If the folder is not a valid LoRA adapter of PEFT; the message names the file and the key.
    NotSupportedError
        If the weights are a pickle (adapter_model.bin), or if a factor is not a matrix.
    """
    root = os.fspath(folder)
    places = peft_adapters(root)
    if places.get("default") != root:
        raise FormatError(f"{root}: contains the adapters {', '.join(places)} in subfolders; give one of these")
    config = read_config(os.path.join(root, CONFIG))
    file = os.path.join(root, WEIGHTS)
    if not os.path.isfile(file):
        if os.path.isfile(os.path.join(root, "adapter_model.bin")):
            raise NotSupportedError(f"{root}: adapter_model.bin is a pickle, which can execute any code, so it is not read")
        raise FormatError(f"{root}: contains no {WEIGHTS}")
    stored = AdapterFile(file, drop)
    parts = factors_by_path(stored, KEY)
    settings = _settings(stored.metadata, file)
    layers, magnitudes, nested = {}, {}, {}
    for path, factors in parts.items():
        where = f"{file}: {PREFIX}{path}"
        if not is_target(config, path):
            raise FormatError(f"{where}: target_modules of {CONFIG} does not name it")
        layers[path] = _layer(factors, path, config, settings.get(path), where)
        if path in settings:
            nested[path] = settings[path]
        if bool(config.get("use_dora")) != (MAGNITUDE in factors):
            raise FormatError(f"{where}.{MAGNITUDE} must be there if and only if use_dora is true")
        if MAGNITUDE in factors:
            magnitudes[path] = magnitude(factors, MAGNITUDE, layers[path], where)
    return AdapterWeights(layers, magnitudes, nested, config, dropped=stored.dropped)


def _layer(
    factors: Mapping[str, Array], path: str, config: Mapping[str, Any], settings: DyLoRASettings | None, where: str
) -> LoRALayer:
    A, B = matrix(factors, "lora_A.weight", where).T, matrix(factors, "lora_B.weight", where).T
    rank = rank_of(config, path)
    if rank != A.shape[1]:
        raise FormatError(f"{where}.lora_A.weight must have the rank {rank!r} of {CONFIG}, got shape {A.T.shape}")
    if settings is None:
        return layer_of(A, B, alpha_of(config, path), where, scaling="rslora" if config.get("use_rslora") else "max")
    layer = layer_of(A, B, settings.alpha, where, scaling=settings.scaling)
    try:
        settings.check_branch(layer)
    except ArgumentError as error:
        raise FormatError(f"{where}: invalid DyLoRA settings: {error}") from error
    return layer


def _settings(metadata: Mapping[str, str], file: str) -> dict[str, DyLoRASettings]:
    """The settings of whole DyLoRA adapters, which `save_peft` keeps in the metadata of the file."""
    try:
        nested = dict(json.loads(metadata.get("lora_np", "{}")).get("nested", {}).items())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{file}: its lora_np metadata is damaged: {error}") from error
    settings = {}
    for path, values in nested.items():
        try:
            settings[path] = DyLoRASettings.from_json(values)
        except ArgumentError as error:
            raise FormatError(f"{file}: {PREFIX}{path}: invalid DyLoRA settings: {error}") from error
    return settings


# ---------------------------------------------------------------- applying


def apply_peft(model: Layer, folder: Path | Mapping[str, Path], *, drop: Iterable[str] = ()) -> Layer:
    """A model with the adapters of PEFT folders on its dense layers; the given model is left as it is.

    Parameters
    ----------
    model : Layer
        Its dense layers are found by the dotted paths in the adapter's keys.
    folder : path, or paths by task
        A folder with one adapter yields StandardLoRAAdapter, DoRAAdapter or DyLoRAAdapter layers. Named adapters in its
        subfolders become the tasks of MultiLoRAAdapter layers, of which the first by name is current; so do the adapters of
        a mapping from task names to folders. A task that has no factors for a layer adds nothing there.
    drop : iterable of str, optional
        As in `load_peft`.

    Raises
    ------
    ArgumentError
        If the mapping is empty or contains an invalid task name.
    FormatError
        As in `load_peft`, and if a path or a shape does not fit the model.
    NotSupportedError
        As in `load_peft`, and if a task is DoRA.
    """
    places = _task_folders(folder) if isinstance(folder, Mapping) else peft_adapters(folder)
    if "default" in places and not isinstance(folder, Mapping):
        weights = load_peft(places["default"], drop=drop)
        factories = {path: _factory(weights, path) for path in weights.layers}
    else:
        tasks = {name: load_peft(place, drop=drop) for name, place in places.items()}
        for name, weights in tasks.items():
            if weights.magnitudes:
                raise NotSupportedError(f"{places[name]}: {name!r} is DoRA, which cannot be a task of MultiLoRA")
        paths = dict.fromkeys(path for weights in tasks.values() for path in weights.layers)
        factories = {path: _multi_factory(tasks, path) for path in paths}
    try:
        return apply_adapters(model, factories)
    except ArgumentError as error:
        where = "folder" if isinstance(folder, Mapping) else os.fspath(folder)
        raise FormatError(f"{where}: does not fit the model: {error}") from error


def _task_folders(folders: Mapping[str, Path]) -> dict[str, str]:
    for task in folders:
        if not isinstance(task, str) or not task.strip():
            raise ArgumentError(f"folder must map names of tasks to folders, got {task!r}")
    if not folders:
        raise ArgumentError("folder must contain at least one task, got none")
    return {task: os.fspath(place) for task, place in folders.items()}


def _factory(weights: AdapterWeights, path: str) -> Factory:
    def build(linear: AffineLayer) -> LoRAAdapterBase:
        branch = _fitted(weights.layers[path], linear, path)
        if path in weights.nested:
            return weights.nested[path].around(linear, branch)
        if path in weights.magnitudes:
            adapter = DoRAAdapter.around(linear, branch)
            adapter.set_parameter("magnitude", weights.magnitudes[path])
            return adapter
        return StandardLoRAAdapter.around(linear, branch)

    return build


def _multi_factory(tasks: Mapping[str, AdapterWeights], path: str) -> Factory:
    def build(linear: AffineLayer) -> MultiLoRAAdapter:
        branches = {
            name: _fitted(weights.layers[path], linear, path) if path in weights.layers else _nothing(linear)
            for name, weights in tasks.items()
        }
        return MultiLoRAAdapter.around_tasks(linear, branches)

    return build


def _fitted(layer: LoRALayer, linear: AffineLayer, path: str) -> LoRALayer:
    """The layer in the dtype of the base, whose sizes it must have."""
    if (layer.input_size, layer.output_size) != (linear.input_size, linear.output_size):
        raise ArgumentError(
            f"{path}: the adapter is {layer.input_size} -> {layer.output_size}, "
            f"the layer {linear.input_size} -> {linear.output_size}"
        )
    A, B = layer.matrix_a.astype(linear.dtype), layer.matrix_b.astype(linear.dtype)
    return LoRALayer.from_factors(A, B, layer.alpha, scaling=layer.scaling_rule)


def _nothing(linear: AffineLayer) -> LoRALayer:
    """The branch of a task that has no factors for a layer."""
    return LoRALayer(linear.input_size, linear.output_size, 1, dtype=linear.dtype)


# ---------------------------------------------------------------- writing


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
        Created if it does not exist. For a model with MultiLoRA adapters, it gets a subfolder for each task.
    adapters : AdapterWeights, or a model with adapters
    rank : int, optional
        The active rank at which to write DyLoRA adapters, as plain LoRA. By default they are written whole, with their
        ranks in the metadata of the file, from which `load_peft` and `apply_peft` restore them; PEFT itself uses them at
        max_rank.
    config : mapping, optional
        Additional entries for adapter_config.json, such as base_model_name_or_path, task_type and fan_in_fan_out.

    Raises
    ------
    ArgumentError
        If a task's name cannot be the name of a folder, or if there is nothing to write; nothing is written.
    NotSupportedError
        If an adapter is of a kind that PEFT's LoRA does not have.
    """
    extra = {} if config is None else dict(config)
    if rank is not None and not isinstance(adapters, Layer):
        raise ArgumentError(f"rank needs a model with DyLoRA adapters, got {type(adapters).__name__}")
    if isinstance(adapters, Layer) and has_multi_lora_adapters(adapters):
        for task, weights in extract_tasks(adapters, _tasks(adapters), rank=rank).items():
            _write(os.path.join(folder, task), weights, extra)
        return
    _write(os.fspath(folder), extract(adapters, rank=rank) if isinstance(adapters, Layer) else adapters, extra)


def _write(folder: str, weights: AdapterWeights, extra: Mapping[str, Any]) -> None:
    if not weights.layers:
        raise ArgumentError("adapters must contain at least one layer, got none")
    if weights.magnitudes and len(weights.magnitudes) < len(weights.layers):
        raise NotSupportedError("a PEFT adapter is DoRA on all of its layers or on none")
    for name in [*weights.whole, *weights.rows, *weights.biases]:
        raise NotSupportedError(f"{name} trains besides the low-rank layers, which save_peft cannot write")
    tensors: dict[str, Array] = {}
    for path, layer in weights.layers.items():
        if not path:
            raise ArgumentError("PEFT needs a path for each layer: put the adapter into a Sequential with a name")
        tensors[f"{PREFIX}{path}.lora_A.weight"] = layer.matrix_a.T
        tensors[f"{PREFIX}{path}.lora_B.weight"] = layer.matrix_b.T
        if path in weights.magnitudes:
            tensors[f"{PREFIX}{path}.{MAGNITUDE}"] = weights.magnitudes[path]
    config = json.dumps(config_of(weights) | dict(extra), indent=2, sort_keys=True, ensure_ascii=False).encode()
    metadata = {"format": "pt"}
    if weights.nested:
        nested = {path: settings.to_json() for path, settings in weights.nested.items()}
        metadata["lora_np"] = json.dumps({"nested": nested}, sort_keys=True)
    os.makedirs(folder, exist_ok=True)
    save_safetensors(os.path.join(folder, WEIGHTS), tensors, metadata)
    with atomic_file(os.path.join(folder, CONFIG)) as file:
        file.write(config + b"\n")


def _tasks(model: Layer) -> list[str]:
    """The tasks of a model's MultiLoRA adapters, which must all have the same, as names of folders."""
    adapters = list(find(model, MultiLoRAAdapter).values())
    tasks = list(adapters[0].task_adapters)
    for task in tasks:
        if task in (".", "..", "__base__", "default") or re.search(r'[/\\\x00-\x1f:*?"<>|]', task) or task != task.strip():
            raise ArgumentError(f"the task {task!r} cannot be the name of a folder; rename it")
    for adapter in adapters:
        if set(adapter.task_adapters) != set(tasks):
            raise ArgumentError(f"{adapter.layer_name} must have the tasks {tasks}, it has {list(adapter.task_adapters)}")
    return tasks
