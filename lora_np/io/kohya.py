"""LoRA files of kohya's sd-scripts and LyCORIS: a safetensors file with lora_down, lora_up and alpha for each module."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping

import numpy as np

from .._typing import Array
from ..errors import ArgumentError, FormatError
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from ._convolutions import Kernel, as_stored, composed
from ._factors import AdapterFile, factors_by_path, layer_of, pair
from ._holding import check_holds
from .base_names import KOHYA_PREFIXES, check_component, split_component
from .safetensors import save_safetensors

KEY = re.compile(r"(.+)\.(lora_down\.weight|lora_mid\.weight|lora_up\.weight|alpha|dora_scale)")

PREFIXES = {
    "unet": "lora_unet_",
    "transformer": "lora_transformer_",
    "text_encoder": "lora_te_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}
"""The prefix of each component of a pipeline; with a second text encoder, the first is ``lora_te1_``."""

Path = str | os.PathLike[str]


def load_kohya(file: Path, *, drop: Iterable[str] = ()) -> AdapterWeights:
    """Load the low-rank layers of a kohya file, keyed by the module names of the file (underscores instead of dots).

    Parameters
    ----------
    file : path
        A file with ``<module>.lora_down.weight`` (r, d_in), ``<module>.lora_up.weight`` (d_out, r) and, optionally,
        ``<module>.alpha``, a scalar that defaults to the rank, and ``<module>.dora_scale``, (d_out, 1), or (1, d_in) for
        DoRA of the inputs. The factors of convolutions are ``(r, d_in, *kernel)`` and ``(d_out, r, 1, ...)``, or, with
        ``lora_mid.weight`` ``(r, r, *kernel)`` between them, (r, d_in, 1, ...) and (d_out, r, 1, ...): the first two are
        then composed.
    drop : iterable of str, optional
        Shell patterns of names of tensors to leave out, which `AdapterWeights.dropped` then lists. Any other tensor that is
        not understood is an error.

    Raises
    ------
    FormatError
        If a factor is missing, a shape is wrong, or a key is unknown. The message names the file and the key.

    See Also
    --------
    lora_np.io.base_names.with_base_names : replaces the names of the file by those of a base.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import load_kohya, save_kohya
    >>> file = Path(tempfile.mkdtemp()) / "adapter.safetensors"
    >>> save_kohya(file, AdapterWeights({"lora_unet_proj_in": LoRALayer(4, 3, rank=2, rng=0)}))
    >>> list(load_kohya(file).layers)
    ['lora_unet_proj_in']
    """
    stored = AdapterFile(file, drop)
    layers, magnitudes, kernels, by_input = {}, {}, {}, set()
    for path, factors in factors_by_path(stored, KEY).items():
        where = f"{os.fspath(file)}: {path}"
        A, B, kernel = _matrices(factors, where)
        layers[path] = layer_of(A, B, _alpha(factors, A.shape[1], where), where)
        if kernel:
            kernels[path] = kernel
        if "dora_scale" in factors:
            magnitudes[path], is_by_input = _magnitude(factors["dora_scale"], layers[path], kernel, where)
            by_input |= {path} if is_by_input else set()
    return AdapterWeights(layers, magnitudes, kernels=kernels, dropped=stored.dropped, by_input=frozenset(by_input))


def save_kohya(file: Path, weights: AdapterWeights, *, component: str | None = None) -> None:
    """Write an adapter as a file that kohya's sd-scripts, diffusers and the usual interfaces for image models read.

    Parameters
    ----------
    file : path
    weights : AdapterWeights
        Its paths begin with the component of a pipeline, such as ``unet.`` or ``text_encoder.``, or are names of kohya's.
    component : str, optional
        The component of the paths that begin with none.

    Raises
    ------
    NotSupportedError
        If the adapter has something that the format cannot hold, such as whole tensors; the message names it.
    ArgumentError
        If a path has no component, or if two paths become the same name. Nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np import LoRALayer
    >>> from lora_np.factors.weights import AdapterWeights
    >>> from lora_np.io import load_kohya, save_kohya
    >>> file = Path(tempfile.mkdtemp()) / "lora.safetensors"
    >>> save_kohya(file, AdapterWeights({"unet.mid_block.proj_in": LoRALayer(4, 4, rank=2, rng=0)}))
    >>> list(load_kohya(file).layers)
    ['lora_unet_mid_block_proj_in']
    """
    check_holds("kohya", weights, ("magnitudes", "kernels", "by_input"))
    check_component(component)
    tensors: dict[str, Array] = {}
    for path, name in _names(weights, component).items():
        layer, kernel = weights.layers[path], weights.kernels.get(path, ())
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = as_stored(layer, kernel)
        tensors[f"{name}.alpha"] = _number(layer.scaling * layer.rank if layer.scaling_rule == "rslora" else layer.alpha)
        if path in weights.magnitudes:
            scale = np.expand_dims(weights.magnitudes[path], 0 if path in weights.by_input else 1)
            tensors[f"{name}.dora_scale"] = scale.reshape(*scale.shape, *(1 for _ in kernel))
    save_safetensors(file, tensors)


def _matrices(factors: Mapping[str, Array], where: str) -> tuple[Array, Array, Kernel]:
    if "lora_mid.weight" in factors and {"lora_down.weight", "lora_up.weight"} <= factors.keys():
        down, up = factors["lora_down.weight"], factors["lora_up.weight"]
        factors = {"lora_down.weight": composed(down, factors["lora_mid.weight"], up, where), "lora_up.weight": up}
    return pair(factors, "lora_down.weight", "lora_up.weight", where)


def _magnitude(scale: Array, layer: LoRALayer, kernel: Kernel, where: str) -> tuple[Array, bool]:
    """A magnitude for each output, (out, 1, ...), or for each input, (1, in, ...); whether it is the latter."""
    outputs, inputs = layer.output_size, layer.input_size // math.prod(kernel)
    ones = scale.shape[2:]
    if scale.ndim and scale.size == len(scale) == outputs:
        return scale.reshape(-1), False
    if scale.shape != (1, inputs, *ones) or math.prod(ones) != 1:
        raise FormatError(f"{where}.dora_scale must have shape ({outputs}, 1) or (1, {inputs}), got {scale.shape}")
    return scale.reshape(-1), True


def _alpha(factors: Mapping[str, Array], rank: int, where: str) -> float:
    if "alpha" not in factors:
        return rank
    if factors["alpha"].size != 1:
        raise FormatError(f"{where}.alpha must be one number, got shape {factors['alpha'].shape}")
    return float(factors["alpha"].item())


def _number(value: float) -> Array:
    """A scalar in float32, as in the files of others, where float32 holds the value."""
    return np.array(value, np.float32 if float(np.float32(value)) == value else np.float64)


def _names(weights: AdapterWeights, default: str | None) -> dict[str, str]:
    """The name of each layer in the file."""
    several = any(split_component(path)[0] == "text_encoder_2" for path in weights.layers)
    prefixes = PREFIXES | ({"text_encoder": "lora_te1_"} if several else {})
    names: dict[str, str] = {}
    for path in weights.layers:
        component, rest = split_component(path)
        component = component or default
        if path.startswith(tuple(KOHYA_PREFIXES)) and "." not in path:
            name = path
        elif path and component in prefixes:
            name = prefixes[component] + rest.replace(".", "_")
        else:
            raise ArgumentError(
                f"paths of layers must begin with a component of a pipeline ({', '.join(PREFIXES)}), got {path!r}; "
                "component= gives it"
            )
        if name in names.values():
            other = next(one for one, taken in names.items() if taken == name)
            raise ArgumentError(f"{other!r} and {path!r} have the same name in kohya's format, {name!r}")
        names[path] = name
    return names
