"""LoRA files of diffusers, ``pytorch_lora_weights.safetensors``, and the weights of a PEFT adapter without their folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .._typing import Array
from .._validation import finite_float
from ..errors import ArgumentError, FormatError
from ..factors.weights import AdapterWeights
from ._convolutions import as_stored, stored_magnitude
from ._factors import AdapterFile, layer_of, magnitude, pair
from ._holding import check_holds
from ._json import parsed_json
from ._peft_config import check_entries
from ._peft_names import alpha_of
from ._peft_new_config import config_of
from .base_names import (
    COMPONENTS,
    check_component,
    components,
    needs_base_names,
    renamed,
    split_component,
)
from .safetensors import SafetensorsFile, save_safetensors

METADATA = "lora_adapter_metadata"
"""The entry of the metadata that holds the configuration of each component, since diffusers 0.34."""

DOWN, UP, MAGNITUDE, ALPHA = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "alpha"

FORMS = (
    (re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_[AB]\.weight|lora_magnitude_vector|alpha)"), "{}"),
    (re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.((?:down|up)\.weight|alpha)"), "{}"),
    (re.compile(r"(.+)\.processor\.to_([qkv])_lora\.((?:down|up)\.weight)"), "{}.to_{}"),
    (re.compile(r"(.+)\.processor\.to_out_lora\.((?:down|up)\.weight)"), "{}.to_out.0"),
    (re.compile(r"(.+\.self_attn)\.to_([qkv])_lora\.((?:down|up)\.weight)"), "{}.{}_proj"),
    (re.compile(r"(.+\.self_attn)\.to_out_lora\.((?:down|up)\.weight)"), "{}.out_proj"),
)
"""The forms of keys, earlier versions last, and the module that the groups before the last mean; the last is the kind."""

KINDS = {"down.weight": DOWN, "up.weight": UP}
"""The present names of earlier kinds."""

Path = str | os.PathLike[str]


def load_diffusers(file: Path, *, alpha: float | None = None, drop: Iterable[str] = ()) -> AdapterWeights:
    """Load the low-rank layers of a diffusers file, or of a PEFT adapter's weights without its configuration.

    Parameters
    ----------
    file : path
        A file with ``<path>.lora_A.weight`` (r, d_in) and ``<path>.lora_B.weight`` (d_out, r), or with the names of earlier
        versions (``lora.down.weight``, ``processor.to_q_lora.down.weight``). Paths begin with the component of a pipeline
        (``unet.``, ``text_encoder.``, ``transformer.``), or, in a file of PEFT, with ``base_model.model.``.
    alpha : float, optional
        The alpha of layers for which the file stores none, neither as ``<path>.alpha`` nor in its metadata. It defaults to
        the rank, as in diffusers, if all such layers have the same rank.
    drop : iterable of str, optional
        Shell patterns of names of tensors to leave out, which `AdapterWeights.dropped` then lists. Any other tensor that is
        not understood is an error.

    Raises
    ------
    FormatError
        If a factor is missing, a shape is wrong, or a key is unknown, and if layers of different ranks have no alpha and
        `alpha` is not given. The message names the file and the key.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lora_np.io import load_diffusers, save_safetensors
    >>> file = Path(tempfile.mkdtemp()) / "pytorch_lora_weights.safetensors"
    >>> A, B = np.ones((2, 4)), np.ones((3, 2))
    >>> save_safetensors(file, {"unet.proj.lora_A.weight": A, "unet.proj.lora_B.weight": B})
    >>> load_diffusers(file, alpha=1).layers["unet.proj"].scaling
    0.5
    """
    if alpha is not None:
        alpha = finite_float("alpha", alpha)
    stored = AdapterFile(file, drop)
    parts = stored.take_by(_place)
    stored.check_all_taken()
    if not parts:
        raise FormatError(f"{stored.label}: contains no LoRA factors")
    config = _config(stored.metadata, stored.label)
    alphas = {path: _stored_alpha(path, factors, config, f"{stored.label}: {path}") for path, factors in parts.items()}
    if alpha is None:
        _check_ranks({path: factors for path, factors in parts.items() if alphas[path] is None}, stored.label)
    layers, magnitudes, kernels = {}, {}, {}
    for path, factors in parts.items():
        where = f"{stored.label}: {path}"
        A, B, kernel = pair(factors, DOWN, UP, where)
        known = alphas[path]
        value = known if known is not None else A.shape[1] if alpha is None else alpha
        rule = "rslora" if known is not None and ALPHA not in factors and config.get(_name(path, "use_rslora")) else "max"
        layers[path] = layer_of(A, B, value, where, scaling=rule)
        if kernel:
            kernels[path] = kernel
        if MAGNITUDE in factors:
            magnitudes[path] = magnitude(factors, MAGNITUDE, layers[path], where)
    return AdapterWeights(layers, magnitudes, dropped=stored.dropped, kernels=kernels)


def lacks_alpha(file: Path) -> bool:
    """Whether a layer of a diffusers file has no stored alpha, so that `load_diffusers` takes its rank."""
    with SafetensorsFile(file) as tensors:
        config = _config(tensors.metadata, os.fspath(file))
        places = [place for key in tensors if (place := _place(key))]
    with_alpha = {path for path, kind in places if kind == ALPHA or _name(path, "lora_alpha") in config}
    return any(path not in with_alpha for path, _ in places)


def save_diffusers(file: Path, weights: AdapterWeights, *, component: str | None = None) -> None:
    """Write an adapter as a file for ``load_lora_weights`` of diffusers.

    Parameters
    ----------
    file : path
        Usually ``pytorch_lora_weights.safetensors``.
    weights : AdapterWeights
        Its paths begin with the component of a pipeline: ``unet.``, ``transformer.``, ``text_encoder.``.
    component : str, optional
        The component of the paths that begin with none.

    Raises
    ------
    NotSupportedError
        If the adapter has something that the format cannot hold, such as whole tensors; the message names it.
    ArgumentError
        If a path has no component. Nothing is written.

    Notes
    -----
    Ranks and alphas are in the metadata, a configuration of PEFT for each component, as in diffusers since 0.34. Earlier
    versions ignore them and take the rank for alpha.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import load_diffusers, save_diffusers
    >>> file = Path(tempfile.mkdtemp()) / "pytorch_lora_weights.safetensors"
    >>> save_diffusers(file, AdapterWeights({"unet.mid_block.proj_in": LoRALayer(4, 4, rank=2, alpha=3, rng=0)}))
    >>> load_diffusers(file).layers["unet.mid_block.proj_in"].alpha
    3.0
    """
    check_holds("diffusers", weights, ("magnitudes", "kernels"))
    check_component(component)
    weights = _with_component(weights, component)
    tensors: dict[str, Array] = {}
    for path, layer in weights.layers.items():
        kernel = weights.kernels.get(path, ())
        tensors[f"{path}.{DOWN}"], tensors[f"{path}.{UP}"] = as_stored(layer, kernel)
        if path in weights.magnitudes:
            tensors[f"{path}.{MAGNITUDE}"] = stored_magnitude(weights.magnitudes[path], kernel)
    config = {
        f"{component}.{name}": value
        for component, part in components(weights).items()
        for name, value in config_of(part).items()
    }
    save_safetensors(file, tensors, {"format": "pt", METADATA: json.dumps(config, indent=2, sort_keys=True)})


def _with_component(weights: AdapterWeights, default: str | None) -> AdapterWeights:
    """The adapter with paths that begin with a component."""
    names = {}
    for path in weights.layers:
        component, rest = split_component(path)
        component = component or default
        if not (path and component) or needs_base_names(weights):
            raise ArgumentError(
                f"paths of layers must begin with a component of a pipeline ({', '.join(COMPONENTS)}), got {path!r}; "
                "component= gives it"
            )
        names[path] = f"{component}.{rest}"
    if len(set(names.values())) < len(names):
        raise ArgumentError(f"paths of layers must differ with the component {default!r}, got {sorted(names)}")
    return renamed(weights, names)


def _place(key: str) -> tuple[str, str] | None:
    """The layer path and kind that a key means."""
    for pattern, module in FORMS:
        if match := pattern.fullmatch(key):
            *names, kind = match.groups()
            return module.format(*names), KINDS.get(kind, kind)
    return None


def _config(metadata: Mapping[str, str], label: str) -> dict[str, Any]:
    """The configuration in the metadata, whose names begin with a component."""
    try:
        config = parsed_json(metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{label}: {METADATA} of its metadata is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise FormatError(f"{label}: {METADATA} of its metadata must be an object, got {config!r}")
    for component in COMPONENTS:
        prefix = f"{component}."
        entries = {name.removeprefix(prefix): value for name, value in config.items() if name.startswith(prefix)}
        check_entries(entries, f"{label}: {prefix[:-1]} in {METADATA} of its metadata")
    return config


def _name(path: str, setting: str) -> str:
    return f"{split_component(path)[0]}.{setting}"


def _stored_alpha(path: str, factors: Mapping[str, Array], config: Mapping[str, Any], where: str) -> float | None:
    """The alpha that a file stores for a layer, as a tensor or in its metadata."""
    if ALPHA in factors:
        if factors[ALPHA].size != 1:
            raise FormatError(f"{where}.alpha must be one number, got shape {factors[ALPHA].shape}")
        return float(factors[ALPHA].item())
    if _name(path, "lora_alpha") not in config:
        return None
    names = ("lora_alpha", "alpha_pattern")
    alpha: float = alpha_of({name: config.get(_name(path, name)) for name in names}, split_component(path)[1])
    return alpha


def _check_ranks(parts: Mapping[str, Mapping[str, Array]], label: str) -> None:
    """Raise if layers without an alpha differ in rank: a default would be a guess."""
    ranks = {path: len(factors[DOWN]) for path, factors in parts.items() if DOWN in factors}
    if len(set(ranks.values())) > 1:
        (first, one), *others = ranks.items()
        path, other = next((path, rank) for path, rank in others if rank != one)
        raise FormatError(
            f"{label}: no alpha is stored for {first} of rank {one} and {path} of rank {other}; alpha= gives it"
        )
