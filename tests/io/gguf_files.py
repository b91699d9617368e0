"""Writes GGUF files by the specification, for the tests of their reader."""

import struct

import numpy as np

CODES = {"F32": 0, "F16": 1, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
NUMBERS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "?": 7, "u8": 10, "i8": 11, "f8": 12}


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(content):
    """The type and the bytes of a metadata value; integers are written as uint32, floats as float32."""
    if isinstance(content, str | bytes):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, list):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(text, content))
    if isinstance(content, np.ndarray):
        return struct.pack("<IIQ", 9, NUMBERS[content.dtype.str[1:].replace("b1", "?")], len(content)) + content.tobytes()
    kind = "?" if isinstance(content, bool) else "u4" if isinstance(content, int) else "f4"
    kind = content.dtype.str[1:] if isinstance(content, np.generic) else kind
    return struct.pack("<I", NUMBERS[kind]) + np.dtype(kind).type(content).tobytes()


def stored(array, kind):
    """The bytes of a float32 array; blocks are quantized as llama.cpp does."""
    array = np.ascontiguousarray(array, np.float32)
    if kind == "F32":
        return array.tobytes()
    if kind == "F16":
        return array.astype("<f2").tobytes()
    if kind == "BF16":
        return (array.view("<u4") >> 16).astype("<u2").tobytes()
    blocks = array.reshape(-1, 32)
    if kind == "Q8_0":
        d = (abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
        q = np.rint(blocks / np.where(d, d, 1).astype(np.float32)).clip(-127, 127).astype("i1")
        return b"".join(a.tobytes() + b.tobytes() for a, b in zip(d, q, strict=True))
    m = blocks.min(1, keepdims=True).astype("<f2")
    d = ((blocks.max(1, keepdims=True) - m) / 15).astype("<f2")
    q = np.rint((blocks - m.astype(np.float32)) / np.where(d, d, 1).astype(np.float32)).clip(0, 15).astype("u1")
    halves = q[:, :16] | q[:, 16:] << 4
    return b"".join(a.tobytes() + b.tobytes() + c.tobytes() for a, b, c in zip(d, m, halves, strict=True))


def gguf_bytes(metadata, tensors, *, version=3, alignment=32):
    """A file of metadata by key, and of tensors (array, type) by name."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(content) for key, content in metadata.items())
    data = b""
    for name, (array, kind) in tensors.items():
        head += text(name) + struct.pack(f"<I{array.ndim}Q", array.ndim, *array.shape[::-1])
        head += struct.pack("<IQ", CODES[kind], len(data))
        data += padded(stored(array, kind), alignment)
    return padded(head, alignment) + data


def padded(data, alignment):
    return data + bytes(-len(data) % alignment)


BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_metadata(config):
    """The metadata of a configuration of Hugging Face's form."""
    return {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_theta"],
        "llama.rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
    }


def llama_tensors(model, config, kind="F32"):
    """The tensors of a CausalLM as llama.cpp stores them: matrices of one type, norms as F32."""
    tensors = {}
    for name, array in model.named_parameters(frozen=True).items():
        name = name.removeprefix("model.").removesuffix(".weight")
        first, _, rest = name.removeprefix("layers.").partition(".")
        if name.startswith("layers."):
            for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                if rest.endswith(part):  # rows j and j + d/2 of a head become neighbours
                    halves = array.reshape(config[heads], 2, -1, array.shape[1])
                    array = halves.swapaxes(1, 2).reshape(array.shape)
            name = f"blk.{first}.{BLOCK_NAMES[rest]}"
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name]
        tensors[f"{name}.weight"] = array, kind if array.ndim == 2 else "F32"
    return tensors


WORDS = ["<|end|>", "<|start|>", *"abcdefgh 0123456789?".replace(" ", "Ġ"), "ab", "Ġab", "abc"]


def bpe_metadata(tokens=WORDS, merges=("a b", "Ġ ab", "ab c"), pre="smollm"):
    """A small byte-level BPE tokenizer, of which the first two tokens are special."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": np.array([3, 3] + [1] * (len(tokens) - 2), np.int32),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.eos_token_id": 0,
    }
