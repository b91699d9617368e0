"""SmolLM2-135M-Instruct: where it is, the prompts of the tests, and the same model in transformers."""

from lora_np.io.gguf import GGUFFile
from lora_np.io.pretrained import load_pretrained

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    CHAT.format("What is the capital of France?"),
    CHAT.format("Count from 1 to 5."),
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
]


def in_transformers(path):
    """Hugging Face's LlamaForCausalLM in float32, with the weights of the file as lora_np decodes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with GGUFFile(path) as file:
        values = file.metadata
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=values["llama.embedding_length"],
        num_hidden_layers=values["llama.block_count"],
        num_attention_heads=values["llama.attention.head_count"],
        num_key_value_heads=values["llama.attention.head_count_kv"],
        intermediate_size=values["llama.feed_forward_length"],
        max_position_embeddings=values["llama.context_length"],
        rms_norm_eps=values["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=values["llama.rope.freq_base"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,  # so that greedy tokens go on after the end of a text
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    arrays = load_pretrained(path).named_parameters(frozen=True)
    missing = model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    model.tie_weights()
    return model.eval()
