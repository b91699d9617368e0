"""Adapters of image models: which module of a base each name in a file means, and which part of a pipeline it belongs to.

Files of kohya write ``lora_unet_mid_block_attentions_0_proj_in`` for ``mid_block.attentions.0.proj_in`` of the U-Net. Dots
cannot be told from underscores, so the names are matched to those of a base. diffusers writes the component of the pipeline
first: ``unet.mid_block.attentions.0.proj_in``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

from .._validation import file_path, instance
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ._flux_names import separated
from ._open_clip_names import Place, stacked, transformers_modules
from ._unet_names import diffusers_name, single_file_names
from .merge import INDEX, SINGLE, checkpoint_files
from .safetensors import SafetensorsFile

Path = str | os.PathLike[str]

COMPONENTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The parts of a diffusers pipeline that have adapters: the folders of a pipeline, and the first words of its keys."""

KOHYA_PREFIXES = {
    "lora_unet_": ("unet", "transformer"),
    "lora_transformer_": ("transformer",),
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3",),
    "lycoris_": COMPONENTS,
}
"""The components that each prefix of kohya's and LyCORIS's names may mean."""

TRANSFORMER_BLOCKS = (
    "transformer_blocks",
    "single_transformer_blocks",
    "double_blocks",
    "single_blocks",
    "joint_blocks",
    "blocks",
)
"""The first names of modules in diffusion transformers, such as Flux."""

SINGLE_FILE_PREFIXES = {
    "model.diffusion_model.": "unet",
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "cond_stage_model.model.": "text_encoder",
}
"""The components of the modules in a single-file checkpoint of Stable Diffusion."""

WEIGHT_FILES = (
    *(INDEX, SINGLE, "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    *("model.safetensors.index.fp16.json", "model.fp16.safetensors"),
    *("diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model.fp16.safetensors"),
)
"""The names of the weights of a model; the first that a folder has counts."""


class Module(NamedTuple):
    """A module of a base."""

    component: str | None
    """Its part of a pipeline; None if the base does not say."""
    path: str
    """Its name within the component; the names of U-Nets are those of diffusers, of text encoders those of transformers."""
    tensor: str
    """The name of its weight in the base, without ``.weight``."""
    size: int
    """The number of its outputs: the length of the first axis of its weight."""
    place: Place | None = None
    """Where its weight is if a tensor holds those of several modules."""


def with_base_names(weights: AdapterWeights, base: Path, *, component: str | None = None) -> AdapterWeights:
    """An adapter whose layers have the module names of a base: ``unet.mid_block...``, or ``model.layers.0...``.

    Parameters
    ----------
    weights : AdapterWeights
        From a file of kohya, with underscores for dots, or from one of diffusers.
    base : path
        A safetensors file, a folder of one model, or a diffusers pipeline with a folder for each component.
    component : str, optional
        The component that `base` is, if it is one model. By default the names of the adapter tell, if they can.

    Returns
    -------
    AdapterWeights
        The paths begin with the component of each layer, as in diffusers, if it is known.

    Raises
    ------
    FormatError
        If a name fits no module of the base, or several, or if two names fit the same one. The message names them.

    Notes
    -----
    For Flux, a layer of a fused module (``double_blocks.0.img_attn.qkv``) becomes layers of the separate modules of a base
    of diffusers (``transformer_blocks.0.attn.to_q`` and so on), which share A.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import save_safetensors, with_base_names
    >>> base = Path(tempfile.mkdtemp()) / "unet.safetensors"
    >>> save_safetensors(base, {"mid_block.proj_in.weight": np.zeros((4, 4))})
    >>> weights = AdapterWeights({"lora_unet_mid_block_proj_in": LoRALayer(4, 4, rank=2, rng=0)})
    >>> list(with_base_names(weights, base).layers)
    ['unet.mid_block.proj_in']
    """
    instance("weights", weights, AdapterWeights, "AdapterWeights")
    check_component(component)
    weights, matches = _matched(weights, base)
    names = {}
    for path, module in matches.items():
        part = module.component or component or _component(path, module.path)
        names[path] = f"{part}.{module.path}" if part else module.path
    return renamed(weights, names)


def check_component(component: str | None) -> None:
    """Raise ArgumentError if it is not a component of a pipeline."""
    if component is not None and component not in COMPONENTS:
        raise ArgumentError(f"component must be one of {', '.join(COMPONENTS)}, got {component!r}")


def with_tensor_names(weights: AdapterWeights, base: Path) -> AdapterWeights:
    """An adapter whose layers have the names of the tensors that they change in a base, for `merge_checkpoint`.

    Raises
    ------
    FormatError
        As in `with_base_names`.
    NotSupportedError
        If modules that share a weight cannot be changed together.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import save_safetensors
    >>> from lora_np.io.base_names import with_tensor_names
    >>> base = Path(tempfile.mkdtemp()) / "sd15.safetensors"
    >>> save_safetensors(base, {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((4, 4))})
    >>> weights = AdapterWeights({"lora_unet_conv_in": LoRALayer(4, 4, rank=2, rng=0)})
    >>> list(with_tensor_names(weights, base).layers)
    ['model.diffusion_model.input_blocks.0.0']
    """
    weights, matches = _matched(weights, base)
    places = {path: module.place for path, module in matches.items() if module.place}
    names = {path: module.tensor for path, module in matches.items() if path not in places}
    try:
        weights = stacked(weights, places)
    except FormatError as error:
        raise FormatError(f"{os.fspath(base)}: {error}") from error
    return renamed(weights, names | {place.tensor: place.tensor for place in places.values()})


def needs_base_names(weights: AdapterWeights) -> bool:
    """Whether a layer has a name of kohya's, in which underscores stand for dots."""
    return any(path.startswith(tuple(KOHYA_PREFIXES)) for path in weights.layers)


def components(weights: AdapterWeights) -> dict[str, AdapterWeights]:
    """The parts of an adapter by component of a pipeline, with the names of modules within it; ``""`` for other paths.

    Examples
    --------
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io.base_names import components
    >>> layer = LoRALayer(4, 4, rank=2, rng=0)
    >>> parts = components(AdapterWeights({"unet.conv_in": layer, "text_encoder.fc1": layer}))
    >>> {name: list(part.layers) for name, part in parts.items()}
    {'text_encoder': ['fc1'], 'unet': ['conv_in']}
    """
    parts: dict[str, dict[str, str]] = {}
    for path in weights.layers:
        component, rest = split_component(path)
        parts.setdefault(component or "", {})[path] = rest
    return {component: renamed(weights, names) for component, names in sorted(parts.items())}


def split_component(path: str) -> tuple[str | None, str]:
    """The component that a path begins with, or None, and the rest."""
    first, dot, rest = path.partition(".")
    return (first, rest) if dot and first in COMPONENTS else (None, path)


def renamed(weights: AdapterWeights, names: dict[str, str]) -> AdapterWeights:
    """The layers of `names` and everything that belongs to them, under new paths; NotSupportedError for whole tensors."""
    for key in [*weights.whole, *weights.rows, *weights.experts]:
        raise NotSupportedError(f"{key!r}, which the adapter changes, is not a layer whose name could be changed")

    def changed(value: Any) -> Any:
        if isinstance(value, frozenset):
            return frozenset(names[path] for path in value if path in names)
        return {names[path]: item for path, item in value.items() if path in names}

    by_path = [
        field.name for field in fields(weights) if field.name not in ("config", "whole", "rows", "experts", "dropped")
    ]
    return replace(weights, **{name: changed(getattr(weights, name)) for name in by_path})


# ---------------------------------------------------------------- matching


def _matched(weights: AdapterWeights, base: Path) -> tuple[AdapterWeights, dict[str, Module]]:
    """The adapter, without fused layers where the base has separate ones, and the module that each of its layers adapts."""
    label = file_path("base", base)
    modules = base_modules(base)
    sizes = {module.path.replace(".", "_"): module.size for module in modules if module.component in (None, "transformer")}
    try:
        weights = separated(weights, {path: _flat_name(path) for path in weights.layers}, sizes)
    except FormatError as error:
        raise FormatError(f"{label}: {error}") from error
    by_name: dict[str, list[Module]] = {}
    for module in modules:
        for name in _flat_names(module):
            by_name.setdefault(name, []).append(module)
    matches: dict[str, Module] = {}
    taken: dict[Module, str] = {}
    for path in weights.layers:
        allowed, name = _components(path), _flat_name(path)
        found = [module for module in by_name.get(name, ()) if module.component is None or module.component in allowed]
        if not found:
            changed = f"{path!r}, which the adapter changes; drop='{path}.*' would leave it out"
            raise FormatError(f"{label}: no module has the name of {changed}")
        if len(found) > 1:
            raise FormatError(f"{label}: {path!r} may be {found[0].tensor!r} or {found[1].tensor!r}")
        module = matches[path] = found[0]
        if taken.setdefault(module, path) != path:
            raise FormatError(f"{label}: both {taken[module]!r} and {path!r} are {module.tensor!r}")
    return weights, matches


def base_modules(base: Path) -> list[Module]:
    """The modules of a base that have a weight."""
    root = os.fspath(base)
    parts = [name for name in COMPONENTS if model_file(os.path.join(root, name))]
    places = {name: model_file(os.path.join(root, name)) for name in parts} or {"": model_file(root)}
    modules = []
    for component, place in places.items():
        for file in checkpoint_files(place or root).values():
            with SafetensorsFile(file) as tensors:
                keys = [key for key in tensors if key.endswith((".weight", "_weight"))]
                modules += [module for key in keys for module in _modules(key, component, *tensors.info(key).shape[:1])]
    return modules


def model_file(folder: str) -> str | None:
    """The weights of a model in its folder: an index or a file."""
    return next((file for name in WEIGHT_FILES if os.path.isfile(file := os.path.join(folder, name))), None)


def _modules(key: str, component: str, size: int = 1) -> Iterator[Module]:
    """The modules whose weight, of `size` rows, is a tensor of a base, or of a component."""
    prefix = "" if component else next((prefix for prefix in SINGLE_FILE_PREFIXES if key.startswith(prefix)), "")
    part = component or SINGLE_FILE_PREFIXES.get(prefix)
    inner, tensor = key.removeprefix(prefix), key.removesuffix(".weight")
    paths = transformers_modules(inner)
    for number, path in enumerate(paths):
        start, stop = (size * n // len(paths) for n in (number, number + 1))
        place = Place(tensor, start, stop, size) if len(paths) > 1 else None
        yield Module(part, path, tensor, stop - start, place)
    if not paths and key.endswith(".weight"):
        path = inner.removesuffix(".weight")
        if prefix:
            yield Module(part, (part == "unet" and diffusers_name(path)) or path, tensor, size)
        else:
            yield Module(*((part, path) if part else split_component(path)), tensor, size)


def _flat_names(module: Module) -> Iterator[str]:
    """The names of a module with underscores for dots."""
    paths = {module.path} if module.place else {module.path, module.tensor}
    if module.component in (None, "unet"):
        paths.update(single_file_names(module.path))
    return (name for name in {path.replace(".", "_") for path in paths})


def _flat_name(path: str) -> str:
    """The name of the module that a path of an adapter means, with underscores for dots."""
    for prefix in KOHYA_PREFIXES:
        if path.startswith(prefix):
            return path.removeprefix(prefix).replace(".", "_")
    return split_component(path)[1].removeprefix("diffusion_model.").replace(".", "_")


def _components(path: str) -> tuple[str, ...]:
    """The components that a path of an adapter may mean."""
    for prefix, parts in KOHYA_PREFIXES.items():
        if path.startswith(prefix):
            return parts
    component, _ = split_component(path)
    return COMPONENTS if component is None else (component,)


def _component(path: str, module: str) -> str | None:
    """The component that a name means; for a prefix that means U-Nets and transformers, the module decides."""
    if path.startswith("lora_unet_"):
        return "transformer" if module.partition(".")[0] in TRANSFORMER_BLOCKS else "unet"
    found = _components(path)
    return found[0] if len(found) == 1 else None
