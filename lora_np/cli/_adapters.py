"""Adapters from any file or folder that lora_np reads; what is inside decides the format, not the name."""

import argparse
import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._validation import ascending_ranks
from ..adapters.multilora import MultiLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, FormatError, InvalidOperationError, NotSupportedError
from ..factors.weights import AdapterWeights, extract
from ..io import kohya, mlx, npz, peft
from ..io.safetensors import SafetensorsFile
from ..layers.lora import LoRALayer
from ._text import natural

DEFAULT = "default"
"""PEFT's name for the adapter that is in the folder itself."""

LOOKED_FOR = (
    f"looked for {peft.CONFIG} with {peft.WEIGHTS} (PEFT; also in folders inside it) or with {mlx.WEIGHTS} (mlx-lm), "
    "a safetensors file with <module>.lora_down.weight (kohya), and an npz file of lora_np"
)

ADAPTER = "an adapter: a PEFT folder, an mlx-lm folder, a kohya file, or an npz file of lora_np"

KEPT = ("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out")
"""What a PEFT configuration says of the base, which stays true of a changed adapter."""


@dataclass(frozen=True)
class Adapters:
    """The adapters that a path holds; each is read when it is asked for."""

    path: str
    kind: str
    names: tuple[str, ...]
    """``("",)`` for one without a name."""
    read: Callable[[str], AdapterWeights]
    files: Mapping[str, str]
    """The safetensors file of each; empty for those in a model."""
    model: Layer | None = None
    """The model that they are in."""


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that say what to take from a file or folder: ``--task`` and ``--lenient``."""
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="which adapter to take from several: a task of a model with MultiLoRA, or a named adapter of a PEFT folder",
    )
    add_lenient(parser)


def add_lenient(parser: argparse.ArgumentParser) -> None:
    """The option ``--lenient``."""
    parser.add_argument(
        "--lenient", action="store_true", help="leave out keys that are no LoRA factors, instead of refusing the file"
    )


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Errors inside it name the file or folder that they are about."""
    try:
        yield
    except (ArgumentError, InvalidOperationError, NotSupportedError) as error:
        text = str(error).replace("strict=False leaves", "--lenient leaves")
        named = text.startswith((f"{path}:", f"{path} ", os.path.join(path, "")))
        raise type(error)(text if named else f"{path}: {text}") from error


def find_adapters(path: str, *, strict: bool = True) -> Adapters | None:
    """The adapters in a file or folder; None where there are none.

    Raises
    ------
    FormatError
        What is there is damaged.
    ArgumentError
        There is no such file or folder.
    """
    path = os.path.normpath(path)
    if not os.path.exists(path):
        raise ArgumentError(f"{path}: there is no such file or folder")
    folder, name = os.path.split(path)
    if name in (peft.WEIGHTS, mlx.WEIGHTS) and os.path.isfile(os.path.join(folder, peft.CONFIG)):
        path = folder or os.curdir  # the weights alone do not say their scaling
    with naming(path):
        if os.path.isdir(path):
            return _mlx(path, strict) if os.path.isfile(os.path.join(path, mlx.WEIGHTS)) else _peft(path, strict)
        return _npz(path) if zipfile.is_zipfile(path) else _kohya(path, strict)


def load_adapter(path: str, *, task: str | None = None, rank: int | None = None, strict: bool = True) -> AdapterWeights:
    """One adapter from a file or folder.

    Parameters
    ----------
    path : str
        A PEFT folder, an mlx-lm folder, a kohya file, or an npz file of lora_np with a model that has adapters.
    task : str, optional
        Which of several: a task of MultiLoRA, or a named adapter of PEFT. Needed where there are several and none is PEFT's
        "default".
    rank : int, optional
        An active rank at which to take DyLoRA layers, as plain ones; whole, with their settings, if left out.
    strict : bool, default True
        Whether a key that is no LoRA factor is an error; otherwise it is left out.

    Raises
    ------
    FormatError
        There is no adapter, or it is damaged; the message names the file and the key.
    ArgumentError
        There is no such file, task or active rank, or several adapters and no task.
    NotSupportedError
        An adapter of another kind than two factors for each matrix.
    """
    found = require_adapters(path, strict=strict)
    weights = read(found, _chosen(found, task))
    return weights if rank is None else at_rank(weights, rank, found.path)


def require_adapters(path: str, *, strict: bool = True) -> Adapters:
    """The adapters in a file or folder, which must be there."""
    found = find_adapters(path, strict=strict)
    if found is None:
        raise FormatError(f"{path}: no adapter in it; {LOOKED_FOR}")
    return found


def read(adapters: Adapters, name: str) -> AdapterWeights:
    """One of them, its DyLoRA settings checked."""
    with naming(adapters.path):
        weights = adapters.read(name)
        for layer_path, settings in weights.nested.items():
            _check_nested(settings, weights.layers[layer_path], layer_path)
    if adapters.model is None:
        return replace(weights, layers={path: weights.layers[path] for path in sorted(weights.layers, key=natural)})
    return weights


def at_rank(weights: AdapterWeights, rank: int | None, path: str) -> AdapterWeights:
    """The adapter with plain layers for those of DyLoRA, at one of their ranks or else at the rank that each deploys."""
    if rank is not None and not weights.nested:
        raise ArgumentError(f"{path}: it has no DyLoRA layer to take at rank {rank}")
    layers = dict(weights.layers)
    for name, settings in weights.nested.items():
        chosen = settings["current_deployment_rank"] if rank is None else rank
        if chosen not in settings["active_ranks"]:
            raise ArgumentError(
                f"{path}: {name}: rank must be one of its active ranks {settings['active_ranks']}, got {rank}"
            )
        layers[name] = first_components(layers[name], chosen)
    return replace(weights, layers=layers, nested={})


def first_components(layer: LoRALayer, rank: int) -> LoRALayer:
    """A plain layer of the first components, scaled as the layer scales them at that rank."""
    A, B = layer.matrix_a[:, :rank], layer.matrix_b[:rank]
    return LoRALayer.from_factors(A, B, layer.scaling_at(rank) * rank)


def kept_config(*sources: AdapterWeights) -> dict[str, Any]:
    """What the configurations of all sources say alike of the base."""
    first, *others = (source.config for source in sources)
    return {
        name: first[name]
        for name in KEPT
        if name in first and all(name in other and other[name] == first[name] for other in others)
    }


def _chosen(found: Adapters, task: str | None) -> str:
    if task is not None:
        if task not in found.names or not task:
            named = ", ".join(filter(None, found.names))
            raise ArgumentError(
                f"{found.path}: it has no adapter {task!r}, {f'but {named}' if named else 'but one without a name'}"
            )
        return task
    if len(found.names) > 1 and DEFAULT not in found.names:
        raise ArgumentError(f"{found.path}: it holds the adapters {', '.join(found.names)}; choose one with --task")
    return DEFAULT if DEFAULT in found.names else found.names[0]


def _peft(folder: str, strict: bool) -> Adapters | None:
    try:
        places = peft.peft_adapters(folder)
    except FormatError:
        return None
    names = ("",) if list(places) == [DEFAULT] and places[DEFAULT] == folder else tuple(places)
    by_name = {name: places[name or DEFAULT] for name in names}
    files = {name: os.path.join(place, peft.WEIGHTS) for name, place in by_name.items()}
    kind = "PEFT adapter" if names == ("",) else "PEFT adapters"
    return Adapters(folder, kind, names, lambda name: peft.load_peft(by_name[name], strict=strict), files)


def _mlx(folder: str, strict: bool) -> Adapters:
    files = {"": os.path.join(folder, mlx.WEIGHTS)}
    return Adapters(folder, "mlx-lm adapter", ("",), lambda _: mlx.load_mlx(folder, strict=strict), files)


def _kohya(file: str, strict: bool) -> Adapters | None:
    try:
        with SafetensorsFile(file) as tensors:
            found = any(key.endswith(".lora_down.weight") for key in tensors)
    except FormatError as error:
        if file.endswith(".safetensors"):
            raise
        raise FormatError(f"{file}: no format that lora_np reads; {LOOKED_FOR}; pickles are never read") from error
    if not found:
        return None
    return Adapters(file, "kohya adapter", ("",), lambda _: kohya.load_kohya(file, strict=strict), {"": file})


def _npz(file: str) -> Adapters:
    model = npz.load_layer(file)
    tasks = dict.fromkeys(
        task for layer in model.walk().values() if isinstance(layer, MultiLoRAAdapter) for task in layer.task_adapters
    )
    kind = f"adapters of a model in an npz file ({type(model).__name__})"
    return Adapters(file, kind, tuple(tasks) or ("",), lambda name: extract(model, task=name or None), {}, model)


def _check_nested(settings: Mapping[str, Any], layer: LoRALayer, path: str) -> None:
    """Refuse DyLoRA settings that do not fit their layer: in a PEFT folder they are free text."""
    try:
        ranks = ascending_ranks("active_ranks", settings["active_ranks"], layer.rank)
    except ArgumentError as error:
        raise FormatError(f"{path}: its DyLoRA settings are damaged: {error}") from error
    if settings["current_deployment_rank"] not in ranks:
        raise FormatError(f"{path}: its DyLoRA settings are damaged: the deployment rank must be one of {list(ranks)}")
