"""Small decoders for the tests: Llama with grouped queries, tied and untied, and GPT-2."""

import numpy as np

from lora_np import CausalLM, FullyConnectedLayer, GPT2Model, LlamaModel

VOCABULARY, POSITIONS, SIZE = 11, 9, 8
LLAMA = {
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-3,
    "rope_theta": 100.0,
}
GPT2 = {
    "n_embd": SIZE,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 12,
    "vocab_size": VOCABULARY,
    "n_positions": POSITIONS,
    "layer_norm_epsilon": 1e-3,
}
BUILD = {
    "llama": lambda dtype: CausalLM(LlamaModel.new(LLAMA, dtype=dtype, rng=0)),
    "llama, untied": lambda dtype: CausalLM(
        LlamaModel.new(LLAMA, dtype=dtype, rng=0), FullyConnectedLayer(SIZE, VOCABULARY, bias=False, dtype=dtype, rng=0)
    ),
    "gpt2": lambda dtype: CausalLM(GPT2Model.new(GPT2, dtype=dtype, rng=0)),
}
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}
"""Layers to adapt, by the first word of a name."""


def decoder(name, dtype=np.float64, seed=1):
    """A model whose arrays are of ordinary size, so that nothing is nearly linear or nearly zero."""
    model, rng = BUILD[name](dtype), np.random.default_rng(seed)
    for array in model.named_parameters().values():
        array[...] = rng.normal(size=array.shape) * (0.5 if array.ndim == 2 else 0.3) + (array.ndim == 1)
    return model


def targets(name):
    """The layers to adapt in a model."""
    return TARGETS[name.partition(",")[0]]
