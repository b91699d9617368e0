"""The config.json of pretrained transformers: the entries that a model needs, and those that would change its function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import FormatError, NotSupportedError


class Entries(NamedTuple):
    """The entries of one type of model."""

    sizes: tuple[str, ...]
    """Positive integers, which must be there."""
    optional_sizes: tuple[str, ...]
    """Positive integers or null."""
    heads: tuple[str, str]
    """A size and the number of heads, which must divide it if head_dim is not given."""
    epsilon: tuple[str, float]
    """The ε of norms, and its default."""
    values: dict[str, tuple[Any, ...]]
    """Entries that change the function, with the values that lora_np supports; the first is the default."""


BERT = Entries(
    (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "type_vocab_size",
    ),
    (),
    ("hidden_size", "num_attention_heads"),
    ("layer_norm_eps", 1e-12),
    {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,)},
)
GPT2 = Entries(
    ("n_embd", "n_layer", "n_head", "vocab_size", "n_positions"),
    ("n_inner",),
    ("n_embd", "n_head"),
    ("layer_norm_epsilon", 1e-5),
    {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True, False),
    },
)
LLAMA = Entries(
    (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ),
    ("num_key_value_heads", "head_dim"),
    ("hidden_size", "num_attention_heads"),
    ("rms_norm_eps", 1e-6),
    {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1,),
        "rope_interleaved": (False,),
        "num_local_experts": (None,),
        "tie_word_embeddings": (False, True),
    },
)
MODELS = {"bert": BERT, "gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "smollm": LLAMA}
"""By model_type."""

WINDOW = {"mistral": 4096}
"""The default of sliding_window; null for other models."""


def check_config(config: Any, where: str) -> dict[str, Any]:
    """Check the content of a config.json, or of metadata in the same form.

    Parameters
    ----------
    config : object
    where : str
        For messages.

    Returns
    -------
    dict

    Raises
    ------
    FormatError
        If an entry is missing or does not make sense.
    NotSupportedError
        If the model is of another type, or if an entry asks for another function.
    """
    if not isinstance(config, dict):
        raise FormatError(f"{where}: must contain an object")
    kind = config.get("model_type")
    if not (isinstance(kind, str) and kind in MODELS):
        raise NotSupportedError(f"{where}: model_type must be one of {', '.join(MODELS)}, got {kind!r}")
    entries = MODELS[kind]
    for name, values in {**entries.values, "quantization_config": (None,)}.items():
        value = config.get(name, values[0])
        if value not in values:
            rule = repr(values[0]) if len(values) == 1 else f"one of {', '.join(map(repr, values))}"
            raise NotSupportedError(f"{where}: {name} must be {rule}, got {value!r}")
    for name in entries.sizes + entries.optional_sizes:
        size: Any = config.get(name)
        if not (_is_integer(size) and size > 0) and (name in entries.sizes or size is not None):
            raise FormatError(f"{where}: {name} must be a positive integer, got {size!r}")
    name, default = entries.epsilon
    epsilon = config.get(name, default)
    if not (_is_number(epsilon) and 0 < epsilon < 1):
        raise FormatError(f"{where}: {name} must be between 0 and 1, got {epsilon!r}")
    whole, heads = entries.heads
    if not config.get("head_dim") and config[whole] % config[heads]:
        raise FormatError(f"{where}: {whole} must be a multiple of {heads}")
    if entries is LLAMA:
        _check_attention(config, kind, where)
    return config


def _check_attention(config: Mapping[str, Any], kind: str, where: str) -> None:
    """Grouped queries, rotary positions, and the range of attention."""
    heads = config["num_attention_heads"]
    if heads % (config.get("num_key_value_heads") or heads):
        raise FormatError(f"{where}: num_attention_heads must be a multiple of num_key_value_heads")
    if (config.get("head_dim") or config["hidden_size"] // heads) % 2:
        raise FormatError(f"{where}: the size of a head must be even for rotary positions")
    base = config.get("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name) or {}
        if not isinstance(value, dict):
            raise FormatError(f"{where}: {name} must be an object or null, got {value!r}")
        scaling = value.get("rope_type", value.get("type", "default"))
        if scaling != "default" or value.get("partial_rotary_factor", 1) != 1:
            raise NotSupportedError(f"{where}: {name} must be that of plain rotary positions, got {value!r}")
        base = value.get("rope_theta", base)
    if not (_is_number(base) and 0 < base < 1e300):
        raise FormatError(f"{where}: rope_theta must be a positive number, got {base!r}")
    window, positions = config.get("sliding_window", WINDOW.get(kind)), config["max_position_embeddings"]
    if window is not None and not (_is_integer(window) and window >= positions):
        rule = f"null, or at least max_position_embeddings = {positions}"
        raise NotSupportedError(f"{where}: sliding_window must be {rule}, got {window!r}")
    layers = config.get("layer_types")
    if layers is not None and not (isinstance(layers, list) and all(layer == "full_attention" for layer in layers)):
        raise NotSupportedError(f"{where}: layer_types must be 'full_attention' everywhere, got {layers!r}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
