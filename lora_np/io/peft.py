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

from .._archive import atomic_file, atomic_folder
from .._typing import Array
from .._validation import file_path, instance, mapping
from ..adapters.multilora import MultiLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.weights import AdapterWeights, extract, extract_tasks
from ..models.finding import find, has_multi_lora_adapters
from ._applying import applied, applied_tasks, as_in_torch, check_is_task, conv1d_paths
from ._factors import AdapterFile
from ._json import read_json
from ._peft_adalora import read_adalora
from ._peft_config import check_base, digest, read_config
from ._peft_new_config import config_of
from ._peft_tensors import check_writable, tensors_of, weights_of
from ._peft_vera import apply_vera, read_vera, vera_config, vera_of, vera_tensors, vera_weights
from .safetensors import save_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DIGEST = "config_digest"
"""The metadata entry that ties the weights to their configuration."""

PICKLE = (
    "adapter_model.bin is a pickle, which can execute any code, so it is not read; convert it where it is trusted: "
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')\""
)

Path = str | os.PathLike[str]


# ---------------------------------------------------------------- reading


def peft_adapters(folder: Path) -> dict[str, str]:
    """The adapters of a PEFT folder, by name: the one in the folder itself is "default"; others are in subfolders.

    Raises
    ------
    FormatError
        If there is none.
    """
    root = file_path("folder", folder)
    inner = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if os.path.isdir(root) else []
    places = [("default", root), *((name, os.path.join(root, name)) for name in inner)]
    found: dict[str, str] = {}
    for name, place in places:
        if os.path.isfile(os.path.join(place, CONFIG)):
            found.setdefault(name, place)
    if not found:
        raise FormatError(f"{root}: contains no {CONFIG}, and neither does any of its subfolders")
    return found


def peft_type(folder: Path) -> str:
    """The kind of the adapter in a PEFT folder: ``"LORA"``, ``"VERA"``, ...; ``""`` without a valid configuration."""
    try:
        return str(read_json(os.path.join(folder, CONFIG)).get("peft_type"))
    except (OSError, FormatError, AttributeError):
        return ""


def load_peft(folder: Path, *, drop: Iterable[str] = (), base_is_residual: bool = False) -> AdapterWeights:
    """The low-rank layers of one PEFT adapter.

    Parameters
    ----------
    folder : path
        The folder that contains adapter_config.json and adapter_model.safetensors.
    drop : iterable of str, optional
        Shell patterns of names of tensors to leave out, which `AdapterWeights.dropped` then lists. Any other tensor that is
        not understood, or that the configuration does not name, is an error.
    base_is_residual : bool, default False
        If True, accept initialisations that change the base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA): the adapter then belongs
        to the changed weights, the residual, and not to those of the original model.

    Returns
    -------
    AdapterWeights
        In float64 if the file is, in float32 otherwise. AdaLoRA and VeRA become plain factors. If `save_peft` wrote a whole
        DyLoRAAdapter, `nested` holds its settings.

    Raises
    ------
    FormatError
        If the folder is not a valid LoRA adapter of PEFT; the message names the file and the key.
    NotSupportedError
        If the weights are a pickle (adapter_model.bin), or if a factor is not a matrix.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import load_peft, save_peft
    >>> folder = tempfile.mkdtemp()
    >>> save_peft(folder, AdapterWeights({"model.q_proj": LoRALayer(4, 3, rank=2, alpha=8, rng=0)}))
    >>> layer = load_peft(folder).layers["model.q_proj"]
    >>> layer.matrix_a.shape, layer.matrix_b.shape, layer.scaling
    ((4, 2), (2, 3), 4.0)
    """
    stored, config = _opened(folder, drop, base_is_residual)
    if config["peft_type"] == "ADALORA":
        return read_adalora(stored, config)
    if config["peft_type"] == "VERA":
        return vera_weights(read_vera(stored), config)
    return weights_of(stored, config, CONFIG)


def _opened(folder: Path, drop: Iterable[str], base_is_residual: bool) -> tuple[AdapterFile, dict[str, Any]]:
    """The weights of an adapter and its configuration, which belong together."""
    root = file_path("folder", folder)
    places = peft_adapters(root)
    if places.get("default") != root:
        raise FormatError(f"{root}: contains the adapters {', '.join(places)} in subfolders; give one of these")
    config = read_config(os.path.join(root, CONFIG))
    if not base_is_residual:
        check_base(config, os.path.join(root, CONFIG))
    file = os.path.join(root, WEIGHTS)
    if not os.path.isfile(file):
        if os.path.isfile(os.path.join(root, "adapter_model.bin")):
            raise NotSupportedError(f"{root}: {PICKLE}")
        raise FormatError(f"{root}: contains no {WEIGHTS}")
    stored = AdapterFile(file, drop)
    if stored.metadata.get(DIGEST, written := digest(config)) != written:
        raise FormatError(
            f"{root}: {CONFIG} is not the one that {WEIGHTS} was written with: writing them was interrupted, or an entry "
            "such as r or lora_alpha has been edited"
        )
    return stored, config


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
        a mapping from task names to folders. A task that has no factors for a layer adds nothing there. Whole tensors of an
        adapter, such as a trained head, replace those of the model and stay trainable; tasks must agree on them. If a
        CausalLM uses its embedding as its head, and an adapter changes one of the two alone, it gets a separate head.
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

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import DenseLayer, Sequential, StandardLoRAAdapter, apply_lora
    >>> from lora_np.io import apply_peft, save_peft
    >>> base = Sequential({"q_proj": DenseLayer(4, 3, rng=0)})
    >>> adapted = apply_lora(base, StandardLoRAAdapter, rank=2, rng=1)
    >>> adapted.named_parameters()["q_proj.lora.matrix_b"][...] = 1  # instead of training
    >>> folder = tempfile.mkdtemp()
    >>> save_peft(folder, adapted)
    >>> bool(np.array_equal(apply_peft(base, folder).predict(np.eye(4)), adapted.predict(np.eye(4))))
    True
    """
    instance("model", model, Layer, "a layer")
    places = _task_folders(folder) if isinstance(folder, Mapping) else peft_adapters(folder)
    one = "default" in places and not isinstance(folder, Mapping)
    vera = [name for name in (["default"] if one else places) if peft_type(places[name]) == "VERA"]
    if vera and not one:
        raise NotSupportedError(f"{places[vera[0]]}: {vera[0]!r} is VeRA, which cannot be a task of MultiLoRA")
    if vera:
        return _with_vera(model, places["default"], drop)
    tasks = {name: load_peft(places[name], drop=drop) for name in (["default"] if one else places)}
    for name, weights in tasks.items() if not one else ():
        try:
            check_is_task(weights)
        except NotSupportedError as error:
            raise NotSupportedError(f"{places[name]}: {name!r} {error}") from None
    where = "folder" if isinstance(folder, Mapping) else os.fspath(folder)
    try:
        return applied(model, tasks["default"]) if one else applied_tasks(model, tasks)
    except NotSupportedError as error:
        raise NotSupportedError(f"{where}: {error}") from error
    except ArgumentError as error:
        raise FormatError(f"{where}: does not fit the model: {error}") from error


def _with_vera(model: Layer, folder: str, drop: Iterable[str]) -> Layer:
    try:
        stored, config = _opened(folder, drop, False)
        return apply_vera(model, read_vera(stored)._replace(dropout=config.get("vera_dropout") or 0.0))
    except ArgumentError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{folder}: does not fit the model: {error}") from error


def _task_folders(folders: Mapping[str, Path]) -> dict[str, str]:
    for task in folders:
        if not isinstance(task, str) or not task.strip():
            raise ArgumentError(f"folder must map names of tasks to folders, got {task!r}")
    if not folders:
        raise ArgumentError("folder must contain at least one task, got none")
    return {task: file_path("folder", place) for task, place in folders.items()}


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
        Created if it does not exist, and then complete or not there at all, even after a kill. For a model with MultiLoRA
        adapters, it gets a subfolder for each task.
    adapters : AdapterWeights, or a model with adapters
    rank : int, optional
        The active rank at which to write DyLoRA adapters and tasks with ranks, as plain LoRA. By default they are written
        whole, with their ranks in the metadata of the file, from which `load_peft` and `apply_peft` restore them; PEFT
        itself uses them at their full rank.
    config : mapping, optional
        Additional entries for adapter_config.json, such as base_model_name_or_path and task_type.
        fan_in_fan_out, which says that weights are stored as (d_in, d_out), is set for GPT-2.

    Raises
    ------
    ArgumentError
        If a task's name cannot be the name of a folder, or if there is nothing to write; nothing is written.
    NotSupportedError
        If an adapter is of a kind that PEFT's LoRA does not have.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np import DenseLayer, Sequential, StandardLoRAAdapter, apply_lora
    >>> from lora_np.io import load_peft, save_peft
    >>> model = apply_lora(Sequential({"q_proj": DenseLayer(4, 3, rng=0)}), StandardLoRAAdapter, rank=2, rng=1)
    >>> folder = tempfile.mkdtemp()
    >>> save_peft(folder, model)
    >>> load_peft(folder).layers["q_proj"].rank
    2
    """
    folder = file_path("folder", folder)
    instance("adapters", adapters, AdapterWeights | Layer, "AdapterWeights or a model with adapters")
    mapping("config", {} if config is None else config)
    extra = dict({} if config is None else config)
    if isinstance(adapters, Layer) and conv1d_paths(adapters):
        extra = {"fan_in_fan_out": True} | extra
    if rank is not None and not isinstance(adapters, Layer):
        raise ArgumentError(f"rank needs a model with DyLoRA adapters, got {type(adapters).__name__}")
    if not isinstance(adapters, Layer):
        _write(folder, adapters, extra)
    elif (vera := vera_of(adapters)) is not None:
        _write_files(folder, vera_tensors(vera), vera_config(vera) | extra, {})
    elif has_multi_lora_adapters(adapters):
        tasks = extract_tasks(adapters, _tasks(adapters), rank=rank)
        with atomic_folder(folder) as place:
            for task, weights in tasks.items():
                _write(os.path.join(place, task), as_in_torch(adapters, weights, extra), extra)
    else:
        _write(folder, as_in_torch(adapters, extract(adapters, rank=rank), extra), extra)


def _write(folder: str, weights: AdapterWeights, extra: Mapping[str, Any]) -> None:
    check_writable(weights)
    metadata = {}
    if weights.nested:
        nested = {path: settings.to_json() for path, settings in weights.nested.items()}
        metadata["lora_np"] = json.dumps({"nested": nested}, sort_keys=True)
    _write_files(folder, tensors_of(weights), config_of(weights) | dict(extra), metadata)


def _write_files(folder: str, tensors: Mapping[str, Array], config: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    content = _encoded(config)
    with atomic_folder(folder) as place:
        save_safetensors(os.path.join(place, WEIGHTS), tensors, {"format": "pt", DIGEST: digest(config), **metadata})
        with atomic_file(os.path.join(place, CONFIG)) as file:
            file.write(content + b"\n")


def _encoded(config: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"config must have values that JSON can hold: {error}") from error


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
