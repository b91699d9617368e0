"""The modules of Flux in the first checkpoints, of which some are fused, and the separate ones of diffusers.

A fused module stacks the rows of several: ``qkv`` those of queries, keys and values. A low-rank change of it is a change of
each of them, with the same A and some rows of Bᵀ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..errors import FormatError, NotSupportedError
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer

MODULES = {
    "double_blocks": {
        "img_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
        "txt_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
        "img_attn_proj": ("attn_to_out_0",),
        "txt_attn_proj": ("attn_to_add_out",),
        "img_mlp_0": ("ff_net_0_proj",),
        "img_mlp_2": ("ff_net_2",),
        "txt_mlp_0": ("ff_context_net_0_proj",),
        "txt_mlp_2": ("ff_context_net_2",),
        "img_mod_lin": ("norm1_linear",),
        "txt_mod_lin": ("norm1_context_linear",),
    },
    "single_blocks": {
        "linear1": ("attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation_lin": ("norm_linear",),
    },
}
"""The modules of a block, with underscores for dots, and those of diffusers whose rows they stack."""

BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
NAME = re.compile(r"(double_blocks|single_blocks)_(\d+)_(\w+)")


def diffusers_modules(name: str) -> list[str]:
    """The modules of diffusers, with underscores for dots, that a module of the first checkpoints stacks; else none."""
    match = NAME.fullmatch(name)
    modules = MODULES[match[1]].get(match[3], ()) if match else ()
    return [f"{BLOCKS[match[1]]}_{match[2]}_{module}" for module in modules] if match else []


def separated(weights: AdapterWeights, names: Mapping[str, str], sizes: Mapping[str, int]) -> AdapterWeights:
    """An adapter whose layers are those of a base of diffusers, where the base has these.

    Parameters
    ----------
    weights : AdapterWeights
    names : mapping of str to str
        The path of each layer, and the name of its module with underscores for dots, which ends the path.
    sizes : mapping of str to int
        The output sizes of the modules of the base, by their names with underscores for dots.

    Raises
    ------
    FormatError
        If the outputs of a fused module are not those of its parts.
    NotSupportedError
        If a fused module has a DoRA magnitude of its inputs, whose norms are those of all parts together.
    """
    layers: dict[str, LoRALayer] = {}
    magnitudes = dict(weights.magnitudes)
    for path, layer in weights.layers.items():
        parts = diffusers_modules(names[path])
        if names[path] in sizes or not parts or not all(part in sizes for part in parts):
            layers[path] = layer
            continue
        total = sum(sizes[part] for part in parts)
        if total != layer.output_size:
            raise FormatError(f"{path!r} has {layer.output_size} outputs, but {', '.join(parts)} have {total}")
        if path in weights.by_input:
            raise NotSupportedError(f"{path!r} has one DoRA magnitude of its inputs for {', '.join(parts)}")
        magnitude, start = magnitudes.pop(path, None), 0
        for part in parts:
            new, rows = path[: -len(names[path])] + part, slice(start, start + sizes[part])
            layers[new] = LoRALayer.from_factors(
                layer.matrix_a, layer.matrix_b[:, rows], layer.alpha, scaling=layer.scaling_rule, **layer.dropout_choices
            )
            if magnitude is not None:
                magnitudes[new] = magnitude[rows]
            start = rows.stop
    return replace(weights, layers=layers, magnitudes=magnitudes)
